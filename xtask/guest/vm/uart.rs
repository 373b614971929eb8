//! What is in a port, written and read through its registers, whoever has the port.

use std::fmt::Display;

use control::{DataSession, Direction, Transport};
use host::{Host, HostOptions, Place};
use models::uart::registers as reg;

use abi::v2::DeviceState;

use super::port::Port;
use crate::{expect, said, same};

/// Word length and parity: what a line control register keeps beside its top bit.
const LINE: u8 = 0x1b;
/// Modem control: both outputs, with the automatic flow control that mtty knows.
const MODEM: u8 = reg::MCR_DTR | reg::MCR_RTS | reg::MCR_AFE;

/// Contents that no fresh port has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Contents {
    /// What was written and not read yet, at most 15 bytes: mtty takes 16 for none.
    pub(crate) fifo: Vec<u8>,
    pub(crate) divisor: u16,
    pub(crate) scratch: u8,
}

impl Contents {
    /// Others for every seed.
    pub(crate) fn new(seed: u8) -> Contents {
        let fifo = (0..15).map(|n: u8| n.wrapping_mul(37) ^ seed).collect();
        Contents { fifo, divisor: 0x0180 | u16::from(seed), scratch: seed ^ 0x5a }
    }
}

/// Opens the device of a port as the kernel has it.
pub(crate) fn open(port: &Port) -> Result<Host, String> {
    let place: Place = port.uuid().parse().map_err(said("its place"))?;
    Host::open(&place, HostOptions::default()).map_err(said("open it"))
}

/// One line of a device: the registers in one of its BARs.
#[derive(Clone, Copy)]
pub(crate) struct Line<'d> {
    pub(crate) device: &'d dyn Transport,
    /// The BAR, 0 or 1.
    pub(crate) index: u32,
}

impl Line<'_> {
    pub(crate) fn read(&self, register: u64) -> Result<u8, String> {
        let mut byte = [0];
        self.device
            .region_read(self.index, register, &mut byte)
            .map_err(said(format_args!("read register {register}")))?;
        Ok(byte[0])
    }

    pub(crate) fn write(&self, register: u64, value: u8) -> Result<(), String> {
        self.device
            .region_write(self.index, register, &[value])
            .map_err(said(format_args!("write register {register}")))
    }

    /// Writes contents. The divisor shows until [`Line::take`]: mtty forgets it as soon
    /// as it is hidden and shown again.
    pub(crate) fn put(&self, contents: &Contents) -> Result<(), String> {
        let clear = reg::FCR_CLEAR_RECEIVER | reg::FCR_CLEAR_TRANSMITTER;
        self.write(reg::LCR, LINE)?;
        self.write(reg::FCR, reg::FCR_ENABLE | clear)?;
        self.write(reg::FCR, reg::FCR_ENABLE)?;
        self.write(reg::IER, reg::IER_LINE)?;
        self.write(reg::MCR, MODEM)?;
        self.write(reg::SCR, contents.scratch)?;
        for byte in &contents.fifo {
            self.write(reg::DATA, *byte)?;
        }
        self.show_divisor(contents.divisor)
    }

    /// Hides the divisor: the first register is the FIFO.
    pub(crate) fn show_data(&self) -> Result<(), String> {
        self.write(reg::LCR, LINE)
    }

    /// Shows the divisor in the first two registers, and sets it.
    pub(crate) fn show_divisor(&self, divisor: u16) -> Result<(), String> {
        self.write(reg::LCR, reg::LCR_DLAB | LINE)?;
        let [low, high] = divisor.to_le_bytes();
        self.write(reg::DATA, low)?;
        self.write(reg::IER, high)
    }

    /// Reads them again, which empties the FIFO, and compares.
    pub(crate) fn take(&self, what: impl Display, put: &Contents) -> Result<(), String> {
        let named = |name: &str| format!("{what}, line {}, {name}", self.index);
        expect(named("line control"), self.read(reg::LCR)?, reg::LCR_DLAB | LINE)?;
        let divisor = u16::from_le_bytes([self.read(reg::DATA)?, self.read(reg::IER)?]);
        expect(named("divisor"), divisor, put.divisor)?;
        self.show_data()?;
        expect(named("interrupts enabled"), self.read(reg::IER)?, reg::IER_LINE)?;
        expect(named("modem control"), self.read(reg::MCR)?, MODEM)?;
        expect(named("scratch"), self.read(reg::SCR)?, put.scratch)?;
        let mut fifo = Vec::new();
        // One more than can be in there.
        while fifo.len() <= 16 && self.read(reg::LSR)? & reg::LSR_DATA != 0 {
            fifo.push(self.read(reg::DATA)?);
        }
        same(&named("FIFO"), &fifo, &put.fifo)
    }
}

/// Every line of a device.
pub(crate) fn lines(device: &dyn Transport, ports: u32) -> Vec<Line<'_>> {
    (0..ports).map(|index| Line { device, index }).collect()
}

/// Writes other contents into every line.
pub(crate) fn put(
    device: &dyn Transport,
    ports: u32,
    seed: u8,
) -> Result<Vec<Contents>, String> {
    let mut all = Vec::new();
    for line in lines(device, ports) {
        let contents = Contents::new(seed.wrapping_add(line.index as u8));
        line.put(&contents)?;
        all.push(contents);
    }
    Ok(all)
}

/// Reads and compares them.
pub(crate) fn take(
    what: &str,
    device: &dyn Transport,
    put: &[Contents],
) -> Result<(), String> {
    for (line, contents) in lines(device, put.len() as u32).into_iter().zip(put) {
        line.take(what, contents)?;
    }
    Ok(())
}

/// All the data that a device would migrate; it runs before and after.
pub(crate) fn data(device: &dyn Transport) -> Result<Vec<u8>, String> {
    let session = device
        .set_migration_state(DeviceState::STOP_COPY, Some(Direction::Save))
        .map_err(said("STOP_COPY"))?;
    let data = session.ok_or("no session").map_err(str::to_owned).and_then(drain);
    device.set_migration_state(DeviceState::RUNNING, None).map_err(said("RUNNING"))?;
    data
}

fn drain(mut session: Box<dyn DataSession>) -> Result<Vec<u8>, String> {
    let mut data = Vec::new();
    let mut buffer = [0; 4096];
    // What a port has is less than a thousandth of this.
    while data.len() < 100_000 {
        match session.read(&mut buffer).map_err(said("read its data"))? {
            0 => return Ok(data),
            bytes => data.extend_from_slice(&buffer[..bytes]),
        }
    }
    Err("its data have no end".to_owned())
}
