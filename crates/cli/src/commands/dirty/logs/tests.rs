//! A device of the RFC of 2018 that keeps no other log, behind our server.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;

use abi::errno::Errno;
use abi::feature::Feature;
use abi::v2::DeviceState;
use clap::Parser;
use control::{
    DataSession, DeviceInfo, Direction, DmaTarget, IrqInfo, MappedArea, RegionInfo,
    Transport, TransportError,
};
use device::Runner;
use dirty::IovaRange;
use models::accel::{Accel, Parameters};
use port::Device;
use states::v2::State;
use sys::EventFd;
use vfio_user::client::{Client, ClientOptions, NoDma};
use vfio_user::server::{Server, ServerOptions, Stop};

use crate::args::{Cli, Command, DataSection, Generation};
use crate::commands::dirty::picture::Heat;
use crate::commands::dirty::{Kind, watch};
use crate::socket;

/// A way to a device, on which nobody has heard of features.
struct Featureless(Client);

type Done<T> = Result<T, TransportError>;

fn no<T>() -> Done<T> {
    Err(TransportError::Errno { operation: "feature", errno: Errno::ENOTTY })
}

impl Transport for Featureless {
    fn name(&self) -> &str {
        self.0.name()
    }
    fn device_info(&self) -> Done<DeviceInfo> {
        self.0.device_info()
    }
    fn region_info(&self, index: u32) -> Done<RegionInfo> {
        self.0.region_info(index)
    }
    fn irq_info(&self, index: u32) -> Done<IrqInfo> {
        self.0.irq_info(index)
    }
    fn region_read(&self, index: u32, offset: u64, into: &mut [u8]) -> Done<()> {
        self.0.region_read(index, offset, into)
    }
    fn region_write(&self, index: u32, offset: u64, from: &[u8]) -> Done<()> {
        self.0.region_write(index, offset, from)
    }
    fn region_map(&self, index: u32, offset: u64) -> Done<MappedArea> {
        self.0.region_map(index, offset)
    }
    fn feature_probe(&self, _: Feature) -> Done<()> {
        no()
    }
    fn feature_get(&self, _: Feature, _: &[u8], _: usize) -> Done<Vec<u8>> {
        no()
    }
    fn feature_set(&self, _: Feature, _: &[u8]) -> Done<Vec<u8>> {
        no()
    }
    fn set_migration_state(
        &self,
        _: DeviceState,
        _: Option<Direction>,
    ) -> Done<Option<Box<dyn DataSession>>> {
        no()
    }
    fn set_irqs(&self, index: u32, start: u32, vectors: &[&EventFd]) -> Done<()> {
        self.0.set_irqs(index, start, vectors)
    }
    fn dma_map(&self, range: IovaRange, target: DmaTarget<'_>) -> Done<()> {
        self.0.dma_map(range, target)
    }
    fn dma_unmap(&self, range: IovaRange) -> Done<()> {
        self.0.dma_unmap(range)
    }
    fn reset(&self) -> Done<()> {
        self.0.reset()
    }
}

/// Serves one that has nothing but the region of `generation`, and watches it.
fn watched(generation: Generation) -> (Result<(Kind, u64, u64), String>, State) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.sock");
    let listener = socket::listen(&path, "listen").expect("a socket");
    let parameters = Parameters { memory_bytes: 16 << 20, ..Parameters::default() };
    let model = Box::new(Accel::new(parameters).expect("a model"));
    let options = ServerOptions {
        front: generation.front(DataSection::Trapped),
        ..ServerOptions::default()
    };
    let runner = Runner::new(model).expect("a runner");
    let mut server = Server::new(runner, options).expect("a server");
    let stop = Stop::new().expect("an eventfd");
    let stopping = stop.clone();
    let serving = thread::spawn(move || server.serve(listener, &stop));

    let options = ClientOptions::new("a", Arc::new(NoDma));
    let client = Client::connect(&path, options).expect("it listens");
    let transport: Arc<dyn Transport> = Arc::new(Featureless(client));
    let uri = format!("vfio-user:{}", path.display());
    let line = ["vfio-migrate", "dirty", &uri, "--memory", "16M", "--rate", "4M"];
    let times = ["--interval", "50ms", "--duration", "300ms"];
    let cli = Cli::try_parse_from(line.into_iter().chain(times)).expect("arguments");
    let Command::Dirty(dirty) = cli.command else { panic!("dirty") };
    let range = IovaRange::new(0, 16 << 20).expect("a range");
    let (_asked, signal) = channel();
    let seen = watch(&transport, &dirty, range, &signal, &mut Heat::new(range, 6));
    let seen = seen.map_err(|error| format!("{error:#}")).map(|seen| {
        let (kind, _) = seen.log.expect("somebody tells");
        (kind, seen.pages, seen.wrote.expect("it was made to write").blocks)
    });
    let mut device = control::open_any(Arc::clone(&transport)).expect("it is there");
    let state = device.state().expect("a state");
    drop((device, transport));
    stopping.stop();
    serving.join().expect("no panic").expect("served");
    (seen, state)
}

#[test]
fn a_device_that_logs_in_pre_copy_alone_is_watched_there_and_runs_on() {
    let (seen, state) = watched(Generation::Rfc2018);
    let (kind, pages, blocks) = seen.expect("it can be watched");
    assert_eq!(kind, Kind::PreCopy);
    assert!(blocks > 50, "{blocks} blocks");
    assert_eq!(pages, blocks, "each page once, and no other");
    assert_eq!(state, State::Running);
}

#[test]
fn a_migration_region_without_a_query_is_no_log() {
    let (seen, state) = watched(Generation::V1);
    let why = seen.expect_err("nobody tells");
    assert!(why.contains("keeps no log"), "{why}");
    assert!(!why.contains("by=group"), "it is not the kernel's: {why}");
    assert_eq!(state, State::Running);
}
