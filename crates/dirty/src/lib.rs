//! IOVA ranges, page sizes and the dirty bitmap.
//!
//! Everything that says "these bytes changed" ends here: the DMA log of a device, an
//! IOMMU, the VMM's own writes. Each has a page size of its own; [`Bitmap`] takes
//! them all, scales without losing a bit, and gives them back once:
//!
//! ```text
//!  producers                                       consumer
//!  mark(range)  ----.                          .--> Drained --> runs() --> copied, sent
//!  merge(words) ----+--> [ AtomicU64 words ] --+        |
//!  mark_all()   ----'          ^               `-> report(): uAPI words
//!                              `----------- restore(&drained), when that failed
//! ```
//!
//! A bit that was drained is either acted upon or restored; nothing else may happen
//! to it. What is reported beyond the truth is so by page granularity alone.
//!
//! ```
//! use vfio_migrate_dirty::{Bitmap, IovaRange, PageSize};
//!
//! let memory = IovaRange::new(0x10_0000, 0x8000)?;
//! let bitmap = Bitmap::new(memory, PageSize::FOUR_K)?;
//! bitmap.mark(IovaRange::new(0x10_1ffc, 8)?); // touches two pages
//!
//! let drained = bitmap.drain();
//! assert!(bitmap.is_empty());
//! let runs: Vec<_> = drained.runs().collect();
//! assert_eq!(runs, [IovaRange::new(0x10_1000, 0x2000)?]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod bitmap;
mod bits;
mod drained;
mod foreign;
mod range;
mod sync;

pub use bitmap::{Bitmap, BitmapError, ReportError};
pub use drained::{Drained, Runs};
pub use foreign::set_runs;
pub use range::{Iova, IovaRange, PageSize, PageSizeError, RangeError};
