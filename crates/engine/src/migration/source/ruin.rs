//! What happens when something fails: nothing is lost, and the guest goes on here.

use std::time::Duration;

use port::Phase;

use super::{Action, At, DeviceId, Ending, Patience, Ruin, Source};
use crate::devices::{self, Goal};
use crate::migration::error::{Cause, Recovery};

impl Source {
    pub(super) fn before_commit(&self) -> bool {
        !matches!(self.at, At::Committed | At::Tidying | At::RollingBack(_) | At::Ended)
    }

    pub(super) fn fail(&mut self, now: Duration, cause: Cause, out: &mut Vec<Action>) {
        match self.at {
            At::Ended | At::RollingBack(_) => {}
            At::Tidying => {
                // The guest runs over there; a device that is slow to go is only untidy.
                out.push(Action::Note(cause.to_string()));
                self.at = At::Ended;
                out.push(Action::End(self.verdict.clone()));
            }
            At::Committed => {
                self.at = At::Ended;
                out.push(Action::End(Ending::Failed {
                    cause,
                    recovery: Recovery::InDoubt,
                    devices: Vec::new(),
                }));
            }
            _ => self.ruin(now, cause, out),
        }
    }

    pub(super) fn ruin(&mut self, now: Duration, cause: Cause, out: &mut Vec<Action>) {
        if self.undo.talked {
            out.push(Action::SayAbort(cause.clone()));
        }
        // A pause that was asked for takes effect with the stop. Where there is none, it
        // does now; the devices may only stop after the vCPUs.
        let running = !self.undo.vcpus || self.at == At::PausingVcpus;
        let pausing = self.pause_asked && running;
        let devices = Vec::new();
        let cause = Some(cause);
        self.at = At::RollingBack(Box::new(Ruin { cause, devices, pausing }));
        self.enter(Phase::Cleanup, now, out);
        if pausing {
            self.hold(out);
        } else {
            self.roll_back(now, out);
        }
    }

    /// The other side has its copy: the guest goes on here, by the way of a failure.
    pub(super) fn keep(&mut self, now: Duration, stopped: bool, out: &mut Vec<Action>) {
        // Nobody is to wait for a COMMIT.
        out.push(Action::SayAbort(Cause::Kept));
        self.paused |= stopped;
        let (devices, pausing) = (Vec::new(), false);
        self.at = At::RollingBack(Box::new(Ruin { cause: None, devices, pausing }));
        self.enter(Phase::Start, now, out);
        // Nobody on another host has to do anything for this.
        out.push(Action::Patience(Patience::Answer(self.options.patience)));
        self.roll_back(now, out);
    }

    pub(super) fn roll_back(&mut self, now: Duration, out: &mut Vec<Action>) {
        if self.undo.devices {
            let goal = if self.paused { Goal::Stop } else { Goal::Running };
            self.devices(now, devices::Event::Recover(goal), out);
        } else {
            self.recovered(Vec::new(), out);
        }
    }

    /// Stops the vCPUs, where they run.
    pub(super) fn hold(&mut self, out: &mut Vec<Action>) {
        if !std::mem::replace(&mut self.undo.vcpus, true) {
            out.push(Action::PauseVcpus);
        }
    }

    /// The rollback itself got stuck: what does not answer is lost, and the guest stays
    /// paused where the VMM does not answer.
    pub(super) fn give_up(&mut self, now: Duration, out: &mut Vec<Action>) {
        if let At::RollingBack(ruin) = &mut self.at
            && std::mem::take(&mut ruin.pausing)
        {
            // The vCPUs do not answer. The devices go back to where they were.
            self.paused = false;
            self.pause_asked = false;
            out.push(Action::Patience(Patience::Answer(self.options.patience)));
            return self.roll_back(now, out);
        }
        let waiting = self.set.waiting();
        if waiting.is_empty() {
            if let At::RollingBack(ruin) = &self.at {
                let Ruin { cause, devices, .. } = (**ruin).clone();
                self.at = At::Ended;
                // The VMM had something to bring back, or nothing.
                let owed = self.undo.interrupts || (self.undo.vcpus && !self.paused);
                let recovery = match self.recovery(&devices) {
                    _ if owed => Recovery::DeviceLost,
                    recovery => recovery,
                };
                out.push(Action::End(match cause {
                    None if owed => Ending::Failed {
                        cause: Cause::Vmm("the guest was copied and is to go on".into()),
                        recovery,
                        devices,
                    },
                    cause => ending(cause, recovery, devices),
                }));
            }
            return;
        }
        out.push(Action::Patience(Patience::Answer(self.options.patience)));
        for id in waiting {
            let reason = "no answer to the rollback".to_owned();
            self.devices(now, devices::Event::Lost(id, reason), out);
        }
    }

    /// What the caller has once everything is back that comes back.
    pub(super) fn recovery(&self, lost: &[DeviceId]) -> Recovery {
        if !lost.is_empty() {
            Recovery::DeviceLost
        } else if self.undo.tracking || self.undo.devices || self.undo.vcpus {
            Recovery::SourceResumed
        } else {
            Recovery::Retry
        }
    }

    pub(super) fn recovered(&mut self, lost: Vec<DeviceId>, out: &mut Vec<Action>) {
        if !lost.is_empty() {
            // Its guest must not go on with a device that forgot everything.
            self.hold(out);
        }
        let resume = self.undo.vcpus && lost.is_empty() && !self.paused;
        if let At::RollingBack(ruin) = &mut self.at {
            ruin.devices = lost;
        }
        out.push(Action::Undo {
            interrupts: self.undo.interrupts,
            tracking: self.undo.tracking,
            resume,
        });
    }
}

/// How a rollback ended: what was to be kept and came back is kept.
pub(super) fn ending(
    cause: Option<Cause>,
    recovery: Recovery,
    devices: Vec<DeviceId>,
) -> Ending {
    match cause {
        Some(cause) => Ending::Failed { cause, recovery, devices },
        None if devices.is_empty() => Ending::Kept,
        None => {
            let text = "a device did not come back after the copy was made";
            Ending::Failed { cause: Cause::Device(text.into()), recovery, devices }
        }
    }
}
