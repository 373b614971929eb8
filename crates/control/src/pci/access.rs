//! What the guest reads and writes.

use abi::pci::capability::{CapabilityId, msi, msix};
use abi::pci::{config, region_index};

use super::reset::Slept;
use super::seen::{capability_of, msi_mask};
use super::shadow::register_of;
use super::state::{State, Table};
use super::unfit::{FunctionError, Unfit};
use super::view::InterruptMode;
use super::{Function, Inner};
use crate::transport::RegionWrite;

const CONFIG: &str = "config space";

impl Function {
    /// The guest reads config space: 1, 2 or 4 bytes, aligned to that, or 8 bytes of a
    /// 64-bit BAR. What the device has none of reads as zero.
    ///
    /// # Errors
    /// For another access, and when the device does not answer.
    pub fn config_read(&self, at: u16, into: &mut [u8]) -> Result<(), FunctionError> {
        match self.inner.config_read(at, into) {
            Ok(Slept::AsBefore) => Ok(()),
            Ok(Slept::Changed) => {
                self.inner.notify();
                Ok(())
            }
            Err(unfit) => Err(self.error("read config space", unfit)),
        }
    }

    /// The guest writes config space, by the accesses of [`Function::config_read`]. It may
    /// size BARs, place them and have them decode, turn interrupts on and off, choose
    /// another kind of them, mask vectors of MSI, put the function to sleep, and reset it.
    /// It may not choose another size of a BAR, nor make virtual functions: such a write
    /// goes nowhere.
    ///
    /// # Errors
    /// For another access, and when the device does not take it. Where it does not serve
    /// the interrupts that the write turns on, nothing is written. Interrupts may be
    /// unbound then: [`port::Interrupts::bind`] binds them as they should be.
    pub fn config_write(&self, at: u16, from: &[u8]) -> Result<(), FunctionError> {
        let done = self.inner.config_write(at, from);
        self.inner.notify();
        done.map_err(|unfit| self.error("write config space", unfit))
    }

    /// The guest reads a BAR, or the ROM: the table of MSI-X and its pending bits are
    /// answered here, everything else by the device.
    ///
    /// # Errors
    /// For an access that reaches into the table without being of 4 or 8 bytes and aligned;
    /// otherwise whatever the device answers.
    pub fn bar_read(
        &self,
        bar: u8,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), FunctionError> {
        let read = self.inner.bar_read(bar, offset, into);
        read.map_err(|unfit| self.error("read a BAR", unfit))
    }

    /// The guest writes a BAR. Unmasking a vector of MSI-X whose pending bit is set makes
    /// one interrupt deliverable.
    ///
    /// # Errors
    /// As [`Function::bar_read`].
    pub fn bar_write(
        &self,
        bar: u8,
        offset: u64,
        from: &[u8],
    ) -> Result<(), FunctionError> {
        self.bar_write_many(bar, &[(offset, from)])
    }

    /// The guest writes a BAR several times, in order, in as few calls as the transport
    /// needs.
    ///
    /// # Errors
    /// As [`Function::bar_read`]. Any number of the writes may be done then, from the first
    /// on.
    pub fn bar_write_many(
        &self,
        bar: u8,
        writes: &[(u64, &[u8])],
    ) -> Result<(), FunctionError> {
        let written = self.inner.bar_write(bar, writes);
        written.map_err(|unfit| self.error("write a BAR", unfit))
    }
}

impl Inner {
    fn config_read(&self, at: u16, into: &mut [u8]) -> Result<Slept, Unfit> {
        let mut state = self.state();
        self.check_config(&state, at, into.len())?;
        if !state.shadow.answers(at, into.len()) {
            self.config_from_device(at, into)?;
        }
        state.shadow.overlay(at, into);
        if let Some(pending) = self.msi_pending()
            && (pending..pending + 4).contains(&at)
        {
            state.sort(&self.layout).map_err(Unfit::Event)?;
            let bits = state.pending_msi().to_le_bytes();
            let bits = &bits[usize::from(at - pending)..];
            // A device that knows the masks itself holds some back, and says so.
            into.iter_mut().zip(bits).for_each(|(byte, bits)| *byte |= *bits);
        }
        // One that takes its time to wake up is awake when its guest hears so.
        self.follow_power(&mut state, at, into.len())
    }

    /// What the device answers: zero where it has nothing.
    pub(super) fn config_from_device(
        &self,
        at: u16,
        into: &mut [u8],
    ) -> Result<(), Unfit> {
        into.fill(0);
        let there = self.fixed.readable.saturating_sub(usize::from(at)).min(into.len());
        if there != 0 {
            let into = &mut into[..there];
            self.transport.region_read(region_index::CONFIG, u64::from(at), into)?;
        }
        Ok(())
    }

    pub(super) fn config_to_device(&self, at: u16, from: &[u8]) -> Result<(), Unfit> {
        if usize::from(at) + from.len() > self.fixed.readable {
            return Ok(());
        }
        Ok(self.transport.region_write(region_index::CONFIG, u64::from(at), from)?)
    }

    fn config_write(&self, at: u16, from: &[u8]) -> Result<(), Unfit> {
        let mut state = self.state();
        self.check_config(&state, at, from.len())?;
        if let Some((low, high)) = from.split_at_checked(4)
            && !high.is_empty()
        {
            self.write_register(&mut state, at, low)?;
            return self.write_register(&mut state, at + 4, high);
        }
        self.write_register(&mut state, at, from)
    }

    fn write_register(
        &self,
        state: &mut State,
        at: u16,
        from: &[u8],
    ) -> Result<(), Unfit> {
        if state.shadow.is_closed(at) {
            return Ok(());
        }
        if self.resets(at, from) {
            self.config_to_device(at, from)?;
            return self.renew(state);
        }
        // Whatever was signalled until now came under the masks of until now.
        let interrupts = self.touches_interrupts(at, from.len());
        if interrupts {
            state.sort(&self.layout).map_err(Unfit::Event)?;
        }
        let before = state.binding(&self.layout);
        let mut was = [0; 4];
        let was = &mut was[..from.len()];
        state.shadow.overlay(at, was);
        state.shadow.write(at, from);
        let after = state.binding(&self.layout);
        // Somebody listens before the device may send messages in another way, and until
        // it no longer does. A line whose level is up is heard when it is bound.
        let messages = matches!(after.mode, InterruptMode::Msi | InterruptMode::Msix);
        let more = messages && after != before;
        if more && let Err(why) = self.connect(state) {
            // The device was not told: it speaks as before, and is heard as before.
            state.shadow.write(at, was);
            if let Err(again) = self.connect(state) {
                tracing::warn!(device = self.transport.name(), %again, "nothing is heard");
            }
            return Err(why);
        }
        if interrupts {
            state.release(&self.layout);
        }
        let mut told = [0; 4];
        let told = &mut told[..from.len()];
        told.copy_from_slice(from);
        state.shadow.told(at, told);
        self.config_to_device(at, told)?;
        if interrupts {
            self.connect(state)?;
            let off = state.line_is_off();
            state.line.sort(off).map_err(Unfit::Event)?;
        }
        self.follow_power(state, at, from.len())?;
        Ok(())
    }

    /// Whether a write there may change what is masked, or what kind of interrupts is on.
    fn touches_interrupts(&self, at: u16, length: usize) -> bool {
        let find = |id| capability_of(&self.layout, id);
        overlaps(at, length, config::COMMAND, 2)
            || find(CapabilityId::MSI).is_some_and(|msi| {
                // Address and data too: what was sent went where they said.
                overlaps(at, length, msi + msi::CONTROL, 24)
            })
            || find(CapabilityId::MSIX)
                .is_some_and(|msix| overlaps(at, length, msix + msix::CONTROL, 2))
    }

    fn msi_pending(&self) -> Option<u16> {
        let kind = self.layout.msi.filter(|kind| kind.maskable)?;
        let at = capability_of(&self.layout, CapabilityId::MSI)?;
        Some(at + msi_mask(&kind) + 4)
    }

    fn check_config(&self, state: &State, at: u16, length: usize) -> Result<(), Unfit> {
        let start = usize::from(at);
        let fits = match length {
            1 | 2 | 4 => {
                start.is_multiple_of(length) && start + length <= state.shadow.len()
            }
            8 => self
                .layout
                .bars
                .iter()
                .any(|bar| bar.kind.is_wide() && register_of(bar.number) == at),
            _ => false,
        };
        if fits {
            Ok(())
        } else {
            Err(Unfit::Access { what: CONFIG, at: at.into(), length })
        }
    }

    fn bar_read(&self, bar: u8, offset: u64, into: &mut [u8]) -> Result<(), Unfit> {
        let index = self.check_bar(bar)?;
        match self.table(bar, offset, into.len())? {
            None => Ok(self.transport.region_read(index, offset, into)?),
            Some(table) => self.read_table(table, into),
        }
    }

    fn read_table(&self, table: Table, into: &mut [u8]) -> Result<(), Unfit> {
        let mut state = self.state();
        match table {
            Table::Entries(at) => {
                for (n, register) in into.chunks_mut(4).enumerate() {
                    let number = at / 4 + n as u64;
                    let entry = state.entries.get((number / 4) as usize);
                    let value = entry.map_or(0, |entry| entry.register(number % 4));
                    register.copy_from_slice(&value.to_le_bytes());
                }
            }
            Table::Pending(at) => {
                state.sort(&self.layout).map_err(Unfit::Event)?;
                let word = state.pending_word((at / 8) as usize).to_le_bytes();
                let half = (at % 8) as usize;
                into.copy_from_slice(&word[half..half + into.len()]);
            }
        }
        Ok(())
    }

    fn bar_write(&self, bar: u8, writes: &[(u64, &[u8])]) -> Result<(), Unfit> {
        let index = self.check_bar(bar)?;
        let mut rest = writes;
        while let Some(((offset, data), after)) = rest.split_first() {
            if let Some(table) = self.table(bar, *offset, data.len())? {
                self.write_table(table, data)?;
                rest = after;
                continue;
            }
            // All that come until the table is reached again, if it is.
            let mut own = vec![RegionWrite { index, offset: *offset, data }];
            rest = after;
            while let Some(((offset, data), after)) = rest.split_first()
                && self.table(bar, *offset, data.len())?.is_none()
            {
                own.push(RegionWrite { index, offset: *offset, data });
                rest = after;
            }
            match own.as_slice() {
                [one] => self.transport.region_write(index, one.offset, one.data)?,
                many => self.transport.region_write_many(many)?,
            }
        }
        Ok(())
    }

    fn write_table(&self, table: Table, data: &[u8]) -> Result<(), Unfit> {
        // Pending bits are not the guest's to write.
        let Table::Entries(at) = table else { return Ok(()) };
        let mut state = self.state();
        state.sort(&self.layout).map_err(Unfit::Event)?;
        for (n, value) in data.chunks_exact(4).enumerate() {
            let number = at / 4 + n as u64;
            let Some(entry) = state.entries.get_mut((number / 4) as usize) else { break };
            let value = [value[0], value[1], value[2], value[3]];
            entry.set_register(number % 4, u32::from_le_bytes(value));
        }
        state.release(&self.layout);
        Ok(())
    }

    /// The region of a BAR that is there.
    fn check_bar(&self, bar: u8) -> Result<u32, Unfit> {
        let there = self.layout.bars.iter().any(|one| one.number == bar);
        // BARs and the ROM have the numbers of their regions.
        if there { Ok(u32::from(bar)) } else { Err(Unfit::NoBar(bar)) }
    }

    /// The part of the tables that an access is for; `None` for one that is the device's.
    fn table(&self, bar: u8, offset: u64, length: usize) -> Result<Option<Table>, Unfit> {
        let Some(msix) = &self.layout.msix else { return Ok(None) };
        let wrong = || Unfit::Access { what: "the table of MSI-X", at: offset, length };
        let last = offset.checked_add((length as u64).max(1) - 1).ok_or_else(wrong)?;
        let first = Table::at(msix, bar, offset);
        let end = Table::at(msix, bar, last);
        match (first, end) {
            (None, None) => Ok(None),
            (Some(table), Some(_))
                if matches!(length, 4 | 8) && offset.is_multiple_of(length as u64) =>
            {
                Ok(Some(table))
            }
            _ => Err(wrong()),
        }
    }
}

pub(super) fn overlaps(at: u16, length: usize, start: u16, size: usize) -> bool {
    let (at, start) = (usize::from(at), usize::from(start));
    at < start + size && start < at + length
}
