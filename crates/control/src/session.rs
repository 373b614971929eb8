//! The two kinds of session of a v2 device.

use abi::errno::Errno;
use abi::v2::PrecopyFlags;
use port::{DeviceError, PrecopyInfo, Read, ResumeSession, SaveSession};
use states::v2::State;

use crate::device::Line;
use crate::transport::{DataSession, TransportError};

/// A save session: PRE_COPY, PRE_COPY_P2P and STOP_COPY read from this one.
pub(crate) struct Save {
    // Closed before the device that `line` keeps open: fields drop in this order.
    session: Box<dyn DataSession>,
    line: Line,
    reinit: bool,
}

impl Save {
    pub(crate) fn new(line: Line, session: Box<dyn DataSession>, reinit: bool) -> Save {
        Save { session, line, reinit }
    }
}

impl SaveSession for Save {
    fn read(&mut self, into: &mut [u8]) -> Result<Read, DeviceError> {
        const OPERATION: &str = "read its data";
        if into.is_empty() {
            // The device would say 0, and that would be taken for the end.
            let what = "asked for no bytes".to_owned();
            return Err(self.line.broken(OPERATION, what));
        }
        match self.session.read(into) {
            // mtty, hisi_acc and qat say 0 for the temporary end as well.
            Ok(0) => Ok(Read::End),
            Ok(bytes) if bytes <= into.len() => {
                Ok(Read::Data { bytes, ends_transaction: false })
            }
            Ok(bytes) => {
                let what = format!("{bytes} bytes where {} were asked for", into.len());
                Err(self.line.broken(OPERATION, what))
            }
            Err(TransportError::Errno { errno: Errno::ENOMSG, .. }) => {
                match self.line.state()? {
                    State::PreCopy | State::PreCopyP2p => Ok(Read::End),
                    State::Running => Err(self.line.session_gone(OPERATION)),
                    state => {
                        let what = format!("ENOMSG in {state}, where an end is 0");
                        Err(self.line.broken(OPERATION, what))
                    }
                }
            }
            Err(error) => Err(self.line.session_error(OPERATION, error)),
        }
    }

    fn precopy_info(&mut self) -> Result<Option<PrecopyInfo>, DeviceError> {
        match self.session.precopy_info() {
            Ok(info) => Ok(info.map(|info| {
                let flags = PrecopyFlags::from_bits_retain(info.flags);
                PrecopyInfo {
                    initial_bytes: info.initial_bytes,
                    dirty_bytes: info.dirty_bytes,
                    // Whoever did not opt in gets back what was on the stack.
                    reinit: self.reinit && flags.contains(PrecopyFlags::REINIT),
                }
            })),
            Err(error) if error.errno() == Some(Errno::ENOTTY) => Ok(None),
            Err(error) => {
                Err(self.line.session_error("ask what pre-copy has left", error))
            }
        }
    }
}

/// A resume session.
pub(crate) struct Resume {
    // See `Save`.
    session: Box<dyn DataSession>,
    line: Line,
}

impl Resume {
    pub(crate) fn new(line: Line, session: Box<dyn DataSession>) -> Resume {
        Resume { session, line }
    }
}

impl ResumeSession for Resume {
    fn write(&mut self, data: &[u8], _ends_transaction: bool) -> Result<(), DeviceError> {
        const OPERATION: &str = "write its data";
        let mut left = data;
        while !left.is_empty() {
            let taken = match self.session.write(left) {
                Ok(taken) => taken,
                Err(error) => return Err(self.line.session_error(OPERATION, error)),
            };
            left = match left.get(taken..) {
                Some(rest) if taken > 0 => rest,
                _ => {
                    let what = format!("it took {taken} of {} bytes", left.len());
                    return Err(self.line.broken(OPERATION, what));
                }
            };
        }
        Ok(())
    }
}
