//! The data session of the puppet.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use abi::errno::Errno;
use abi::v2::PrecopyInfo;
use control::{DataSession, TransportError};
use device::Session;
use states::v2::State;

use super::{Fault, Puppet, refused};

/// A session, with a descriptor of the kind that the kernel has.
pub(super) struct Opened {
    pub(super) puppet: Puppet,
    pub(super) session: Session,
    pub(super) writes: bool,
    pub(super) descriptor: OwnedFd,
}

impl Drop for Opened {
    fn drop(&mut self) {
        if self.puppet.fault == Fault::ClosingEnds {
            self.puppet.inner.lock().unwrap().runner.reset();
        }
    }
}

impl DataSession for Opened {
    fn read(&mut self, into: &mut [u8]) -> Result<usize, TransportError> {
        let fault = self.puppet.fault;
        let kernel = self.puppet.kernel;
        let mut inner = self.puppet.call()?;
        let inner = &mut *inner;
        let dead = inner.runner.session() != Some(self.session);
        if self.writes {
            return Err(refused(Errno::EBADF));
        }
        if dead {
            return if fault == Fault::Stale {
                Ok(0)
            } else {
                Err(refused(Errno::ENODEV))
            };
        }
        if into.is_empty() {
            inner.forgiven |= fault == Fault::NothingEnds;
            return Ok(0);
        }
        if fault == Fault::NothingEnds && inner.forgiven {
            return Ok(0);
        }
        let state = inner.runner.state();
        let stopped = state == State::StopCopy;
        match fault {
            Fault::Endless if stopped => return Ok(into.len()),
            Fault::Empty if stopped => return Ok(0),
            Fault::Rewinds if stopped && !inner.again.is_empty() => {
                let read = into.len().min(inner.again.len());
                into[..read].copy_from_slice(&inner.again[..read]);
                inner.again.drain(..read);
                return Ok(read);
            }
            Fault::Overlong if stopped => return Ok(into.len() + 1),
            Fault::LosesByte if inner.crossed => {
                inner.crossed = false;
                let _ =
                    inner.runner.read_data(self.session, &mut [0]).map_err(refused)?;
            }
            Fault::DropsOnRead if into.len() == 7 && stopped => {
                let _ =
                    inner.runner.read_data(self.session, &mut [0]).map_err(refused)?;
            }
            _ => {}
        }
        let read = inner.runner.read_data(self.session, into).map_err(refused)?;
        inner.told.extend_from_slice(&into[..read]);
        if read == 0 && kernel && !stopped && fault != Fault::ZeroEnd {
            return Err(refused(Errno::ENOMSG));
        }
        if read == 0 && stopped && fault == Fault::EndsTwice {
            if inner.crossed {
                return Err(refused(Errno::ENOMSG));
            }
            inner.crossed = true;
        }
        if read > 0 && stopped && fault == Fault::Restless {
            into[read - 1] ^= inner.restless;
        }
        Ok(read)
    }

    fn write(&mut self, from: &[u8]) -> Result<usize, TransportError> {
        let fault = self.puppet.fault;
        let mut inner = self.puppet.call()?;
        let dead = inner.runner.session() != Some(self.session);
        if !self.writes {
            return Err(refused(Errno::EBADF));
        }
        if dead {
            inner.stale_writes += 1;
            let stale = fault == Fault::Stale;
            return if stale { Ok(from.len()) } else { Err(refused(Errno::ENODEV)) };
        }
        inner.writes += 1;
        if fault == Fault::SecondWrite && inner.writes == 2 {
            return Ok(from.len());
        }
        match inner.runner.write_data(self.session, from) {
            Ok(()) => Ok(from.len()),
            Err(_) if matches!(fault, Fault::TakesAll | Fault::Moody) => Ok(from.len()),
            Err(errno) => {
                inner.forgiven = true;
                Err(refused(errno))
            }
        }
    }

    fn precopy_info(&mut self) -> Result<Option<PrecopyInfo>, TransportError> {
        let asked = PrecopyInfo { argsz: 24, flags: 0, initial_bytes: 0, dirty_bytes: 0 };
        self.raw_precopy_info(asked)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.puppet.kernel.then(|| self.descriptor.as_fd())
    }

    fn raw_precopy_info(
        &mut self,
        asked: PrecopyInfo,
    ) -> Result<Option<PrecopyInfo>, TransportError> {
        let fault = self.puppet.fault;
        let mut inner = self.puppet.call()?;
        if self.writes {
            return Err(refused(Errno::ENOTTY));
        }
        if asked.argsz < 24 && fault != Fault::ShortInfo {
            return Err(refused(Errno::EINVAL));
        }
        let info = match inner.runner.precopy_info(self.session) {
            Ok(info) => info,
            Err(_) if fault == Fault::InfoAnywhere => device::PrecopyInfo::default(),
            Err(errno) => return Err(refused(errno)),
        };
        let flags = match fault {
            Fault::AlwaysReinit => 1,
            Fault::EchoesFlags => asked.flags,
            _ if inner.opted_in => 0,
            _ => asked.flags,
        };
        let initial_bytes = match fault {
            Fault::NoInitial => 0,
            Fault::Rises => 100 - info.initial_bytes,
            _ => info.initial_bytes,
        };
        Ok(Some(PrecopyInfo {
            flags,
            initial_bytes,
            dirty_bytes: info.dirty_bytes,
            ..asked
        }))
    }
}
