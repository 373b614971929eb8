//! What a device of a very large guest wrote, from its log into the VMM's bitmap.
//!
//! ```text
//!                one process                          another
//!   figure   Bitmap <--merge-- control::DmaLog
//!                              Client --[REPORT, 48 bytes]------> Server, runner, log
//!                                     <--[48 bytes, 512 KiB]---     x 64
//!   limit    memcpy of 32 MiB, three times, and
//!            write(48) ---------------------------------------> read
//!            read      <--------------------------------------- write(48 + 512 KiB)
//!                                                                   x 64
//! ```
//!
//! 1 TiB of pages of 4 KiB is 32 MiB of bits in the log, on the socket, and in the bitmap.
//! The dirty pages are drawn at random, which is the worst that they can be. The device
//! writes them again before each turn, and after it what arrived is compared with what it
//! drew, bit by bit; neither is timed. Nor is the first touch of any memory, as the first
//! run of each side does not count.
//!
//! The limit does its two parts one after the other, timed as one, so that whatever
//! disturbs the machine disturbs it as much as the figure. Its memcpy goes from touched
//! memory to touched memory, its bytes come from one buffer at the far end and go into one
//! at the near end. Both processes are pinned to one CPU, and each run gives the median of
//! its turns.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use control::{DmaLog, Transport};
use dirty::{Bitmap, IovaRange, PageSize};
use port::DirtySource;
use tempfile::TempDir;
use vfio_user::{Client, ClientOptions, NoDma};

use super::dirty_bitmap::{MEMORY, WORDS, pages};
use super::logged::{ASKED, DRAWN, ROOM, SEEDS};
use super::one_cpu::{self, median};
use super::side::Side;
use super::text;
use crate::bench::row::{Reach, Row, Runs};

/// Bytes of an answer beside its bits.
const BESIDE: usize = ASKED;

/// How often all of it is done in one run.
const TURNS: usize = 5;

/// Measures it with one page in a thousand dirty.
pub(super) fn measure(runs: Runs) -> Result<Row, String> {
    measure_with(
        "dirty sync of 1 TiB from a vfio-user log, 0.1 %, to 3 x memcpy + socket",
        Reach::AtMost { factor: 1.0, plus: 0.0 },
        DRAWN,
        runs,
    )
}

/// Measures it where the device wrote nothing.
pub(super) fn measure_idle(runs: Runs) -> Result<Row, String> {
    measure_with(
        "dirty sync of 1 TiB from a vfio-user log, nothing dirty, to the same",
        Reach::Any,
        0,
        runs,
    )
}

fn measure_with(
    work: &'static str,
    reach: Reach,
    drawn: u64,
    runs: Runs,
) -> Result<Row, String> {
    let samples = one_cpu::measure(move || {
        let mut rig = Rig::new(drawn)?;
        // The words of the log are there from now on, whatever is written next.
        rig.write(DRAWN)?;
        rig.log.collect(rig.all, &mut |_| {}).map_err(text)?;
        runs.interleave(&mut rig, Rig::sync, Rig::limit)
    })?;
    Row::new(work, "ms", reach, &samples)
}

struct Rig {
    log: DmaLog,
    client: Client,
    bitmap: Bitmap,
    all: IovaRange,
    /// How many pages the device draws for each turn.
    drawn: u64,
    seed: u64,
    /// What it drew, and what arrived.
    expected: Vec<u64>,
    found: Vec<u64>,
    bare: UnixStream,
    /// A bare answer.
    answer: Vec<u8>,
    _side: Side,
    _folder: TempDir,
}

impl Rig {
    fn new(drawn: u64) -> Result<Rig, String> {
        let folder = tempfile::tempdir().map_err(text)?;
        let [device, bare] = ["device", "bare"].map(|name| folder.path().join(name));
        let arguments = [&device, &bare].map(|path| path.display().to_string());
        let side = Side::start("logged", &arguments)?;
        let options = ClientOptions::new("bench", Arc::new(NoDma));
        let client = Client::connect(&device, options).map_err(text)?;
        let transport: Arc<dyn Transport> = Arc::new(client.clone());
        let bits = DmaLog::MOST_BYTES.min(transport.most_report_bytes());
        let mut log =
            DmaLog::open(transport).map_err(text)?.ok_or("the device keeps no log")?;
        let all = IovaRange::new(0, MEMORY).map_err(text)?;
        log.start(&[all], PageSize::FOUR_K).map_err(text)?;
        let bare: UnixStream = sys::socket::connect(&bare).map_err(text)?.into();
        sys::socket::set_send_buffer(&bare, ROOM).map_err(text)?;
        Ok(Rig {
            log,
            client,
            bitmap: Bitmap::new(all, PageSize::FOUR_K).map_err(text)?,
            all,
            drawn,
            seed: 0,
            expected: vec![u64::MAX; WORDS],
            found: vec![u64::MAX; WORDS],
            bare,
            answer: vec![0xa5; BESIDE + bits],
            _side: side,
            _folder: folder,
        })
    }

    /// Has the device write to pages that were not drawn before.
    fn write(&mut self, drawn: u64) -> Result<(), String> {
        self.expected.fill(0);
        if drawn == 0 {
            return Ok(());
        }
        self.seed += 1;
        self.client.region_write(SEEDS, 0, &self.seed.to_le_bytes()).map_err(text)?;
        for page in pages(self.seed, drawn) {
            self.expected[page as usize / 64] |= 1 << (page % 64);
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<f64, String> {
        let mut took = Vec::with_capacity(TURNS);
        for _ in 0..TURNS {
            self.write(self.drawn)?;
            let started = Instant::now();
            let bitmap = &self.bitmap;
            self.log
                .collect(self.all, &mut |report| {
                    bitmap.merge(report.range, report.page, report.words);
                })
                .map_err(text)?;
            took.push(started.elapsed());
            self.found.fill(0);
            bitmap.report(self.all, PageSize::FOUR_K, &mut self.found).map_err(text)?;
            if self.found != self.expected {
                return Err("other pages arrived than were written".into());
            }
        }
        Ok(one_cpu::middle(&mut took)? / 1e3)
    }

    fn limit(&mut self) -> Result<f64, String> {
        let micros = median(TURNS, || {
            for _ in 0..3 {
                self.found.copy_from_slice(&self.expected);
                if std::hint::black_box(&self.found).last() != self.expected.last() {
                    return Err("the words were not copied".into());
                }
            }
            let mut left = WORDS * 8;
            while left > 0 {
                let bits = left.min(self.answer.len() - BESIDE);
                let answer = &mut self.answer[..BESIDE + bits];
                let mut question = [0; ASKED];
                question[..8].copy_from_slice(&(answer.len() as u64).to_le_bytes());
                self.bare.write_all(&question).map_err(text)?;
                self.bare.read_exact(answer).map_err(text)?;
                left -= bits;
            }
            Ok(())
        })?;
        Ok(micros / 1e3)
    }
}
