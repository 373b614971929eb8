//! The VMM's part: vCPUs, config spaces, interrupts, sections. One thread, since their
//! order matters.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use port::{ConfigSpace, ConfigStage, Inspect, Interrupts, Order, Section, Vcpus};
use wire::device::DeviceRecord;
use wire::section::{MAX_SECTION_BYTES, pieces};

use super::lane::Lane;
use super::tracker::chain;
use crate::migration::{Cause, compat};

/// What the VMM's thread does. Each is answered, by name.
pub(super) enum Command {
    /// The data connections are open (source).
    Lanes(Arc<Vec<Lane>>),
    /// Stop the vCPUs.
    PauseVcpus,
    /// Let them run.
    ResumeVcpus,
    /// Save every config space and send it.
    SaveConfig,
    /// Drain every device's interrupts and send the counts.
    DrainInterrupts,
    /// Look at the stopped guest.
    InspectStopped,
    /// Save every section and send it.
    SaveSections,
    /// Undo: drained interrupts back, vCPUs running again.
    Undo { interrupts: bool, resume: bool },
    /// Load a stage of every config space.
    LoadConfig(ConfigStage, Arc<Vec<Option<Vec<u8>>>>),
    /// Bind every device's interrupts.
    Bind,
    /// Deliver pending interrupts.
    Deliver(Arc<Vec<Option<Vec<u64>>>>),
    /// Load the sections of an order: each with its version and bytes.
    LoadSections(Order, Arc<Vec<(u32, Vec<u8>)>>),
    /// Look at the loaded guest.
    InspectLoaded,
    /// Unbind interrupts that were bound; devices are reset after this.
    Unbind,
}

/// What it says.
#[derive(Debug)]
pub(super) enum Answer {
    VcpusPaused,
    VcpusRun,
    ConfigSaved,
    InterruptsDrained,
    Inspected,
    SectionsSaved,
    Undone,
    ConfigLoaded,
    Bound,
    Delivered,
    SectionsLoaded,
    Unbound,
    Failed(Cause),
}

/// The schema of the interrupts record: one little-endian u64 a vector.
pub(super) const PENDING_SCHEMA: u32 = 1;
/// The schema of the config record: the config port's own bytes.
pub(super) const CONFIG_SCHEMA: u32 = 1;

/// The parts of a machine that this thread has meanwhile.
pub(super) struct Parts {
    pub(super) vcpus: Box<dyn Vcpus>,
    pub(super) configs: Vec<Option<Box<dyn ConfigSpace>>>,
    pub(super) interrupts: Vec<Option<Box<dyn Interrupts>>>,
    pub(super) sections: Vec<Box<dyn Section>>,
    pub(super) inspect: Option<Box<dyn Inspect>>,
}

/// What was drained, for the way back.
#[derive(Default)]
struct Drained(Vec<Option<Vec<u64>>>);

impl Parts {
    /// Works until the commands end; gives the parts back.
    pub(super) fn work<E>(
        mut self,
        commands: &Receiver<Command>,
        out: &Sender<E>,
        wrap: impl Fn(Answer) -> E,
    ) -> Parts {
        let mut lanes: Arc<Vec<Lane>> = Arc::new(Vec::new());
        let mut drained = Drained::default();
        for command in commands {
            let result = match command {
                Command::Lanes(open) => {
                    lanes = open;
                    continue;
                }
                Command::PauseVcpus => vmm(self.vcpus.pause(), Answer::VcpusPaused),
                Command::ResumeVcpus => vmm(self.vcpus.resume(), Answer::VcpusRun),
                Command::SaveConfig => self.save_config(&lanes[0]),
                Command::DrainInterrupts => self.drain(&lanes[0], &mut drained),
                Command::InspectStopped => match &mut self.inspect {
                    Some(inspect) => vmm(inspect.stopped(), Answer::Inspected),
                    None => Ok(Answer::Inspected),
                },
                Command::InspectLoaded => match &mut self.inspect {
                    Some(inspect) => vmm(inspect.loaded(), Answer::Inspected),
                    None => Ok(Answer::Inspected),
                },
                Command::SaveSections => self.save_sections(&lanes[0]),
                Command::Undo { interrupts, resume } => {
                    let pending = std::mem::take(&mut drained);
                    self.undo(interrupts.then_some(pending), resume)
                }
                Command::LoadConfig(stage, saved) => self.load_config(stage, &saved),
                Command::Bind => {
                    self.each_interrupt(|one| one.bind()).map(|()| Answer::Bound)
                }
                Command::Deliver(pending) => {
                    self.deliver(&pending).map(|()| Answer::Delivered)
                }
                Command::LoadSections(order, saved) => self.load_sections(order, &saved),
                Command::Unbind => {
                    // Devices are reset next: what would not unbind is gone with that.
                    let unbound = self.each_interrupt(|one| one.unbind());
                    if let Err(cause) = unbound {
                        tracing::warn!(%cause, "interrupts did not unbind");
                    }
                    Ok(Answer::Unbound)
                }
            };
            let _ = out.send(wrap(result.unwrap_or_else(Answer::Failed)));
        }
        self
    }

    fn save_config(&mut self, lane: &Lane) -> Result<Answer, Cause> {
        for (n, config) in self.configs.iter_mut().enumerate() {
            let Some(config) = config else { continue };
            let bytes = config.save().map_err(|error| Cause::Vmm(chain(&error)))?;
            let record =
                DeviceRecord { device: n as u32, schema: CONFIG_SCHEMA, bytes: &bytes };
            lane.config(&record).map_err(|error| Cause::Channel(chain(&error)))?;
        }
        Ok(Answer::ConfigSaved)
    }

    fn drain(&mut self, lane: &Lane, drained: &mut Drained) -> Result<Answer, Cause> {
        drained.0.clear();
        for (n, interrupts) in self.interrupts.iter_mut().enumerate() {
            let Some(interrupts) = interrupts else {
                drained.0.push(None);
                continue;
            };
            let pending =
                interrupts.drain().map_err(|error| Cause::Vmm(chain(&error)))?;
            let bytes: Vec<u8> =
                pending.iter().flat_map(|count| count.to_le_bytes()).collect();
            drained.0.push(Some(pending));
            let record =
                DeviceRecord { device: n as u32, schema: PENDING_SCHEMA, bytes: &bytes };
            lane.interrupts(&record).map_err(|error| Cause::Channel(chain(&error)))?;
        }
        Ok(Answer::InterruptsDrained)
    }

    fn save_sections(&mut self, lane: &Lane) -> Result<Answer, Cause> {
        for (n, section) in self.sections.iter_mut().enumerate() {
            let mut bytes = Vec::new();
            section.save(&mut bytes).map_err(|error| Cause::Vmm(chain(&error)))?;
            if bytes.len() as u64 > MAX_SECTION_BYTES {
                return Err(Cause::Vmm(format!(
                    "section {} is {} bytes long, more than {MAX_SECTION_BYTES}",
                    section.name(),
                    bytes.len()
                )));
            }
            let info = compat::section(n, &**section);
            let sent = lane.section_begin(&info).and_then(|()| {
                pieces(info.section, &bytes)
                    .try_for_each(|piece| lane.section_data(&piece))
            });
            sent.map_err(|error| Cause::Channel(chain(&error)))?;
        }
        Ok(Answer::SectionsSaved)
    }

    fn undo(&mut self, pending: Option<Drained>, resume: bool) -> Result<Answer, Cause> {
        if let Some(pending) = pending {
            self.deliver(&pending.0)?;
        }
        // A pause that failed may have left them running.
        if resume && self.vcpus.paused() {
            self.vcpus.resume().map_err(|error| Cause::Vmm(chain(&error)))?;
        }
        Ok(Answer::Undone)
    }

    fn load_config(
        &mut self,
        stage: ConfigStage,
        saved: &[Option<Vec<u8>>],
    ) -> Result<Answer, Cause> {
        for (n, (config, saved)) in self.configs.iter_mut().zip(saved).enumerate() {
            match (config, saved) {
                (Some(config), Some(saved)) => {
                    let loaded = config.load(saved, stage);
                    loaded.map_err(|error| Cause::Vmm(chain(&error)))?;
                }
                (None, None) => {}
                _ => return Err(one_sided(n, "config space")),
            }
        }
        Ok(Answer::ConfigLoaded)
    }

    fn deliver(&mut self, pending: &[Option<Vec<u64>>]) -> Result<(), Cause> {
        for (n, (lines, pending)) in self.interrupts.iter_mut().zip(pending).enumerate() {
            match (lines, pending) {
                (Some(lines), Some(pending)) => {
                    let delivered = lines.deliver(pending);
                    delivered.map_err(|error| Cause::Vmm(chain(&error)))?;
                }
                (None, None) => {}
                _ => return Err(one_sided(n, "list of pending interrupts")),
            }
        }
        Ok(())
    }

    fn load_sections(
        &mut self,
        order: Order,
        saved: &[(u32, Vec<u8>)],
    ) -> Result<Answer, Cause> {
        for (section, (version, bytes)) in self.sections.iter_mut().zip(saved) {
            if section.order() != order {
                continue;
            }
            let mut rest = bytes.as_slice();
            let loaded = section.load(*version, &mut rest);
            loaded.map_err(|error| Cause::Vmm(chain(&error)))?;
            if !rest.is_empty() {
                return Err(Cause::Vmm(format!(
                    "section {} left {} of its {} bytes unread",
                    section.name(),
                    rest.len(),
                    bytes.len()
                )));
            }
        }
        Ok(Answer::SectionsLoaded)
    }

    fn each_interrupt(
        &mut self,
        mut each: impl FnMut(&mut dyn Interrupts) -> Result<(), port::VmmError>,
    ) -> Result<(), Cause> {
        for interrupts in self.interrupts.iter_mut().flatten() {
            each(&mut **interrupts).map_err(|error| Cause::Vmm(chain(&error)))?;
        }
        Ok(())
    }
}

/// One side has it and the other does not: loading nothing would be a lie.
fn one_sided(device: usize, what: &str) -> Cause {
    Cause::Vmm(format!("only one of the two sides has a {what} for device {device}"))
}

fn vmm<T>(result: Result<T, port::VmmError>, answer: Answer) -> Result<Answer, Cause> {
    result.map(|_| answer).map_err(|error| Cause::Vmm(chain(&error)))
}
