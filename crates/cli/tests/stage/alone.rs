//! Devices without a guest: served, filled with something, and looked at.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use control::Transport;
use serde_json::Value;
use vfio_user::client::{Client, ClientOptions, NoDma};

use super::{Ended, Process, Server, run, serve};

/// Memory of a device here.
const MEMORY: usize = 16 << 20;

/// A device that is served.
pub(crate) struct Alone {
    pub(crate) server: Server,
    socket: PathBuf,
    pub(crate) uri: String,
}

impl Alone {
    /// Serves one that is empty.
    pub(crate) fn empty(folder: &Path, name: &str) -> Alone {
        Alone::with(folder, name, &[])
    }

    /// Serves one that is empty, with more options.
    pub(crate) fn with(folder: &Path, name: &str, more: &[&str]) -> Alone {
        let socket = folder.join(format!("{name}.sock"));
        let mut options = vec!["--memory", "16M"];
        options.extend(more);
        let server = serve(&socket, &options);
        let uri = format!("vfio-user:{}", socket.display());
        Alone { server, socket, uri }
    }

    /// Serves one of any model: all its options are the caller's.
    pub(crate) fn of(folder: &Path, name: &str, options: &[&str]) -> Alone {
        let socket = folder.join(format!("{name}.sock"));
        let uri = format!("vfio-user:{}", socket.display());
        let mut arguments = vec!["serve", "--socket", &uri["vfio-user:".len()..]];
        arguments.extend(options);
        let mut process = Process::start(&arguments);
        let ready = process.line().into();
        Alone { server: Server { process, ready }, socket, uri }
    }

    /// A client of its server.
    pub(crate) fn client(&self) -> Client {
        let options = ClientOptions::new("filled", Arc::new(NoDma));
        Client::connect(&self.socket, options).expect("a server")
    }

    /// Serves one that holds so many bytes of something.
    pub(crate) fn filled(folder: &Path, name: &str, bytes: usize) -> Alone {
        let device = Alone::empty(folder, name);
        device.fill(bytes);
        device
    }

    /// Writes so many bytes into it that a name of its own is in every block.
    pub(crate) fn fill(&self, bytes: usize) {
        assert!(bytes <= MEMORY);
        let client = self.client();
        let mark = crc32c::crc32c(self.uri.as_bytes());
        let mut block = vec![0; 64 << 10];
        for offset in (0..bytes).step_by(block.len()) {
            for (n, byte) in block.iter_mut().enumerate() {
                let word = (mark as usize ^ ((offset + n) / 4)) as u32;
                *byte = word.wrapping_mul(0x9e37_79b1).to_le_bytes()[n % 4];
            }
            client.region_write(2, offset as u64, &block).expect("memory is writable");
        }
    }

    fn probe(&self) -> Value {
        let probed = run(&["probe", &self.uri, "--digest", "--json"]);
        assert_eq!(probed.status, 0, "{probed:?}");
        probed.json()
    }

    /// Its migration state.
    pub(crate) fn state(&self) -> String {
        self.probe()["state"].as_str().expect("a state").to_owned()
    }

    /// What it holds.
    pub(crate) fn holds(&self) -> Value {
        let mut digest = self.probe()["digest"].take();
        // Ours ask it while it is stopped.
        for counter in ["accesses_while_stopped", "dma_while_stopped"] {
            digest["counters"][counter].take();
        }
        assert!(digest["crc32c"].is_string(), "{digest}");
        digest
    }
}

/// Runs the command with something on its standard input.
pub(crate) fn run_with(arguments: &[&str], input: &[u8]) -> Ended {
    let mut child = Command::new(env!("CARGO_BIN_EXE_vfio-migrate"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        // It may have heard enough.
        let _ = stdin.write_all(&input);
    });
    let ended = child.wait_with_output().expect("an end");
    writer.join().expect("no panic");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ended {
        status: ended.status.code().unwrap_or(-1),
        out: text(&ended.stdout),
        err: text(&ended.stderr),
    }
}
