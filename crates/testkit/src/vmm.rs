//! A VMM's own parts: vCPUs, config spaces, interrupts and sections.

use std::sync::{Arc, Mutex};

use port::{ConfigSpace, ConfigStage, Interrupts, Order, Section, Vcpus, VmmError};

use crate::{Injected, Side, locked};

/// vCPUs that run what a test gives them, unless they are paused.
#[derive(Debug)]
pub struct FakeVcpus {
    side: Side,
    inner: VcpusHandle,
}

/// Plays the guest on a [`FakeVcpus`].
#[derive(Clone, Debug)]
pub struct VcpusHandle(Arc<Mutex<Running>>);

#[derive(Debug)]
struct Running {
    paused: bool,
    missed: u64,
}

impl FakeVcpus {
    /// vCPUs that run.
    pub fn running(side: &Side) -> FakeVcpus {
        side.runs("vCPUs", true);
        FakeVcpus::new(side, false)
    }

    /// vCPUs that are paused.
    pub fn paused(side: &Side) -> FakeVcpus {
        FakeVcpus::new(side, true)
    }

    fn new(side: &Side, paused: bool) -> FakeVcpus {
        let inner = VcpusHandle(Arc::new(Mutex::new(Running { paused, missed: 0 })));
        FakeVcpus { side: side.clone(), inner }
    }

    /// What plays the guest.
    pub fn handle(&self) -> VcpusHandle {
        self.inner.clone()
    }
}

impl VcpusHandle {
    /// Runs `code` as guest code, not past a pause; `None` when they are paused.
    pub fn run<T>(&self, code: impl FnOnce() -> T) -> Option<T> {
        let mut running = locked(&self.0);
        if running.paused {
            running.missed += 1;
            return None;
        }
        Some(code())
    }

    /// Whether they are paused.
    pub fn paused(&self) -> bool {
        locked(&self.0).paused
    }

    /// How often code did not run because they were paused.
    pub fn missed(&self) -> u64 {
        locked(&self.0).missed
    }
}

impl Vcpus for FakeVcpus {
    fn pause(&mut self) -> Result<(), VmmError> {
        self.side.note("vCPUs", "pause");
        locked(&self.inner.0).paused = true;
        self.side.runs("vCPUs", false);
        Ok(())
    }

    fn resume(&mut self) -> Result<(), VmmError> {
        self.side.note("vCPUs", "resume");
        self.side.runs("vCPUs", true);
        locked(&self.inner.0).paused = false;
        Ok(())
    }

    fn paused(&self) -> bool {
        self.inner.paused()
    }
}

/// A config space of some bytes.
#[derive(Debug)]
pub struct FakeConfig {
    who: String,
    side: Side,
    inner: ConfigHandle,
}

/// Looks at a [`FakeConfig`].
#[derive(Clone, Debug)]
pub struct ConfigHandle(Arc<Mutex<(Vec<u8>, Vec<ConfigStage>)>>);

impl FakeConfig {
    /// The config space of the device `name`, with `bytes` in it.
    pub fn new(side: &Side, name: &str, bytes: Vec<u8>) -> FakeConfig {
        FakeConfig {
            who: format!("config of {name}"),
            side: side.clone(),
            inner: ConfigHandle(Arc::new(Mutex::new((bytes, Vec::new())))),
        }
    }

    /// What looks at it.
    pub fn handle(&self) -> ConfigHandle {
        self.inner.clone()
    }
}

impl ConfigHandle {
    /// What is in it.
    pub fn bytes(&self) -> Vec<u8> {
        locked(&self.0).0.clone()
    }

    /// The stages that were loaded, in order.
    pub fn loaded(&self) -> Vec<ConfigStage> {
        locked(&self.0).1.clone()
    }
}

impl ConfigSpace for FakeConfig {
    fn save(&mut self) -> Result<Vec<u8>, VmmError> {
        self.side.note(&self.who, "save");
        Ok(self.inner.bytes())
    }

    fn load(&mut self, saved: &[u8], stage: ConfigStage) -> Result<(), VmmError> {
        let stage_name = match stage {
            ConfigStage::Resuming => "load",
            ConfigStage::Power => "load power",
        };
        self.side.note(&self.who, stage_name);
        let (bytes, stages) = &mut *locked(&self.inner.0);
        if saved.len() != bytes.len() {
            let why = Injected::because("another size");
            return Err(VmmError::new(self.who.clone(), stage_name, why));
        }
        bytes.copy_from_slice(saved);
        stages.push(stage);
        Ok(())
    }
}

/// Interrupts of some vectors.
#[derive(Debug)]
pub struct FakeInterrupts {
    who: String,
    side: Side,
    inner: InterruptsHandle,
}

/// Raises and handles interrupts of a [`FakeInterrupts`].
#[derive(Clone, Debug)]
pub struct InterruptsHandle(Arc<Mutex<Vectors>>);

#[derive(Debug)]
struct Vectors {
    pending: Vec<u64>,
    bound: bool,
}

impl FakeInterrupts {
    /// The interrupts of the device `name`: `vectors` of them, bound.
    pub fn new(side: &Side, name: &str, vectors: usize) -> FakeInterrupts {
        let inner = Vectors { pending: vec![0; vectors], bound: true };
        FakeInterrupts {
            who: format!("interrupts of {name}"),
            side: side.clone(),
            inner: InterruptsHandle(Arc::new(Mutex::new(inner))),
        }
    }

    /// The same interrupts, not bound.
    #[must_use]
    pub fn unbound(self) -> FakeInterrupts {
        locked(&self.inner.0).bound = false;
        self
    }

    /// What raises and handles them.
    pub fn handle(&self) -> InterruptsHandle {
        self.inner.clone()
    }
}

impl InterruptsHandle {
    /// The device raises a vector; lost where it is not bound.
    pub fn raise(&self, vector: usize) -> bool {
        let inner = &mut *locked(&self.0);
        match inner.pending.get_mut(vector).filter(|_| inner.bound) {
            Some(count) => {
                *count += 1;
                true
            }
            None => false,
        }
    }

    /// What is in front of the guest, one count a vector.
    pub fn pending(&self) -> Vec<u64> {
        locked(&self.0).pending.clone()
    }

    /// Whether they are bound.
    pub fn bound(&self) -> bool {
        locked(&self.0).bound
    }
}

impl Interrupts for FakeInterrupts {
    fn bind(&mut self) -> Result<(), VmmError> {
        self.side.note(&self.who, "bind");
        locked(&self.inner.0).bound = true;
        Ok(())
    }

    fn unbind(&mut self) -> Result<(), VmmError> {
        self.side.note(&self.who, "unbind");
        locked(&self.inner.0).bound = false;
        Ok(())
    }

    fn drain(&mut self) -> Result<Vec<u64>, VmmError> {
        self.side.note(&self.who, "drain");
        let pending = &mut locked(&self.inner.0).pending;
        let drained = pending.clone();
        pending.fill(0);
        Ok(drained)
    }

    fn deliver(&mut self, pending: &[u64]) -> Result<(), VmmError> {
        self.side.note(&self.who, "deliver");
        let own = &mut locked(&self.inner.0).pending;
        if pending.len() > own.len() {
            let why = Injected::because("more vectors than there are");
            return Err(VmmError::new(self.who.clone(), "deliver", why));
        }
        for (own, more) in own.iter_mut().zip(pending) {
            *own = own.saturating_add(*more);
        }
        Ok(())
    }
}

/// A section of some bytes.
#[derive(Debug)]
pub struct FakeSection {
    name: String,
    version: u32,
    order: Order,
    side: Side,
    inner: SectionHandle,
}

/// Looks at a [`FakeSection`].
#[derive(Clone, Debug, Default)]
pub struct SectionHandle(Arc<Mutex<Vec<u8>>>);

impl FakeSection {
    /// The most bytes that one takes.
    pub const MOST: u64 = 1 << 24;

    /// The section `name`, version 1, with `bytes` in it.
    pub fn new(side: &Side, name: &str, order: Order, bytes: Vec<u8>) -> FakeSection {
        FakeSection {
            name: name.to_owned(),
            version: 1,
            order,
            side: side.clone(),
            inner: SectionHandle(Arc::new(Mutex::new(bytes))),
        }
    }

    /// The same section with another version.
    #[must_use]
    pub fn with_version(self, version: u32) -> FakeSection {
        FakeSection { version, ..self }
    }

    /// What looks at it.
    pub fn handle(&self) -> SectionHandle {
        self.inner.clone()
    }
}

impl SectionHandle {
    /// What is in it.
    pub fn bytes(&self) -> Vec<u8> {
        locked(&self.0).clone()
    }

    /// Changes what is in it.
    pub fn set(&self, bytes: Vec<u8>) {
        *locked(&self.0) = bytes;
    }
}

impl Section for FakeSection {
    fn name(&self) -> &str {
        &self.name
    }

    fn version(&self) -> u32 {
        self.version
    }

    fn order(&self) -> Order {
        self.order
    }

    fn save(&mut self, into: &mut dyn std::io::Write) -> Result<(), VmmError> {
        self.side.note(&self.name, "save");
        let written = into.write_all(&self.inner.bytes());
        written.map_err(|error| VmmError::new(self.name.clone(), "save", error))
    }

    fn load(
        &mut self,
        version: u32,
        from: &mut dyn std::io::Read,
    ) -> Result<(), VmmError> {
        self.side.note(&self.name, "load");
        if version != self.version {
            let why = Injected::because("a version that it does not know");
            return Err(VmmError::new(self.name.clone(), "load", why));
        }
        let mut bytes = Vec::new();
        let read = std::io::Read::read_to_end(
            &mut std::io::Read::take(from, FakeSection::MOST),
            &mut bytes,
        );
        read.map_err(|error| VmmError::new(self.name.clone(), "load", error))?;
        self.inner.set(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_guest_code_runs_past_a_pause() {
        let side = Side::alone("source");
        let mut vcpus = FakeVcpus::running(&side);
        let guest = vcpus.handle();
        assert_eq!(guest.run(|| 1), Some(1));
        vcpus.pause().unwrap();
        assert_eq!(guest.run(|| 1), None);
        assert_eq!(guest.missed(), 1);
        assert!(side.witness().running().is_empty());
        vcpus.resume().unwrap();
        assert_eq!(side.witness().running(), ["source"]);
    }

    #[test]
    fn drained_counts_are_delivered_once() {
        let side = Side::alone("source");
        let mut interrupts = FakeInterrupts::new(&side, "fake0", 2);
        let device = interrupts.handle();
        assert!(device.raise(1) && device.raise(1) && !device.raise(2));
        let drained = interrupts.drain().unwrap();
        assert_eq!((drained.as_slice(), device.pending()), (&[0, 2][..], vec![0, 0]));
        interrupts.deliver(&drained).unwrap();
        assert_eq!(device.pending(), [0, 2]);
        assert!(interrupts.deliver(&[0; 3]).is_err());
    }
}
