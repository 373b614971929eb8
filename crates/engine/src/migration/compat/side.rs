//! Two devices, compared field by field.

use std::fmt;

use port::Device;
use wire::message::{DeviceIdentity, RefusalCode};
use wire::preamble::{Architecture, ByteOrder, Preamble};

use super::{device, host, identity, ids, layout, left_out, text, too_long};

/// What is compared of two devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The bus, and the ids that it knows the device by.
    Ids,
    /// Where everything lies in a PCI function, as its guest sees it: BARs, capabilities,
    /// interrupts. Compared where both sides tell.
    Layout,
    /// The device model.
    Model,
    /// The version of the data that the model saves.
    DataVersion,
    /// The generation of the migration interface: may differ where model and data
    /// version are known and equal.
    Generation,
    /// The capability set: may differ where model and data version are known and equal.
    Capabilities,
    /// The longest transaction that one gives, and the longest that the other takes.
    Transactions,
    /// The byte order of the data.
    ByteOrder,
    /// The architecture of the host that the data comes from.
    Architecture,
}

impl Field {
    /// All of them, in the order in which they are told.
    pub const EVERY: [Field; 9] = [
        Field::Ids,
        Field::Layout,
        Field::Model,
        Field::DataVersion,
        Field::Generation,
        Field::Capabilities,
        Field::Transactions,
        Field::ByteOrder,
        Field::Architecture,
    ];

    /// Its name, as in `docs` and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Field::Ids => "ids",
            Field::Layout => "layout",
            Field::Model => "model",
            Field::DataVersion => "data version",
            Field::Generation => "generation",
            Field::Capabilities => "capabilities",
            Field::Transactions => "transactions",
            Field::ByteOrder => "byte order",
            Field::Architecture => "architecture",
        }
    }

    /// What a source is told where it does not fit.
    pub(super) fn code(self) -> RefusalCode {
        match self {
            Field::Ids | Field::Generation => RefusalCode::DEVICE,
            Field::Layout => RefusalCode::LAYOUT,
            Field::Model => RefusalCode::MODEL,
            Field::DataVersion => RefusalCode::DATA_VERSION,
            Field::Capabilities => RefusalCode::CAPABILITIES,
            Field::Transactions => RefusalCode::TRANSACTION,
            Field::ByteOrder => RefusalCode::BYTE_ORDER,
            Field::Architecture => RefusalCode::ARCHITECTURE,
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A device, on one side of a comparison: one that can be asked, or one in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    identity: DeviceIdentity,
    /// Where it is, as reasons call that.
    there: &'static str,
    byte_order: ByteOrder,
    architecture: Architecture,
    longest_transaction: Option<u64>,
    validated_at_start: bool,
}

impl Side {
    /// A device of this host. It is not driven: what it says of itself is enough.
    pub fn of(device: &dyn Device) -> Side {
        Side {
            identity: identity(device),
            there: "at the source",
            byte_order: ByteOrder::HOST,
            architecture: Architecture::HOST,
            longest_transaction: device.longest_transaction(),
            validated_at_start: device.validated_at_start(),
        }
    }

    /// A device whose data is in a file, in transactions of at most so many bytes.
    pub(crate) fn in_file(
        preamble: &Preamble,
        identity: &DeviceIdentity,
        longest_transaction: Option<u64>,
    ) -> Side {
        Side {
            identity: identity.clone(),
            there: "in the file",
            byte_order: preamble.byte_order,
            architecture: preamble.architecture,
            longest_transaction,
            validated_at_start: false,
        }
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.identity.slot
    }

    /// Whether what it loads may be validated only when it starts, so that a load that it
    /// cannot take is found after the handoff (see [`Device::validated_at_start`]).
    pub fn validated_at_start(&self) -> bool {
        self.validated_at_start
    }

    /// What it has in a field, as people read it; `None` where that is not known, or for
    /// [`Field::Transactions`] where its data is a stream without any.
    pub fn shows(&self, field: Field) -> Option<String> {
        let Side { identity, .. } = self;
        let model = identity.model.as_ref();
        match field {
            Field::Ids => Some(ids(identity)),
            Field::Layout => {
                identity.layout.as_ref().map(|told| layout::summary(&layout::heard(told)))
            }
            Field::Model => model.map(|model| model.name.clone()),
            Field::DataVersion => model.map(|model| model.data_version.to_string()),
            Field::Generation => Some(identity.generation.to_string()),
            Field::Capabilities => Some(identity.capabilities.to_string()),
            Field::Transactions => self.longest_transaction.map(|most| most.to_string()),
            Field::ByteOrder => Some(self.byte_order.to_string()),
            Field::Architecture => Some(self.architecture.to_string()),
        }
    }
}

/// What of `source` does not fit `destination`, a device of this host: each field with
/// the reason that a migration gives. Empty where all fits.
///
/// It goes one way: data of `destination` may fit `source` where this is not empty, and
/// the other way round.
pub fn differences(source: &Side, destination: &Side) -> Vec<(Field, String)> {
    let mut reasons = Vec::new();
    let mut differs = |field, what: String| reasons.push((field, text(&what)));
    host(source.architecture, source.byte_order, &mut differs);
    device(&source.identity, &destination.identity, source.there, &mut differs);
    let (gives, takes) = (source.longest_transaction, destination.longest_transaction);
    if let Some(what) = too_long(&source.identity.slot, gives, takes) {
        differs(Field::Transactions, what);
    }
    if let Err(refusal) = super::offered(&source.identity) {
        differs(Field::Capabilities, refusal.text);
    }
    reasons
}

/// Why a field of two devices is not compared, where it is not: then it neither fits nor
/// differs. Such as the layouts of two devices with other ids.
pub fn not_compared(
    source: &Side,
    destination: &Side,
    field: Field,
) -> Option<&'static str> {
    left_out(&source.identity, &destination.identity, field)
}
