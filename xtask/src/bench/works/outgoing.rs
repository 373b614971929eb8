//! The source: one migration as a VMM would run it, or bare bytes, to a destination in
//! another process.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use engine::Machine;
use engine::drive::{Outgoing, Sent};
use engine::migration::{Options, Report};

use super::destination::{ARRIVED, PATIENCE};
use super::side::Side;
use super::text;

/// The other host.
pub(super) struct There {
    /// The process, to be told what to do.
    pub(super) side: Side,
    to: link::Uri,
    port: u16,
}

impl There {
    /// Starts it, with that many bytes of guest memory, and devices behind `sockets`.
    pub(super) fn start<'a>(
        memory: u64,
        sockets: impl IntoIterator<Item = &'a Path>,
    ) -> Result<There, String> {
        let sockets = sockets.into_iter().map(|path| path.to_string_lossy().into_owned());
        let arguments: Vec<_> = [memory.to_string()].into_iter().chain(sockets).collect();
        let side = Side::start("destination", &arguments)?;
        let (to, port) = side.ready.split_once(' ').ok_or("no place to migrate to")?;
        let (to, port) = (to.parse().map_err(text)?, port.parse().map_err(text)?);
        Ok(There { side, to, port })
    }

    /// Migrates over that many data connections, and gives the report. Whatever the
    /// downtime is, the guest is stopped as soon as it can be.
    pub(super) fn migrate(
        &self,
        machine: Machine,
        channels: u16,
    ) -> Result<Report, String> {
        let (control, dialer) = link::dial(&self.to, PATIENCE).map_err(text)?;
        let store = store::Memory::new().map_err(text)?;
        let attempt = store::new_attempt().map_err(text)?;
        let options = Options {
            downtime_limit: Duration::from_secs(60),
            patience: PATIENCE,
            channels,
            ..Options::default()
        };
        let (control, dialer) = (Box::new(control), Box::new(dialer));
        let outgoing =
            Outgoing::new(machine, control, dialer, Box::new(store), attempt, options);
        let Sent { report, result, .. } = outgoing.run();
        result.map_err(text)?;
        Ok(report)
    }

    /// A connection for bare bytes.
    pub(super) fn bare(&self) -> Result<Bytes, String> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).map_err(text)?;
        stream.set_nodelay(true).map_err(text)?;
        Ok(Bytes(stream))
    }
}

/// Bare bytes on their way.
pub(super) struct Bytes(TcpStream);

impl Bytes {
    /// Sends some.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.0.write_all(bytes).map_err(text)
    }

    /// Waits until the other side has said that it has all of them.
    pub(super) fn arrived(&mut self) -> Result<(), String> {
        let mut answer = [0];
        self.0.read_exact(&mut answer).map_err(text)?;
        if answer == [ARRIVED] {
            return Ok(());
        }
        Err(format!("the other side answered {answer:?}"))
    }
}
