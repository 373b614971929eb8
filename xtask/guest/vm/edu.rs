//! A PCI device behind an IOMMU, by its group: QEMU's `edu`, which copies to memory what
//! it is told to. It cannot migrate; what it writes is what a container counts.
//!
//! ```text
//!   edu --- the IOMMU of QEMU --- container, type1 --- memory of this process
//! ```
//!
//! Its driver is vfio-pci, which pins nothing and says nothing of what the device writes:
//! so to the container every mapped page is dirty, on every question.

use std::fs;
use std::path::Path;

use abi::pci::config::{COMMAND, Command};
use abi::pci::region_index::{BAR0, CONFIG};
use control::{DmaTarget, DmaWrites, Transport};
use dirty::{IovaRange, PageSize};
use host::{Host, HostOptions};
use sys::SharedMemory;

use super::{Checked, Stop};
use crate::{expect, pattern, said, same, wait_for};

/// Where QEMU puts it.
const ADDRESS: &str = "0000:00:04.0";
const DEVICES: &str = "/sys/bus/pci/devices";
const PAGE: u64 = 4096;

/// Registers of BAR 0.
const DMA_FROM: u64 = 0x80;
const DMA_TO: u64 = 0x88;
const DMA_BYTES: u64 = 0x90;
const DMA_COMMAND: u64 = 0x98;
/// The device's own memory, as its DMA knows it.
const BUFFER: u64 = 0x4_0000;
/// [`DMA_COMMAND`]: runs, until it is done.
const START: u32 = 1;
/// [`DMA_COMMAND`]: from the device to memory.
const TO_MEMORY: u32 = 2;
/// [`DMA_COMMAND`]: the other way.
const FROM_MEMORY: u32 = 0;
/// What is copied at a time.
const BYTES: usize = 64;

/// Gives it to vfio-pci.
fn bind() -> Result<(), Stop> {
    let device = Path::new(DEVICES).join(ADDRESS);
    if !device.exists() {
        return Err(Stop::Skip("this kernel has no PCI".to_owned()));
    }
    if device.join("driver").exists() {
        return Ok(());
    }
    let path = device.join("driver_override");
    fs::write(&path, "vfio-pci").map_err(said(path.display()))?;
    let probe = "/sys/bus/pci/drivers_probe";
    fs::write(probe, ADDRESS).map_err(said(probe))?;
    Ok(())
}

/// Has it copy, between memory and its own.
fn copy(device: &Host, from: u64, to: u64, command: u32) -> Result<(), String> {
    let low = |at: u64| u32::try_from(at).map_err(said("the address"));
    for (register, value) in [
        (DMA_FROM, low(from)?),
        (DMA_TO, low(to)?),
        (DMA_BYTES, BYTES as u32),
        (DMA_COMMAND, START | command),
    ] {
        let written = device.region_write(BAR0, register, &value.to_le_bytes());
        written.map_err(said(format!("register {register:#x}")))?;
    }
    wait_for("the copy", || {
        let mut command = [0; 4];
        let read = device.region_read(BAR0, DMA_COMMAND, &mut command);
        read.map_err(said("the command"))?;
        Ok(u32::from_le_bytes(command) & START == 0)
    })
}

/// All bits of a range, and none behind.
fn all_set(words: &[u64], range: IovaRange) -> Result<(), String> {
    let pages = range.length() / PAGE;
    let set: u64 = words.iter().map(|word| u64::from(word.count_ones())).sum();
    expect(format_args!("dirty pages at {:#x}", range.start()), set, pages)?;
    let last = words.last().copied().unwrap_or_default();
    let behind = if pages.is_multiple_of(64) { 0 } else { last >> (pages % 64) };
    expect("bits behind the last page", behind, 0)
}

/// What it writes arrives, and all that is mapped is dirty, each time; an unmap tells the
/// same, and takes the memory from it.
pub(super) fn check_container() -> Checked {
    bind()?;
    let place = ADDRESS.parse().map_err(said("its place"))?;
    let device = Host::open(&place, HostOptions::default()).map_err(said("open"))?;
    let command = (Command::MEMORY | Command::BUS_MASTER).bits();
    let command = device.region_write(CONFIG, COMMAND.into(), &command.to_le_bytes());
    command.map_err(said("its command register"))?;

    let memory = SharedMemory::create("dma", 300 * PAGE).map_err(said("make memory"))?;
    // Two that touch, and one farther away: 100, 7 and 193 pages.
    let mut ranges = Vec::new();
    for (start, first, pages) in [(16, 0, 100), (116, 100, 7), (4096, 107, 193)] {
        let range = IovaRange::new(start * PAGE, pages * PAGE);
        let range = range.map_err(said("the range"))?;
        let offset = first * PAGE;
        let target = DmaTarget::Memory { memory: &memory, offset, writable: true };
        device.dma_map(range, target).map_err(said("MAP_DMA"))?;
        ranges.push(range);
    }
    let log = device.memory_log().map_err(said("its container"))?;
    let mut log = log.ok_or_else(|| "its container does not track".to_owned())?;
    let page = PageSize::FOUR_K;
    log.start(&ranges, page).map_err(said("START"))?;

    // Into the device from the first mapping, and out of it into the third.
    let bytes = pattern(3, BYTES);
    memory.write(5 * PAGE, &bytes).map_err(said("memory"))?;
    copy(&device, (16 + 5) * PAGE, BUFFER, FROM_MEMORY)?;
    let (place, to) = ((107 + 50) * PAGE + 16, (4096 + 50) * PAGE + 16);
    copy(&device, BUFFER, to, TO_MEMORY)?;
    let mut copied = [0; BYTES];
    memory.read(place, &mut copied).map_err(said("memory"))?;
    same("what was copied", &copied, &bytes)?;

    let both = IovaRange::new(16 * PAGE, 107 * PAGE).map_err(said("the range"))?;
    for _ in 0..2 {
        let mut found = Vec::new();
        for range in [both, ranges[2]] {
            log.collect(range, &mut |report| {
                found.push((report.range, report.words.to_vec()));
            })
            .map_err(said("GET_BITMAP"))?;
        }
        let asked: Vec<_> = found.iter().map(|(range, _)| *range).collect();
        if asked != ranges {
            return Err(Stop::Fail(format!(
                "asked for were {asked:x?}, not {ranges:x?}"
            )));
        }
        found.iter().try_for_each(|(range, words)| all_set(words, *range))?;
    }
    for range in &ranges {
        let bits = device
            .dma_unmap_dirty(*range, page, DmaWrites::MayGoOn)
            .map_err(said("UNMAP"))?;
        all_set(&bits, *range)?;
    }
    // It may try: the IOMMU does not let it.
    memory.write(place, &[0; BYTES]).map_err(said("memory"))?;
    copy(&device, BUFFER, to, TO_MEMORY)?;
    memory.read(place, &mut copied).map_err(said("memory"))?;
    same("memory that was taken from it", &copied, &[0; BYTES])?;
    log.stop().map_err(said("STOP"))?;
    Ok("300 pages in 3 mappings, all dirty twice, and once more by the unmap".to_owned())
}
