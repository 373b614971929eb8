//! Migration data over a descriptor of the kernel's.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use abi::errno::Errno;
use abi::v2::PrecopyInfo;
use control::{DataSession, TransportError};

use crate::device::{Descriptors, Host, refused};
use crate::transport::again;
use crate::workers::let_go;

const READ: &str = "read migration data";
const WRITE: &str = "write migration data";

/// The most bytes of one read or write.
const MOST: usize = 16 << 20;

/// A data session. It has one owner and goes before its device: some kernels do not
/// survive two writers, nor a descriptor that outlives its device.
#[derive(Debug)]
pub(crate) struct Session {
    /// `None` only while it is dropped.
    data: Option<Arc<Data>>,
    host: Host,
    /// What goes to and fro between this side and the threads.
    buffer: Vec<u8>,
}

/// The descriptor, and what keeps the device open behind it: dropped in this order.
#[derive(Debug)]
pub(crate) struct Data {
    pub(crate) fd: OwnedFd,
    pub(crate) device: Arc<Descriptors>,
}

impl Session {
    pub(crate) fn new(host: Host, data: Data) -> Session {
        Session { data: Some(Arc::new(data)), host, buffer: Vec::new() }
    }

    fn data(&self) -> &Arc<Data> {
        self.data.as_ref().expect("it is there until the session goes")
    }

    fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        job: impl FnOnce(&Data) -> T + Send + 'static,
    ) -> Result<T, TransportError> {
        let data = Arc::clone(self.data());
        let inner = &self.host.inner;
        inner.workers.run(operation, inner.deadlines.slow, move || job(&data))
    }

    /// Makes a call again for as long as signals interrupt it.
    fn transfer(
        &mut self,
        operation: &'static str,
        mut call: impl FnMut(&Data, &mut Vec<u8>) -> io::Result<usize> + Send + 'static,
    ) -> Result<usize, TransportError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let lost = self.host.lost();
        let (answer, buffer) = self.run(operation, move |data| {
            loop {
                match call(data, &mut buffer) {
                    Err(error) if again(&error) && !lost.is_lost() => {}
                    answer => return (answer, buffer),
                }
            }
        })?;
        self.buffer = buffer;
        answer.map_err(|error| refused(operation, &error))
    }
}

impl DataSession for Session {
    fn read(&mut self, into: &mut [u8]) -> Result<usize, TransportError> {
        let room = into.len().min(MOST);
        self.buffer.resize(room, 0);
        let read = self.transfer(READ, |data, buffer| {
            data.device.kernel.read(data.fd.as_fd(), buffer)
        })?;
        match (into.get_mut(..read), self.buffer.get(..read)) {
            (Some(into), Some(bytes)) => into.copy_from_slice(bytes),
            _ => {
                let what = format!("{read} bytes where {room} were asked for");
                return Err(TransportError::Broken { operation: READ, what });
            }
        }
        Ok(read)
    }

    fn write(&mut self, from: &[u8]) -> Result<usize, TransportError> {
        if from.is_empty() {
            return Err(TransportError::Errno { operation: WRITE, errno: Errno::EINVAL });
        }
        self.buffer.clear();
        self.buffer.extend_from_slice(&from[..from.len().min(MOST)]);
        self.transfer(WRITE, |data, buffer| {
            data.device.kernel.write(data.fd.as_fd(), buffer)
        })
    }

    fn precopy_info(&mut self) -> Result<Option<PrecopyInfo>, TransportError> {
        // Flags of 0, so that a kernel that gives them back says nothing.
        let argsz = size_of::<PrecopyInfo>() as u32;
        self.raw_precopy_info(PrecopyInfo {
            argsz,
            flags: 0,
            initial_bytes: 0,
            dirty_bytes: 0,
        })
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.data().fd.as_fd())
    }

    fn raw_precopy_info(
        &mut self,
        asked: PrecopyInfo,
    ) -> Result<Option<PrecopyInfo>, TransportError> {
        const OPERATION: &str = "ask what pre-copy has left";
        let answer = self.run(OPERATION, move |data| {
            data.device.kernel.precopy_info(data.fd.as_fd(), asked)
        })?;
        answer.map(Some).map_err(|error| refused(OPERATION, &error))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let data = self.data.take();
        if self.host.lost().is_lost() {
            let_go(data);
            return;
        }
        let inner = &self.host.inner;
        let limit = inner.deadlines.slow;
        let closed = inner.workers.run("close migration data", limit, move || drop(data));
        if let Err(error) = closed {
            tracing::warn!(device = inner.name, "{error}");
        }
    }
}
