//! Runs of guest memory: which pages, and what is in them.
//!
//! One frame holds a table of runs and the bytes of those that are not zero, one
//! after the other: thousands of scattered pages and a megabyte in one piece cost
//! the same few bytes, and zero pages cost nothing but their run.
//!
//! ```text
//! 0       4             8                      8 + 16 * runs
//! | runs  | data length | run | run | ... | run | bytes of the data runs |
//!
//! run: 0          8       12     14         16
//!      | address  | pages | kind | 0        |
//! ```
//!
//! Addresses are multiples of the page size, and ascend without overlap: a frame
//! names each page at most once, so what it can make a reader do is bounded by the
//! guest's memory.

use std::fmt;
use std::ops::Range;

use crate::bytes::{u16_at, u32_at, u64_at};
use crate::digest::Bulk;
use crate::preamble::PageSize;

/// Most bytes of page data in one frame.
pub const MAX_RUN_BYTES: u32 = 1 << 20;

/// Most runs in one frame.
pub const MAX_RUNS: u32 = 1024;

/// Length of a table without runs, in bytes.
pub const TABLE_HEAD: usize = 8;

/// Length of one run in the table, in bytes.
pub const RUN_SIZE: usize = 16;

/// Greatest payload of a `MEMORY_RUNS` frame.
pub const MAX_FRAME_BYTES: u32 =
    TABLE_HEAD as u32 + RUN_SIZE as u32 * MAX_RUNS + MAX_RUN_BYTES;

/// Consecutive pages of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Run {
    /// Guest-physical address of the first page.
    pub gpa: u64,
    /// Number of pages, at least 1.
    pub pages: u32,
    /// What they hold.
    pub kind: RunKind,
}

/// What the pages of a run hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RunKind {
    /// Bytes that travel with the run.
    Data,
    /// Zeros, which do not travel.
    Zero,
}

impl RunKind {
    const DATA: u16 = 1;
    const ZERO: u16 = 2;

    const fn number(self) -> u16 {
        match self {
            Self::Data => Self::DATA,
            Self::Zero => Self::ZERO,
        }
    }
}

/// Why a run cannot be added or a table cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The payload ends before its table, or goes on after its data.
    #[error("a table of {runs} runs and {data} bytes does not fill {length} bytes")]
    Size {
        /// Runs in the table.
        runs: u32,
        /// Data length in the table.
        data: u32,
        /// Length of the payload.
        length: usize,
    },
    /// The table is full, or claims more than a table holds.
    #[error("more than {MAX_RUNS} runs")]
    TooManyRuns,
    /// The data is full, or claims more than a frame holds.
    #[error("more than {MAX_RUN_BYTES} bytes of pages")]
    TooMuchData,
    /// The data runs ask for another number of bytes than there is.
    #[error("the runs hold {expected} bytes, the data is {found}")]
    DataLength {
        /// What the runs add up to.
        expected: u64,
        /// What there is.
        found: u64,
    },
    /// A run without pages.
    #[error("the run at {gpa:#x} has no pages")]
    Empty {
        /// Its address.
        gpa: u64,
    },
    /// An address inside a page.
    #[error("the run at {gpa:#x} does not begin on a page of {page_size} bytes")]
    Unaligned {
        /// Its address.
        gpa: u64,
        /// The guest's page size.
        page_size: u32,
    },
    /// The run goes beyond the last address.
    #[error("the run of {pages} pages at {gpa:#x} leaves the address space")]
    Overflow {
        /// Its address.
        gpa: u64,
        /// Its length.
        pages: u32,
    },
    /// The run begins before the end of the one in front of it.
    #[error("the run at {gpa:#x} begins before {end:#x}, where the last one ends")]
    Order {
        /// Its address.
        gpa: u64,
        /// Where the last run ends.
        end: u64,
    },
    /// A kind that is neither data nor zero, or reserved bytes that are not zero.
    #[error("the run at {gpa:#x} is of unknown kind {kind}")]
    Kind {
        /// Its address.
        gpa: u64,
        /// The number.
        kind: u16,
    },
}

/// Checks runs one after the other, for the sender and the receiver alike.
#[derive(Debug, Clone)]
struct Checker {
    page_size: u64,
    /// Where the last run ends: the lowest address that the next may have.
    end: u64,
    /// Bytes of the data runs so far.
    data: u64,
}

impl Checker {
    fn new(page_size: PageSize) -> Self {
        Self { page_size: page_size.get().into(), end: 0, data: 0 }
    }

    /// The state after `run`; `self` is as it was if it is refused.
    fn next(&self, run: Run) -> Result<Self, RunError> {
        let Run { gpa, pages, kind } = run;
        let page_size = self.page_size;
        if pages == 0 {
            return Err(RunError::Empty { gpa });
        }
        if !gpa.is_multiple_of(page_size) {
            return Err(RunError::Unaligned { gpa, page_size: page_size as u32 });
        }
        if gpa < self.end {
            return Err(RunError::Order { gpa, end: self.end });
        }
        // 2^32 pages of 2^20 bytes fit a u64; their sum with an address may not.
        let bytes = u64::from(pages) * page_size;
        let overflow = RunError::Overflow { gpa, pages };
        let end = gpa.checked_add(bytes).ok_or(overflow)?;
        let data = match kind {
            RunKind::Data => self.data.saturating_add(bytes),
            RunKind::Zero => self.data,
        };
        if data > u64::from(MAX_RUN_BYTES) {
            return Err(RunError::TooMuchData);
        }
        Ok(Self { page_size, end, data })
    }
}

/// The table of a frame that a sender fills while it copies pages.
///
/// A run is copied out of the guest once, and the zero test is made on the copy:
/// copy to [`data_len`](Self::data_len) in a buffer of [`MAX_RUN_BYTES`], test, then
/// [`push`](Self::push) as data, or push as zero and use the place again.
///
/// ```
/// # use vfio_migrate_wire as wire;
/// use wire::memory::{RunKind, RunTable};
/// use wire::preamble::PageSize;
///
/// let mut table = RunTable::new(PageSize::KIB_4);
/// table.push(0x1000, 1, RunKind::Data)?;
/// table.push(0x2000, 1, RunKind::Data)?; // joins the run in front of it
/// table.push(0x9000, 512, RunKind::Zero)?;
/// assert_eq!((table.runs(), table.data_len()), (2, 8192));
/// # Ok::<(), wire::memory::RunError>(())
/// ```
#[derive(Debug, Clone)]
pub struct RunTable {
    /// The table as it is sent.
    bytes: Vec<u8>,
    checker: Checker,
    last: Option<Run>,
}

impl RunTable {
    /// An empty table for a guest of this page size.
    #[must_use]
    pub fn new(page_size: PageSize) -> Self {
        let checker = Checker::new(page_size);
        Self { bytes: vec![0; TABLE_HEAD], checker, last: None }
    }

    /// Adds pages, joined to the last run where they continue it. Returns where
    /// their bytes belong in the frame's data: empty for zero pages.
    ///
    /// # Errors
    ///
    /// The table is unchanged. [`RunError::TooManyRuns`], [`RunError::TooMuchData`]
    /// and [`RunError::Order`] mean that the frame is to be sent first; the others
    /// are the caller's mistakes.
    pub fn push(
        &mut self,
        gpa: u64,
        pages: u32,
        kind: RunKind,
    ) -> Result<Range<usize>, RunError> {
        let run = Run { gpa, pages, kind };
        let checker = self.checker.next(run)?;
        let joined =
            self.last.filter(|last| last.kind == kind && gpa == self.checker.end);
        let joined = joined
            .and_then(|last| Some(Run { pages: last.pages.checked_add(pages)?, ..last }));
        let run = match joined {
            Some(run) => {
                self.bytes.truncate(self.bytes.len() - RUN_SIZE);
                run
            }
            None if self.runs() == MAX_RUNS => return Err(RunError::TooManyRuns),
            None => run,
        };
        self.bytes.extend_from_slice(&run.gpa.to_le_bytes());
        self.bytes.extend_from_slice(&run.pages.to_le_bytes());
        self.bytes.extend_from_slice(&run.kind.number().to_le_bytes());
        self.bytes.extend_from_slice(&[0; 2]);

        let data = self.data_len()..checker.data as usize;
        self.checker = checker;
        self.last = Some(run);
        let (runs, length) = (self.runs(), self.data_len() as u32);
        if let Some((head, _)) = self.bytes.split_first_chunk_mut::<TABLE_HEAD>() {
            *head = crate::bytes::join(&[&runs.to_le_bytes(), &length.to_le_bytes()]);
        }
        Ok(data)
    }

    /// Runs in the table.
    #[must_use]
    pub fn runs(&self) -> u32 {
        ((self.bytes.len() - TABLE_HEAD) / RUN_SIZE) as u32
    }

    /// Bytes of the data runs so far: where the next page of data belongs.
    #[must_use]
    pub fn data_len(&self) -> usize {
        self.checker.data as usize
    }

    /// Bytes of data for which there is room yet.
    #[must_use]
    pub fn room(&self) -> usize {
        MAX_RUN_BYTES as usize - self.data_len()
    }

    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.last.is_none()
    }

    /// What goes between the frame's header and its data.
    #[must_use]
    pub fn prefix(&self) -> &[u8] {
        &self.bytes
    }

    /// Begins the next frame's table in the same memory.
    pub fn clear(&mut self) {
        self.bytes.truncate(TABLE_HEAD);
        self.bytes.fill(0);
        self.checker.end = 0;
        self.checker.data = 0;
        self.last = None;
    }

    pub(crate) fn check_data(&self, found: usize) -> Result<(), RunError> {
        if found == self.data_len() {
            Ok(())
        } else {
            let expected = self.checker.data;
            Err(RunError::DataLength { expected, found: found as u64 })
        }
    }
}

/// A frame's table, every run of it checked.
///
/// Who reads pages straight to where they belong reads the head, asks
/// [`table_len`](Self::table_len), reads the rest of the table, decodes it, then
/// reads each data run into its place; [`Decoder::verify`](crate::Decoder::verify)
/// comes last. Everybody else uses [`MemoryRuns`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Runs<'a> {
    /// The entries, without the head.
    entries: &'a [u8],
}

impl<'a> Runs<'a> {
    /// Length of the table in bytes, head included, of which these are the first.
    ///
    /// # Errors
    ///
    /// [`RunError::TooManyRuns`].
    pub fn table_len(head: &[u8; TABLE_HEAD]) -> Result<usize, RunError> {
        match u32_at(head, 0) {
            Some(runs) if runs <= MAX_RUNS => Ok(TABLE_HEAD + RUN_SIZE * runs as usize),
            _ => Err(RunError::TooManyRuns),
        }
    }

    /// Reads and checks a table, for a payload of `length` bytes altogether.
    ///
    /// # Errors
    ///
    /// The first rule of this module that it breaks.
    pub fn decode(
        table: &'a [u8],
        length: usize,
        page_size: PageSize,
    ) -> Result<Self, RunError> {
        let (Some(runs), Some(data)) = (u32_at(table, 0), u32_at(table, 4)) else {
            return Err(RunError::Size { runs: 0, data: 0, length });
        };
        if runs > MAX_RUNS {
            return Err(RunError::TooManyRuns);
        }
        if data > MAX_RUN_BYTES {
            return Err(RunError::TooMuchData);
        }
        let size = RunError::Size { runs, data, length };
        let table_len = TABLE_HEAD + RUN_SIZE * runs as usize;
        if table.len() != table_len || length != table_len + data as usize {
            return Err(size);
        }
        let entries = table.get(TABLE_HEAD..).ok_or(size)?;
        let mut checker = Checker::new(page_size);
        for entry in entries.chunks_exact(RUN_SIZE) {
            checker = checker.next(read_run(entry).ok_or(size)??)?;
        }
        if checker.data != u64::from(data) {
            let (expected, found) = (checker.data, data.into());
            return Err(RunError::DataLength { expected, found });
        }
        Ok(Self { entries })
    }

    /// The runs in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Run> + use<'a> {
        // Checked by `decode`, which is the only way to get here: no entry is left
        // out.
        self.entries.chunks_exact(RUN_SIZE).filter_map(|entry| read_run(entry)?.ok())
    }

    /// Number of runs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len() / RUN_SIZE
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Number of pages, zero ones included.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.iter().map(|run| u64::from(run.pages)).sum()
    }
}

impl fmt::Debug for Runs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// A frame's runs and their data.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct MemoryRuns<'a> {
    runs: Runs<'a>,
    data: &'a [u8],
    page_size: PageSize,
}

/// What a run brings.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Content<'a> {
    /// The bytes of its pages.
    Data(&'a [u8]),
    /// Zeros.
    Zero,
}

impl fmt::Debug for Content<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Data(bytes) => f.debug_tuple("Data").field(&Bulk(bytes)).finish(),
            Self::Zero => f.write_str("Zero"),
        }
    }
}

impl<'a> MemoryRuns<'a> {
    /// Reads and checks a whole payload.
    ///
    /// # Errors
    ///
    /// The first rule of this module that it breaks.
    pub fn decode(payload: &'a [u8], page_size: PageSize) -> Result<Self, RunError> {
        let length = payload.len();
        let size = RunError::Size { runs: 0, data: 0, length };
        let head = payload.first_chunk().ok_or(size)?;
        let table_len = Runs::table_len(head)?;
        let (table, data) = payload.split_at_checked(table_len).ok_or(size)?;
        Ok(Self { runs: Runs::decode(table, length, page_size)?, data, page_size })
    }

    /// The runs in ascending order, each with what it brings.
    pub fn iter(&self) -> impl Iterator<Item = (Run, Content<'a>)> + use<'a> {
        let page_size = self.page_size.get() as usize;
        let mut rest = self.data;
        self.runs.iter().map(move |run| match run.kind {
            RunKind::Zero => (run, Content::Zero),
            RunKind::Data => {
                let length = run.pages as usize * page_size;
                // The runs add up to the data: `decode` has checked it.
                let (bytes, after) = rest.split_at_checked(length).unwrap_or((rest, &[]));
                rest = after;
                (run, Content::Data(bytes))
            }
        })
    }

    /// The table alone.
    #[must_use]
    pub fn runs(&self) -> Runs<'a> {
        self.runs
    }

    /// The size of the pages that the runs count.
    #[must_use]
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// The bytes of all data runs, one after the other.
    #[must_use]
    pub fn data(&self) -> &'a [u8] {
        self.data
    }
}

impl fmt::Debug for MemoryRuns<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// The run in 16 bytes; `None` if they are fewer.
fn read_run(entry: &[u8]) -> Option<Result<Run, RunError>> {
    let (gpa, pages) = (u64_at(entry, 0)?, u32_at(entry, 8)?);
    let (number, reserved) = (u16_at(entry, 12)?, u16_at(entry, 14)?);
    let kind = match (number, reserved) {
        (RunKind::DATA, 0) => RunKind::Data,
        (RunKind::ZERO, 0) => RunKind::Zero,
        _ => return Some(Err(RunError::Kind { gpa, kind: number })),
    };
    Some(Ok(Run { gpa, pages, kind }))
}
