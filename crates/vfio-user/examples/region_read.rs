//! What a region read of 4 bytes costs, beside a bare ping-pong of 32 bytes.
//!
//! Two processes on one CPU: this one asks, a child of it answers, once as a vfio-user
//! server and once by sending 32 bytes back. The two are measured in turns, and each
//! turn's median counts once.
//!
//! ```text
//! cargo run --release -p vfio-migrate-vfio-user --example region_read [-- TURNS READS]
//! ```
//!
//! Prints one line of JSON: nanoseconds a call, medians over the turns, and their ratio.

use std::error::Error;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use abi::errno::Errno;
use control::Transport;
use device::{
    Bus, Description, Identity, Migratable, Region, Runner, Settle, StateArc, Work,
};
use states::v2::Capabilities;
use sys::socket::Listener;
use vfio_migrate_vfio_user::{Client, ClientOptions, NoDma, Server, ServerOptions, Stop};

/// A device with one register.
struct Register(u32);

impl Migratable for Register {
    fn describe(&self) -> Description {
        Description {
            identity: Identity {
                pci: None,
                model: "register".to_owned(),
                data_version: 1,
            },
            capabilities: Capabilities::STOP_COPY,
            regions: vec![Region {
                index: 0,
                size: 4096,
                writable: true,
                windows: Vec::new(),
            }],
            irqs: Vec::new(),
        }
    }

    fn read(&mut self, _: u32, _: u64, into: &mut [u8]) -> Result<(), Errno> {
        let value = self.0.to_ne_bytes();
        into.iter_mut().zip(value).for_each(|(into, byte)| *into = byte);
        Ok(())
    }

    fn write(&mut self, _: u32, _: u64, _: &[u8], _: &mut dyn Bus) -> Result<(), Errno> {
        Err(Errno::EINVAL)
    }

    fn reset(&mut self) {}

    fn enter(&mut self, _: StateArc, _: &mut dyn Bus) -> Result<Settle, Errno> {
        Ok(Settle::Now)
    }

    fn save(&mut self, _: &mut [u8]) -> Result<usize, Errno> {
        Ok(0)
    }

    fn stop_copy_bytes(&self) -> u64 {
        0
    }

    fn load(&mut self, _: &[u8]) -> Result<(), Errno> {
        Err(Errno::EINVAL)
    }

    fn loaded(&mut self) -> Result<(), Errno> {
        Err(Errno::EINVAL)
    }

    fn work(&mut self, _: &mut dyn Bus, _: Instant) -> Work {
        Work::Idle
    }
}

fn serve(path: &Path) -> Result<(), Box<dyn Error>> {
    let runner = Runner::new(Box::new(Register(0x1234_5678)))?;
    let mut server = Server::new(runner, ServerOptions::default())?;
    server.serve(Listener::bind(path)?, &Stop::new()?)?;
    Ok(())
}

fn echo(path: &Path) -> Result<(), Box<dyn Error>> {
    let (mut socket, _) = UnixListener::bind(path)?.accept()?;
    let mut bytes = [0; 32];
    loop {
        socket.read_exact(&mut bytes)?;
        socket.write_all(&bytes)?;
    }
}

/// A child that answers, ended with the measurement.
struct Answering(Child, PathBuf);

impl Answering {
    fn start(what: &str, folder: &Path) -> Result<Answering, Box<dyn Error>> {
        let path = folder.join(what);
        let child =
            Command::new(std::env::current_exe()?).arg(what).arg(&path).spawn()?;
        let end = Instant::now() + Duration::from_secs(10);
        while !path.exists() && Instant::now() < end {
            std::thread::yield_now();
        }
        Ok(Answering(child, path))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn connect(path: &Path) -> std::io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path) {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                std::thread::yield_now();
            }
            other => return other,
        }
    }
}

fn median(mut of: Vec<u64>) -> u64 {
    of.sort_unstable();
    of[of.len() / 2]
}

/// The median of many calls, in nanoseconds.
fn turn(
    calls: usize,
    mut call: impl FnMut() -> Result<(), Box<dyn Error>>,
) -> Result<u64, Box<dyn Error>> {
    let mut times = Vec::with_capacity(calls);
    for _ in 0..calls {
        let start = Instant::now();
        call()?;
        times.push(start.elapsed().as_nanos() as u64);
    }
    Ok(median(times))
}

fn measure(turns: usize, reads: usize) -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let server = Answering::start("serve", folder.path())?;
    let bare = Answering::start("echo", folder.path())?;
    let client = Client::over(
        connect(&server.1)?.into(),
        ClientOptions::new("bench", Arc::new(NoDma)),
    )?;
    let mut socket = connect(&bare.1)?;
    let mut bytes = [0; 32];
    let mut value = [0; 4];
    let mut both = (Vec::new(), Vec::new());
    for _ in 0..=turns {
        both.0.push(turn(reads, || {
            socket.write_all(&bytes)?;
            Ok(socket.read_exact(&mut bytes)?)
        })?);
        both.1.push(turn(reads, || Ok(client.region_read(0, 0, &mut value)?))?);
    }
    // The first turn warms up.
    let ratios = both.0.iter().zip(&both.1).skip(1);
    let mut ratios: Vec<f64> =
        ratios.map(|(bare, read)| *read as f64 / *bare as f64).collect();
    ratios.sort_by(f64::total_cmp);
    let (bare, read) = (median(both.0.split_off(1)), median(both.1.split_off(1)));
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{{\"region_read_ns\":{read},\"ping_pong_ns\":{bare},\"ratio\":{:.3},\
         \"ratio_least\":{:.3},\"ratio_most\":{:.3}}}",
        ratios[ratios.len() / 2],
        ratios[0],
        ratios[ratios.len() - 1],
    )?;
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    sys::set_affinity(0)?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", path] => serve(Path::new(path)),
        // It ends with its peer.
        ["echo", path] => echo(Path::new(path)).or(Ok(())),
        [] => measure(15, 4000),
        [turns, reads] => measure(turns.parse()?, reads.parse()?),
        _ => Err("region_read [TURNS READS]".into()),
    }
}
