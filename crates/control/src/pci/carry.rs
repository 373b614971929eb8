//! A function saved here and put back there: [`port::ConfigSpace`].

use abi::pci::capability::{CapabilityId, msi, msix, pm};
use abi::pci::config::{self, Command};
use abi::pci::extended;
use port::{ConfigSpace, ConfigStage, VmmError};

use super::registers::{Register, Step, carried};
use super::saved::{Saved, Value};
use super::seen::capability_of;
use super::state::State;
use super::unfit::Unfit;
use super::{Function, Inner};

/// The engine's way to what a guest made of a function.
#[derive(Debug)]
pub(super) struct Carried {
    function: Function,
}

impl Carried {
    pub(super) fn new(function: Function) -> Carried {
        Carried { function }
    }

    fn error(&self, operation: &str, why: Unfit) -> VmmError {
        VmmError::new(format!("config space of {}", self.function.name()), operation, why)
    }
}

impl ConfigSpace for Carried {
    fn save(&mut self) -> Result<Vec<u8>, VmmError> {
        let saved = self.function.inner.save();
        saved.map_err(|why| self.error("save", why))
    }

    fn load(&mut self, saved: &[u8], stage: ConfigStage) -> Result<(), VmmError> {
        let inner = &self.function.inner;
        let (loaded, operation) = match stage {
            ConfigStage::Resuming => (inner.load(saved), "load"),
            ConfigStage::Power => (inner.load_power(saved), "load the power state"),
        };
        inner.notify();
        loaded.map_err(|why| self.error(operation, why))
    }
}

impl Inner {
    fn carried(&self) -> Vec<Register> {
        carried(&self.layout, self.fixed.pcie_control_2)
    }

    fn save(&self) -> Result<Vec<u8>, Unfit> {
        let mut state = self.state();
        let mut registers = Vec::new();
        for one in self.carried() {
            let mut bytes = [0; 4];
            let into = &mut bytes[..usize::from(one.width)];
            if !state.shadow.answers(one.at, into.len()) {
                self.config_from_device(one.at, into)?;
            }
            state.shadow.overlay(one.at, into);
            let value = u32::from_le_bytes(bytes) & one.mask;
            registers.push(Value { at: one.at, width: one.width, value });
        }
        state.sort(&self.layout).map_err(Unfit::Event)?;
        // What is the guest's already is drained with what is still to come.
        state.put_back(&self.layout);
        let State { entries, msi, msix, line, .. } = &*state;
        let saved = Saved {
            vendor: self.ids.vendor,
            device: self.ids.device,
            bars: self.layout.bars.clone(),
            msi: self.layout.msi,
            msix: self.layout.msix,
            registers,
            entries: entries.clone(),
            msi_heard: msi.iter().map(|one| one.heard).collect(),
            msix_heard: msix.iter().map(|one| one.heard).collect(),
            line: line.heard,
        };
        saved.encode()
    }

    fn load(&self, saved: &[u8]) -> Result<(), Unfit> {
        let carried = self.carried();
        let saved = Saved::read(saved, &self.ids, &self.layout, &carried)?;
        let mut state = self.state();
        self.wake(&mut state)?;
        // Of an earlier guest, if there was one.
        state.connected = false;
        self.disconnect(&mut state)?;
        self.put(&carried, &saved)?;
        state.put(&saved)?;
        // A record may have pending bits of vectors that nobody will unmask.
        state.release(&self.layout);
        Ok(())
    }

    /// An earlier guest may have left it asleep.
    fn wake(&self, state: &mut State) -> Result<(), Unfit> {
        let control = self.ask_power(state)?;
        let power = capability_of(&self.layout, CapabilityId::POWER_MANAGEMENT);
        if let (true, Some(at)) = (state.asleep(), power) {
            let at = at + pm::CONTROL;
            if control & pm::CONTROL_NO_SOFT_RESET == 0 {
                // Going to D0 may reset what was just loaded.
                return Err(Unfit::Asleep);
            }
            self.clear(at, pm::CONTROL_STATE_MASK | pm::CONTROL_PME_STATUS)?;
            self.ask_power(state)?;
        }
        if state.asleep() { Err(Unfit::Asleep) } else { Ok(()) }
    }

    /// Everything but the power state, in the order of its steps.
    fn put(&self, carried: &[Register], saved: &Saved) -> Result<(), Unfit> {
        let on = Command::IO | Command::MEMORY | Command::BUS_MASTER;
        self.clear(config::COMMAND, on.bits())?;
        self.messages_off()?;
        let of = |step: Step| {
            let all = carried.iter().zip(&saved.registers);
            all.filter(move |(register, _)| register.step == step)
                .map(|(register, saved)| (register, saved.value & register.mask))
        };
        for (register, value) in of(Step::Address) {
            self.write(register, value)?;
        }
        for (register, value) in of(Step::Address) {
            let held = self.read(register)? & register.mask;
            if held != value {
                return Err(Unfit::Bar { at: register.at, saved: value, held });
            }
        }
        for (register, value) in of(Step::Value) {
            self.put_value(register, value)?;
        }
        for step in [Step::Message, Step::MessageControl, Step::Command] {
            for (register, value) in of(step) {
                self.write(register, value)?;
            }
        }
        Ok(())
    }

    /// A register of the extended space is written only where it differs: a host may keep
    /// one to itself, and then only what the guest reads is at stake.
    fn put_value(&self, register: &Register, value: u32) -> Result<(), Unfit> {
        if register.at < extended::FIRST {
            return self.write(register, value);
        }
        if self.read(register)? & register.mask == value {
            return Ok(());
        }
        self.write(register, value)?;
        let held = self.read(register)? & register.mask;
        if held != value {
            let (device, at) = (self.transport.name(), register.at);
            tracing::warn!(device, at, saved = value, held, "the host keeps a register");
        }
        Ok(())
    }

    pub(super) fn messages_off(&self) -> Result<(), Unfit> {
        let find = |id| capability_of(&self.layout, id);
        if let Some(at) = find(CapabilityId::MSI) {
            self.clear(at + msi::CONTROL, msi::CONTROL_ENABLE)?;
        }
        if let Some(at) = find(CapabilityId::MSIX) {
            self.clear(at + msix::CONTROL, msix::CONTROL_ENABLE)?;
        }
        Ok(())
    }

    /// Clears bits of a control register, and only them; writes nothing where they are.
    fn clear(&self, at: u16, bits: u16) -> Result<(), Unfit> {
        let mut now = [0; 2];
        self.config_from_device(at, &mut now)?;
        let now = u16::from_le_bytes(now);
        if now & bits == 0 {
            return Ok(());
        }
        self.config_to_device(at, &(now & !bits).to_le_bytes())
    }

    fn read(&self, register: &Register) -> Result<u32, Unfit> {
        let mut bytes = [0; 4];
        let into = &mut bytes[..usize::from(register.width)];
        self.config_from_device(register.at, into)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn write(&self, register: &Register, value: u32) -> Result<(), Unfit> {
        let bytes = value.to_le_bytes();
        self.config_to_device(register.at, &bytes[..usize::from(register.width)])
    }

    fn load_power(&self, saved: &[u8]) -> Result<(), Unfit> {
        let carried = self.carried();
        let saved = Saved::read(saved, &self.ids, &self.layout, &carried)?;
        let mut state = self.state();
        let all = carried.iter().zip(&saved.registers);
        for (register, saved) in all.filter(|(one, _)| one.step == Step::Power) {
            let wanted = saved.value & register.mask;
            if self.read(register)? & register.mask != wanted {
                self.write(register, wanted)?;
            }
        }
        self.ask_power(&mut state)?;
        Ok(())
    }
}

impl State {
    /// Takes over what was saved of a function like this one.
    fn put(&mut self, saved: &Saved) -> Result<(), Unfit> {
        self.forget().map_err(Unfit::Event)?;
        for one in &saved.registers {
            let bytes = one.value.to_le_bytes();
            self.shadow.write(one.at, &bytes[..usize::from(one.width)]);
        }
        self.entries.clone_from(&saved.entries);
        let msi = self.msi.iter_mut().zip(&saved.msi_heard);
        let msix = self.msix.iter_mut().zip(&saved.msix_heard);
        msi.chain(msix).for_each(|(vector, heard)| vector.heard = *heard);
        self.line.heard = saved.line;
        Ok(())
    }
}
