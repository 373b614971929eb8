//! A machine, taken apart among threads and put together again.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use port::{Device, DirtySource, DmaMap, Gate, GuestMemory, Observer, Vcpus, VmmError};

use super::device::Resume;
use super::device::{Answer as DeviceAnswer, Command as DeviceCommand, Driven, Measured};
use super::tracker::chain;
use super::vmm::{Answer as VmmAnswer, Command as VmmCommand, Parts};
use super::worker::Worker;
use crate::devices::{DeviceId, Member};
use crate::machine::{Machine, Slot};
use crate::migration::{Cause, compat};

/// The machine while a migration runs: a thread for each device, one for the VMM's
/// part, and what no thread needs.
pub(super) struct Spread {
    pub(super) devices: Vec<Worker<DeviceCommand, Box<dyn Device>>>,
    pub(super) vmm: Worker<VmmCommand, Parts>,
    pub(super) measured: Vec<Arc<Measured>>,
    pub(super) resumes: Vec<Resume>,
    pub(super) memory: Arc<dyn GuestMemory>,
    pub(super) dma: Arc<dyn DmaMap>,
    pub(super) gate: Option<Arc<dyn Gate>>,
    /// Whether somebody wants to look at the stopped guest.
    pub(super) inspects: bool,
    /// The dirty sources, while nobody else has them.
    pub(super) dirty: Vec<Box<dyn DirtySource>>,
}

impl Spread {
    /// Starts the threads. Where the system gives none, what was handed to the one that
    /// did not start is gone with it.
    pub(super) fn new<E: Send + 'static>(
        machine: Machine,
        members: &[Member],
        events: &Sender<E>,
        observer: &Arc<dyn Observer>,
        from_device: fn(DeviceId, DeviceAnswer) -> E,
        from_vmm: fn(VmmAnswer) -> E,
    ) -> Result<Spread, Cause> {
        let Machine { memory, dma, vcpus, devices, dirty, sections, gate, inspect } =
            machine;
        let mut configs = Vec::new();
        let mut interrupts = Vec::new();
        let mut workers = Vec::new();
        let mut measured = Vec::new();
        let mut resumes = Vec::new();
        for (n, slot) in devices.into_iter().enumerate() {
            configs.push(slot.config);
            interrupts.push(slot.interrupts);
            let (counts, resume) = (Arc::<Measured>::default(), Resume::default());
            measured.push(Arc::clone(&counts));
            resumes.push(Arc::clone(&resume));
            let name = format!("device {}", slot.device.name());
            let driven = Driven {
                id: DeviceId(n),
                identity: compat::identity(&*slot.device),
                device: slot.device,
                observer: Arc::clone(observer),
                measured: counts,
                resume,
                state: members.get(n).and_then(|member| member.state),
                save: None,
                attempts: 0,
            };
            let out = events.clone();
            let worker =
                Worker::start(&name, move |inbox| driven.work(&inbox, &out, from_device));
            workers.push(worker.map_err(|error| no_thread(&error))?);
        }
        let inspects = inspect.is_some();
        let parts = Parts { vcpus, configs, interrupts, sections, inspect };
        let out = events.clone();
        let vmm = Worker::start("vmm", move |inbox| parts.work(&inbox, &out, from_vmm))
            .map_err(|error| no_thread(&error))?;
        Ok(Spread {
            devices: workers,
            vmm,
            measured,
            resumes,
            memory,
            dma,
            gate,
            inspects,
            dirty,
        })
    }

    /// A machine of which the parts are gone with threads that did not start.
    pub(super) fn stuck(memory: Arc<dyn GuestMemory>, dma: Arc<dyn DmaMap>) -> Machine {
        Machine {
            memory,
            dma,
            vcpus: Box::new(Stuck),
            devices: Vec::new(),
            dirty: Vec::new(),
            sections: Vec::new(),
            gate: None,
            inspect: None,
        }
    }

    /// Ends the threads and puts the machine together again. A device whose thread is
    /// stuck is missing; vCPUs whose thread is stuck refuse everything.
    pub(super) fn finish(self, patience: Duration) -> Machine {
        let devices: Vec<_> =
            self.devices.into_iter().map(|worker| worker.finish(patience)).collect();
        let mut machine = Machine {
            dirty: self.dirty,
            gate: self.gate,
            ..Spread::stuck(self.memory, self.dma)
        };
        if let Some(parts) = self.vmm.finish(patience) {
            machine.vcpus = parts.vcpus;
            machine.sections = parts.sections;
            machine.inspect = parts.inspect;
            let slots = devices.into_iter().zip(parts.configs).zip(parts.interrupts);
            machine.devices = slots
                .filter_map(|((device, config), interrupts)| {
                    Some(Slot { device: device?, config, interrupts })
                })
                .collect();
        }
        machine
    }
}

/// Asks every device for its state.
pub(super) fn members(machine: &mut Machine) -> Result<Vec<Member>, Cause> {
    let ask = |slot: &mut Slot| {
        let state = slot.device.state().map_err(|error| Cause::Device(chain(&error)))?;
        Ok(Member::new(slot.device.identity().capabilities, state))
    };
    machine.devices.iter_mut().map(ask).collect()
}

pub(super) fn no_thread(error: &std::io::Error) -> Cause {
    Cause::Vmm(format!("a thread cannot be started: {error}"))
}

/// Stands in for vCPUs whose thread never came back.
struct Stuck;

impl Vcpus for Stuck {
    fn pause(&mut self) -> Result<(), VmmError> {
        Err(VmmError::new("vCPUs", "pause", "their thread is stuck"))
    }

    fn resume(&mut self) -> Result<(), VmmError> {
        Err(VmmError::new("vCPUs", "resume", "their thread is stuck"))
    }

    fn paused(&self) -> bool {
        true
    }
}
