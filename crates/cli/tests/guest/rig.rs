//! Servers and guests for a test.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use device::{Migratable, PciIds, Runner};
use models::{accel, uart};
use serde_json::{Value, json};
use states::v2::Capabilities;
use sys::socket::Listener;
use tempfile::TempDir;
use vfio_migrate_cli::commands::ctl::{Refused, talk};
use vfio_migrate_cli::devices::DeviceUri;
use vfio_migrate_cli::guest::check::{Summary, compare_files};
use vfio_migrate_cli::guest::options::{MachineOptions, ReceiveOptions, RunOptions};
use vfio_migrate_cli::guest::{receive, run};
use vfio_migrate_cli::report::Problem;
use vfio_user::{Server, ServerOptions, Stop};

use crate::strange::Strange;

/// No test waits longer than this for anything.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// A device to serve.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Model {
    /// An accelerator with these capabilities.
    Accel(Capabilities),
    /// An accelerator of some other make.
    Chosen(accel::Parameters),
    /// A uart with so many ports.
    Uart(u32),
    /// A device that nobody has a driver for.
    Strange(Option<PciIds>),
}

/// A folder of sockets, and the servers of both sides.
pub(crate) struct Rig {
    folder: TempDir,
    servers: Vec<(Stop, JoinHandle<()>)>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        for (stop, thread) in self.servers.drain(..) {
            stop.stop();
            thread.join().expect("a server that ends");
        }
    }
}

impl Rig {
    /// Serves an accelerator a side for each capability set.
    pub(crate) fn new(sets: &[Capabilities]) -> Rig {
        let models: Vec<Model> = sets.iter().map(|set| Model::Accel(*set)).collect();
        Rig::of(&models)
    }

    /// Serves these devices on each side.
    pub(crate) fn of(models: &[Model]) -> Rig {
        let folder = tempfile::tempdir().expect("a folder");
        let mut rig = Rig { folder, servers: Vec::new() };
        for side in ["source", "destination"] {
            for (n, model) in models.iter().enumerate() {
                rig.serve(&format!("{side}{n}"), *model);
            }
        }
        rig
    }

    fn serve(&mut self, name: &str, model: Model) {
        let model: Box<dyn Migratable> = match model {
            Model::Accel(capabilities) => {
                let usual = accel::Parameters::default();
                let parameters = accel::Parameters { capabilities, ..usual };
                Box::new(accel::Accel::new(parameters).expect("an accelerator"))
            }
            Model::Chosen(parameters) => {
                Box::new(accel::Accel::new(parameters).expect("an accelerator"))
            }
            Model::Strange(pci) => Box::new(Strange(pci)),
            Model::Uart(ports) => {
                let parameters = uart::Parameters { ports, ..Default::default() };
                Box::new(uart::Uart::new(parameters).expect("a uart"))
            }
        };
        let runner = Runner::new(model).expect("a device");
        let options = ServerOptions { name: name.to_owned(), ..ServerOptions::default() };
        let mut server = Server::new(runner, options).expect("a server");
        let listener = Listener::bind(&self.path(&format!("{name}.sock")));
        let listener = listener.expect("a socket");
        let stop = Stop::new().expect("an eventfd");
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            server.serve(listener, &stopped).expect("a server that works");
        });
        self.servers.push((stop, thread));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The machine of one side: 16 MiB, two vCPUs.
    pub(crate) fn machine(&self, side: &str) -> MachineOptions {
        let devices = self.servers.len() / 2;
        let uri = |n| DeviceUri::new(self.path(&format!("{side}{n}.sock")));
        MachineOptions {
            memory: 16 << 20,
            devices: (0..devices).map(uri).collect(),
            vcpus: 2,
            dirty_rate: 16 << 20,
            dma_rate: 8 << 20,
            p2p: false,
            seed: 7,
        }
    }

    /// A source that holds until everything changed.
    pub(crate) fn source(&self) -> RunOptions {
        RunOptions {
            machine: self.machine("source"),
            control: self.path("source.ctl"),
            digests: Some(self.path("source.digests")),
            inject: None,
            hold: true,
            paused: false,
            interrupts: None,
        }
    }

    pub(crate) fn destination(&self) -> ReceiveOptions {
        ReceiveOptions {
            machine: self.machine("destination"),
            control: self.path("destination.ctl"),
            digests: Some(self.path("destination.digests")),
            from: "tcp:127.0.0.1:0".parse().expect("a place"),
            hold: true,
        }
    }

    /// Boots a guest.
    pub(crate) fn run(&self, options: RunOptions) -> Side {
        let control = options.control.clone();
        Side::start(control, move || run(options))
    }

    /// Waits for a guest.
    pub(crate) fn receive(&self, options: ReceiveOptions) -> Side {
        let control = options.control.clone();
        Side::start(control, move || receive(options))
    }

    /// Both sides, with two devices of all capabilities.
    pub(crate) fn pair() -> (Rig, Side, Side) {
        let rig = Rig::new(&[Capabilities::ALL; 2]);
        let source = rig.run(rig.source());
        let destination = rig.receive(rig.destination());
        (rig, source, destination)
    }

    /// What the digests of both sides come to.
    pub(crate) fn compare(&self) -> Result<Summary, Vec<Problem>> {
        let (a, b) = (self.path("source.digests"), self.path("destination.digests"));
        compare_files(&a, &b).expect("digests of both sides")
    }
}

/// One guest "process", in a thread.
pub(crate) struct Side {
    control: PathBuf,
    ended: Mutex<Receiver<anyhow::Result<u8>>>,
}

impl Side {
    fn start(
        control: PathBuf,
        guest: impl FnOnce() -> anyhow::Result<u8> + Send + 'static,
    ) -> Side {
        let (end, ended) = channel();
        std::thread::spawn(move || {
            // A test that failed does not listen any more.
            let _ = end.send(guest());
        });
        let side = Side { control, ended: Mutex::new(ended) };
        side.until("it answers", |status| status["state"].is_string());
        side
    }

    /// Asks, whatever comes of it.
    pub(crate) fn ask(&self, request: &Value) -> anyhow::Result<Value> {
        talk(&self.control, request, LONG, &mut |_| {})
    }

    /// Tells it to do something, which it does.
    pub(crate) fn tell(&self, request: Value) -> Value {
        let text = request.to_string();
        self.ask(&request).unwrap_or_else(|error| panic!("{text}: {error:#}"))
    }

    /// Tells it to do something, which it refuses; why.
    pub(crate) fn refuses(&self, request: Value) -> String {
        let text = request.to_string();
        let error = match self.ask(&request) {
            Ok(answer) => panic!("{text}: {answer} instead of a refusal"),
            Err(error) => error,
        };
        let refused = error.downcast_ref::<Refused>();
        let refused = refused.unwrap_or_else(|| panic!("{text}: {error:#}"));
        assert_eq!(refused.code, "refused", "{text}: {refused}");
        refused.text.clone()
    }

    pub(crate) fn status(&self) -> Value {
        self.tell(json!({ "command": "status" }))["status"].clone()
    }

    pub(crate) fn state(&self) -> String {
        self.status()["state"].as_str().expect("a state").to_owned()
    }

    /// Waits for a state: the source hears that the guest runs before the destination's
    /// own status says so.
    pub(crate) fn becomes(&self, state: &str) {
        self.until(state, |status| status["state"] == state);
    }

    /// Asks for the status until something is so.
    pub(crate) fn until(&self, what: &str, so: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let status = self.ask(&json!({ "command": "status" }));
            if let Ok(status) = &status
                && so(&status["status"])
            {
                return status["status"].clone();
            }
            if let Ok(ended) = self.ended.lock().expect("no panic").try_recv() {
                panic!("ended with {ended:?} before {what}");
            }
            assert!(began.elapsed() < LONG, "not so: {what}; {status:?}");
            std::thread::yield_now();
        }
    }

    /// Asks for the counters until something is so.
    pub(crate) fn counts(&self, what: &str, so: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let answer = self.tell(json!({ "command": "counters" }));
            if so(&answer["counters"]) {
                return answer["counters"].clone();
            }
            assert!(began.elapsed() < LONG, "not so: {what}; {answer}");
            std::thread::yield_now();
        }
    }

    /// Where it waits for a guest.
    pub(crate) fn place(&self) -> String {
        self.status()["from"].as_str().expect("a place").to_owned()
    }

    /// Migrates to another side; the report.
    pub(crate) fn migrate(&self, to: &Side) -> Value {
        let report = self.tell(migrate(&to.place()))["report"].clone();
        if report["outcome"] == "completed" {
            // It runs there a moment before it can be asked there.
            to.until("here", |status| {
                status["state"] == "running" || status["state"] == "paused"
            });
        }
        report
    }

    /// Stops the guest and checks everything that can be known of it.
    pub(crate) fn freeze(&self) -> Vec<Value> {
        let answer = self.tell(json!({ "command": "freeze" }));
        assert_eq!(answer["frozen"], true);
        answer["problems"].as_array().expect("a list").clone()
    }

    /// Ends it; its exit status.
    pub(crate) fn quit(self) -> u8 {
        self.tell(json!({ "command": "quit", "discard": true }));
        self.ended()
    }

    /// Its exit status, once it ends by itself.
    pub(crate) fn ended(&self) -> u8 {
        let ended =
            self.ended.lock().expect("no panic").recv_timeout(LONG).expect("an end");
        ended.expect("no error")
    }
}

/// A request to migrate, patient about downtime: only what the guest did decides.
pub(crate) fn migrate(to: &str) -> Value {
    json!({ "command": "migrate", "to": to, "downtime_limit_ms": 30_000 })
}

/// Whether a file is there.
pub(crate) fn exists(path: &Path) -> bool {
    path.exists()
}
