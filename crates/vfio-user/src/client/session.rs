//! Migration data over messages.

use std::sync::atomic::Ordering;

use abi::errno::Errno;
use abi::feature::Feature;
use abi::v2::PrecopyInfo;
use abi::vfio_user::{Command, MigData, MigratePrecopyInfo};
use control::{DataSession, Direction, Transport, TransportError};
use zerocopy::FromBytes;

use super::Client;
use super::line::{ECHO, Sink};
use crate::codec::Request;

const FIXED: usize = size_of::<MigData>();
const READ: &str = "read migration data";
const WRITE: &str = "write migration data";

/// A data session: there is no descriptor over vfio-user, so it is the connection and a
/// number, and dies when a later change of state or a reset ends it.
#[derive(Debug)]
pub(super) struct Session {
    client: Client,
    number: u64,
    direction: Direction,
}

impl Session {
    pub(super) fn new(client: Client, direction: Direction) -> Session {
        let number = client.start_session();
        Session { client, number, direction }
    }

    fn check(
        &self,
        operation: &'static str,
        direction: Direction,
    ) -> Result<(), TransportError> {
        let errno = if self.client.inner.sessions.load(Ordering::SeqCst) != self.number {
            Errno::ENODEV
        } else if self.direction != direction {
            Errno::EBADF
        } else {
            return Ok(());
        };
        Err(TransportError::Errno { operation, errno })
    }
}

impl Client {
    /// `MIG_DATA_READ`, whatever session there is.
    pub(super) fn read_data(&self, into: &mut [u8]) -> Result<usize, TransportError> {
        let inner = &self.inner;
        let wanted = into.len().min(inner.agreed.max_data);
        let fixed = MigData { argsz: (FIXED + wanted) as u32, size: wanted as u32 };
        let request = Request::MigDataRead(fixed);
        let mut sink = Sink { fixed: FIXED, data: &mut into[..wanted] };
        let deadline = inner.options.call_deadline;
        let answer = inner.line.call(READ, &request, &[], &mut sink, deadline)?;
        match MigData::read_from_bytes(&answer.fixed) {
            // What is behind `size` is padding.
            Ok(reply) if reply.size as usize <= answer.data => Ok(reply.size as usize),
            _ => {
                let command = Command::MIG_DATA_READ;
                Err(self.broken(READ, &format!("{command} shorter than its size")))
            }
        }
    }

    /// `MIG_DATA_WRITE`, whatever session there is.
    pub(super) fn write_data(&self, from: &[u8]) -> Result<usize, TransportError> {
        let inner = &self.inner;
        let piece = &from[..from.len().min(inner.agreed.max_write)];
        let size = piece.len() as u32;
        let fixed = MigData { argsz: FIXED as u32 + size, size };
        let request = Request::MigDataWrite(fixed, piece);
        let mut sink = Sink { fixed: ECHO, data: &mut [] };
        let deadline = inner.options.call_deadline;
        inner.line.call(WRITE, &request, &[], &mut sink, deadline)?;
        Ok(piece.len())
    }
}

impl DataSession for Session {
    fn read(&mut self, into: &mut [u8]) -> Result<usize, TransportError> {
        self.check(READ, Direction::Save)?;
        if into.is_empty() {
            return Ok(0);
        }
        self.client.read_data(into)
    }

    fn write(&mut self, from: &[u8]) -> Result<usize, TransportError> {
        self.check(WRITE, Direction::Resume)?;
        if from.is_empty() {
            return Err(TransportError::Errno { operation: WRITE, errno: Errno::EINVAL });
        }
        self.client.write_data(from)
    }

    fn precopy_info(&mut self) -> Result<Option<PrecopyInfo>, TransportError> {
        const OPERATION: &str = "ask what pre-copy has left";
        self.check(OPERATION, Direction::Save)?;
        if !self.client.inner.agreed.additions {
            return Ok(None);
        }
        let data = self.client.feature_get(
            Feature::VFIO_MIGRATE_PRECOPY_INFO,
            &[],
            size_of::<MigratePrecopyInfo>(),
        )?;
        let info = MigratePrecopyInfo::read_from_bytes(&data)
            .map_err(|_| self.client.broken(OPERATION, "not 24 bytes"))?;
        Ok(Some(PrecopyInfo {
            argsz: size_of::<PrecopyInfo>() as u32,
            flags: info.flags,
            initial_bytes: info.initial_bytes,
            dirty_bytes: info.dirty_bytes,
        }))
    }
}
