//! The contract finds what is broken: a good model passes, and with any one fault it
//! does not.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests, and what they share")]

use abi::errno::Errno;
use states::v2::{Capabilities, Session, State, session};
use std::time::Instant;
use vfio_migrate_device::{
    Bus, Contract, Description, Digest, Identity, Migratable, PrecopyInfo, Region,
    Settle, StateArc, Work,
};

/// One thing that is wrong with a [`Cell`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    AcceptsTruncated,
    AcceptsCorrupt,
    AcceptsMore,
    ForgetsSegments,
    SavesWhileRunning,
    LoadsWhileRunning,
    SurvivesReset,
    FailsAnArc,
    DmaWhileStopped,
    LosesTheValue,
    PrecopyIsAllThereIs,
    InitialBytesRise,
    NoInitialBytes,
}

const SIZE: usize = 24;

/// A register that is saved as itself and its complement, and a counter of nothing.
struct Cell {
    fault: Fault,
    value: u64,
    out: Option<Vec<u8>>,
    read: usize,
    stopped: bool,
    into: Option<Vec<u8>>,
}

impl Cell {
    fn new(fault: Fault) -> Cell {
        Cell { fault, value: 0, out: None, read: 0, stopped: false, into: None }
    }

    fn image(&self) -> Vec<u8> {
        let mut image = b"CELL0001".to_vec();
        let value = if self.fault == Fault::LosesTheValue { 0 } else { self.value };
        image.extend_from_slice(&value.to_le_bytes());
        image.extend_from_slice(&(!value).to_le_bytes());
        image
    }
}

impl Migratable for Cell {
    fn describe(&self) -> Description {
        Description {
            identity: Identity { pci: None, model: "cell".to_owned(), data_version: 1 },
            capabilities: Capabilities::ALL,
            regions: vec![Region { index: 0, size: 8, writable: true, windows: vec![] }],
            irqs: vec![],
        }
    }
    fn read(&mut self, _: u32, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        let value = self.value.to_le_bytes();
        into.copy_from_slice(&value[offset as usize..][..into.len()]);
        Ok(())
    }
    fn write(
        &mut self,
        _: u32,
        offset: u64,
        data: &[u8],
        _: &mut dyn Bus,
    ) -> Result<(), Errno> {
        let mut value = self.value.to_le_bytes();
        value[offset as usize..][..data.len()].copy_from_slice(data);
        self.value = u64::from_le_bytes(value);
        Ok(())
    }
    fn reset(&mut self) {
        let value = if self.fault == Fault::SurvivesReset { self.value } else { 0 };
        *self = Cell { value, ..Cell::new(self.fault) };
    }
    fn enter(&mut self, arc: StateArc, bus: &mut dyn Bus) -> Result<Settle, Errno> {
        match session(arc.from, arc.to) {
            Session::OpensSave => {
                self.out = Some(Vec::new());
                self.read = 0;
            }
            Session::OpensResume => self.into = Some(Vec::new()),
            Session::EndsSave => self.out = None,
            Session::EndsResume => self.into = None,
            Session::None | Session::KeepsSave => {}
        }
        self.stopped = arc.to == State::StopCopy;
        match self.fault {
            Fault::FailsAnArc if arc.to == State::PreCopyP2p => return Err(Errno::EIO),
            Fault::DmaWhileStopped if arc.from == State::Stop => {
                let _ = bus.write(0.into(), &[1]);
            }
            _ => {}
        }
        Ok(Settle::Now)
    }
    fn save(&mut self, into: &mut [u8]) -> Result<usize, Errno> {
        let image = self.image();
        let out = match &mut self.out {
            Some(out) => out,
            None if self.fault == Fault::SavesWhileRunning => return Ok(0),
            None => return Err(Errno::ENODEV),
        };
        // In pre-copy a header only; then everything.
        if out.is_empty() {
            out.extend_from_slice(b"PRE-COPY");
            if self.fault == Fault::PrecopyIsAllThereIs {
                out.extend_from_slice(&image);
            }
        }
        if self.stopped && out.len() == 8 {
            out.extend_from_slice(&image);
        }
        let len = into.len().min(out.len() - self.read);
        into[..len].copy_from_slice(&out[self.read..][..len]);
        self.read += len;
        Ok(len)
    }
    fn precopy_info(&mut self) -> Result<PrecopyInfo, Errno> {
        let initial_bytes = match self.fault {
            Fault::NoInitialBytes => 0,
            Fault::InitialBytesRise => 8 + self.read as u64,
            Fault::PrecopyIsAllThereIs => (8 + SIZE - self.read) as u64,
            _ => 8_u64.saturating_sub(self.read as u64),
        };
        Ok(PrecopyInfo { initial_bytes, dirty_bytes: 0, reinit: false })
    }
    fn stop_copy_bytes(&self) -> u64 {
        32
    }
    fn load(&mut self, data: &[u8]) -> Result<(), Errno> {
        let into = match &mut self.into {
            Some(into) => into,
            None if self.fault == Fault::LoadsWhileRunning => return Ok(()),
            None => return Err(Errno::ENODEV),
        };
        if self.fault == Fault::ForgetsSegments {
            into.truncate(0);
        }
        if into.len() + data.len() > 8 + SIZE && self.fault != Fault::AcceptsMore {
            return Err(Errno::EINVAL);
        }
        into.extend_from_slice(data);
        Ok(())
    }
    fn loaded(&mut self) -> Result<(), Errno> {
        let into = self.into.as_ref().ok_or(Errno::ENODEV)?;
        if into.len() < 24 && self.fault == Fault::AcceptsTruncated {
            return Ok(());
        }
        let head = into.get(..16).ok_or(Errno::EINVAL)?;
        let value = into.get(16..24).ok_or(Errno::EINVAL)?;
        let twin = into.get(24..32).ok_or(Errno::EINVAL)?;
        let value = u64::from_le_bytes(value.try_into().map_err(|_| Errno::EINVAL)?);
        let twin = u64::from_le_bytes(twin.try_into().map_err(|_| Errno::EINVAL)?);
        let sound = head == b"PRE-COPYCELL0001" && value == !twin;
        if !sound && self.fault != Fault::AcceptsCorrupt {
            return Err(Errno::EINVAL);
        }
        self.value = value;
        Ok(())
    }
    fn work(&mut self, _: &mut dyn Bus, _: Instant) -> Work {
        Work::Idle
    }
    fn digest(&self) -> Option<Digest> {
        let counters = vec![("value".to_owned(), self.value)];
        Some(Digest { chunk_bytes: 1, chunks: vec![], counters })
    }
}

#[test]
fn a_broken_model_is_found_whatever_is_broken() {
    let check = |fault| {
        Contract::new(move || Box::new(Cell::new(fault)))
            .exercise(|runner, round| {
                // In a stopped state the register is out of reach; that is fine here.
                let value = 0x0123_4567_89ab_cdef_u64 + u64::from(round);
                let _ = runner.write_region(0, 0, &value.to_le_bytes());
            })
            .check()
    };
    let report = check(Fault::None).unwrap();
    assert_eq!((report.pairs, report.checks.len(), report.state_bytes), (56, 6, 32));
    for (fault, found) in [
        (Fault::AcceptsTruncated, "truncated"),
        (Fault::AcceptsCorrupt, "corrupt"),
        (Fault::AcceptsMore, "overlong"),
        (Fault::ForgetsSegments, "save and load"),
        (Fault::SavesWhileRunning, "no data"),
        (Fault::LoadsWhileRunning, "no data"),
        (Fault::SurvivesReset, "reset"),
        (Fault::FailsAnArc, "every pair"),
        (Fault::DmaWhileStopped, "every pair"),
        (Fault::LosesTheValue, "save and load"),
        (Fault::PrecopyIsAllThereIs, "pre-copy"),
        (Fault::InitialBytesRise, "pre-copy"),
        (Fault::NoInitialBytes, "pre-copy"),
    ] {
        let violation = check(fault).unwrap_err();
        assert!(violation.check.starts_with(found), "{fault:?}: {violation}");
    }
}

#[test]
fn without_a_checksum_a_model_may_forget_what_it_accepted() {
    let check = |fault| {
        Contract::new(move || Box::new(Cell::new(fault)))
            .without_checksum()
            .exercise(|runner, _| {
                let _ = runner.write_region(0, 0, &[0x5a; 8]);
            })
            .check()
    };
    // One that refuses more than it has to is as good.
    check(Fault::None).unwrap();
    // It takes a complement that is not one, and saves the right one.
    let violation = check(Fault::AcceptsCorrupt).unwrap_err();
    assert_eq!(violation.check, "corrupt state", "{violation}");
    assert!(violation.what.contains("saved as another stream"), "{violation}");
    for (fault, found) in
        [(Fault::AcceptsTruncated, "truncated"), (Fault::AcceptsMore, "overlong")]
    {
        let violation = check(fault).unwrap_err();
        assert!(violation.check.starts_with(found), "{fault:?}: {violation}");
    }
}
