//! A struct as a set of fields: the one way in which metadata is written and read.

use crate::message::MessageError;
use crate::tlv::{Fields, TlvError, Writer};

/// A struct that travels as fields. Both directions check the same rules, so what
/// this side writes is what it would take.
pub(crate) trait Record: Sized {
    /// What errors call it.
    const NAME: &'static str;

    /// The numbers of its fields.
    const TAGS: &'static [u16];

    /// Writes the fields in ascending order.
    fn write(&self, w: &mut RecordWriter) -> Result<(), MessageError>;

    /// Reads the fields.
    fn read(r: &Reader<'_>) -> Result<Self, MessageError>;

    /// The first rule that the values break, beyond those of single fields.
    fn broken_rule(&self) -> Option<&'static str> {
        None
    }

    /// Checks, then writes.
    fn to_bytes(&self) -> Result<Vec<u8>, MessageError> {
        check(self)?;
        let mut writer = RecordWriter { record: Self::NAME, writer: Writer::new() };
        self.write(&mut writer)?;
        Ok(writer.writer.finish())
    }

    /// Reads, then checks.
    fn from_bytes(bytes: &[u8]) -> Result<Self, MessageError> {
        let record = Self::NAME;
        let fields = Fields::parse(bytes, Self::TAGS)
            .map_err(|source| MessageError::Field { record, source })?;
        let value = Self::read(&Reader { record, fields })?;
        check(&value)?;
        Ok(value)
    }
}

fn check<T: Record>(value: &T) -> Result<(), MessageError> {
    match value.broken_rule() {
        Some(rule) => Err(MessageError::Invalid { record: T::NAME, rule }),
        None => Ok(()),
    }
}

/// A [`Writer`] whose errors name the record.
pub(crate) struct RecordWriter {
    record: &'static str,
    writer: Writer,
}

impl RecordWriter {
    pub(crate) fn u8(&mut self, tag: u16, value: u8) {
        self.writer.u8(tag, value);
    }

    pub(crate) fn u16(&mut self, tag: u16, value: u16) {
        self.writer.u16(tag, value);
    }

    pub(crate) fn u32(&mut self, tag: u16, value: u32) {
        self.writer.u32(tag, value);
    }

    pub(crate) fn u64(&mut self, tag: u16, value: u64) {
        self.writer.u64(tag, value);
    }

    pub(crate) fn optional_u64(&mut self, tag: u16, value: Option<u64>) {
        if let Some(value) = value {
            self.u64(tag, value);
        }
    }

    pub(crate) fn bytes(&mut self, tag: u16, value: &[u8]) {
        self.writer.bytes(tag, value);
    }

    pub(crate) fn string(
        &mut self,
        tag: u16,
        text: &str,
        limit: usize,
    ) -> Result<(), MessageError> {
        let result = self.writer.string(tag, text, limit);
        result.map_err(|source| MessageError::Field { record: self.record, source })
    }

    pub(crate) fn record<T: Record>(
        &mut self,
        tag: u16,
        value: &T,
    ) -> Result<(), MessageError> {
        self.writer.bytes(tag, &value.to_bytes()?);
        Ok(())
    }

    pub(crate) fn optional_record<T: Record>(
        &mut self,
        tag: u16,
        value: Option<&T>,
    ) -> Result<(), MessageError> {
        value.map_or(Ok(()), |value| self.record(tag, value))
    }

    pub(crate) fn list<T: Record>(
        &mut self,
        tag: u16,
        values: &[T],
        limit: usize,
    ) -> Result<(), MessageError> {
        let items: Vec<_> = values.iter().map(T::to_bytes).collect::<Result<_, _>>()?;
        let result = self.writer.list(tag, &items, limit);
        result.map_err(|source| MessageError::Field { record: self.record, source })
    }
}

/// [`Fields`] whose errors name the record; a field is required unless the method
/// says that it is optional.
pub(crate) struct Reader<'a> {
    record: &'static str,
    fields: Fields<'a>,
}

impl Reader<'_> {
    pub(crate) fn u8(&self, tag: u16) -> Result<u8, MessageError> {
        self.need(tag, self.fields.u8(tag))
    }

    pub(crate) fn u16(&self, tag: u16) -> Result<u16, MessageError> {
        self.need(tag, self.fields.u16(tag))
    }

    pub(crate) fn u32(&self, tag: u16) -> Result<u32, MessageError> {
        self.need(tag, self.fields.u32(tag))
    }

    pub(crate) fn u64(&self, tag: u16) -> Result<u64, MessageError> {
        self.need(tag, self.fields.u64(tag))
    }

    pub(crate) fn array<const N: usize>(
        &self,
        tag: u16,
    ) -> Result<[u8; N], MessageError> {
        self.need(tag, self.fields.array(tag))
    }

    pub(crate) fn optional_u8(&self, tag: u16) -> Result<Option<u8>, MessageError> {
        self.named(self.fields.u8(tag))
    }

    pub(crate) fn optional_u32(&self, tag: u16) -> Result<Option<u32>, MessageError> {
        self.named(self.fields.u32(tag))
    }

    pub(crate) fn optional_u64(&self, tag: u16) -> Result<Option<u64>, MessageError> {
        self.named(self.fields.u64(tag))
    }

    pub(crate) fn string(&self, tag: u16, limit: usize) -> Result<String, MessageError> {
        self.need(tag, self.fields.string(tag, limit)).map(str::to_owned)
    }

    pub(crate) fn optional_string(
        &self,
        tag: u16,
        limit: usize,
    ) -> Result<Option<String>, MessageError> {
        let text = self.named(self.fields.string(tag, limit))?;
        Ok(text.map(str::to_owned))
    }

    pub(crate) fn record<T: Record>(&self, tag: u16) -> Result<T, MessageError> {
        let missing = || self.field(TlvError::Missing { tag });
        self.optional_record(tag)?.ok_or_else(missing)
    }

    pub(crate) fn optional_record<T: Record>(
        &self,
        tag: u16,
    ) -> Result<Option<T>, MessageError> {
        self.fields.get(tag).map(T::from_bytes).transpose()
    }

    pub(crate) fn list<T: Record>(
        &self,
        tag: u16,
        limit: usize,
    ) -> Result<Vec<T>, MessageError> {
        self.need(tag, self.fields.list(tag, limit))?.map(T::from_bytes).collect()
    }

    /// Items of `N` bytes each, at most `most` of them.
    pub(crate) fn items<const N: usize>(
        &self,
        tag: u16,
        most: usize,
    ) -> Result<&[[u8; N]], MessageError> {
        let bytes = self.need(tag, self.fields.bytes(tag, most * N))?;
        let (items, rest) = bytes.as_chunks();
        if rest.is_empty() { Ok(items) } else { Err(self.invalid("half of an item")) }
    }

    pub(crate) fn invalid(&self, rule: &'static str) -> MessageError {
        MessageError::Invalid { record: self.record, rule }
    }

    fn need<T>(
        &self,
        tag: u16,
        value: Result<Option<T>, TlvError>,
    ) -> Result<T, MessageError> {
        self.named(value)?.ok_or_else(|| self.field(TlvError::Missing { tag }))
    }

    fn named<T>(&self, value: Result<T, TlvError>) -> Result<T, MessageError> {
        value.map_err(|source| self.field(source))
    }

    fn field(&self, source: TlvError) -> MessageError {
        MessageError::Field { record: self.record, source }
    }
}
