//! Our side of the socket: `vfio-migrate serve --model accel`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::machine::child::Running;
use crate::{Failure, process};

/// The socket, in the folder of the run: a path from the root may be longer than a
/// socket's name can be.
pub(super) const SOCKET: &str = "accel.sock";

/// How long it may take to be there, to answer, and to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server with its device.
pub(super) struct Server {
    program: PathBuf,
    folder: PathBuf,
    running: Running,
}

impl Server {
    /// Starts it and waits until it listens.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub(super) fn start(program: &Path, folder: &Path) -> Result<Server, Failure> {
        let mut command = Command::new(program);
        command.current_dir(folder);
        // A server of a test that was killed does not stay.
        command.args(["--with-parent", &std::process::id().to_string()]);
        // Without firmware a device that nobody used is all 0, which the guest checks.
        command.args(["-v", "serve", "--model", "accel", "--memory", "16M"]);
        command.args(["--firmware", "0"]);
        command.args(["--socket", SOCKET]);
        let mut running =
            Running::start("the server", &command, &folder.join("server.log"))?;
        if running.line(Instant::now() + PATIENCE)?.is_none() {
            return Err(Failure::Failed(
                "the server ended at once, see server.log".into(),
            ));
        }
        Ok(Server {
            program: program.to_path_buf(),
            folder: folder.to_path_buf(),
            running,
        })
    }

    /// Looks at the device by another client, after a guest has gone: it is there, it
    /// runs, and it has what the guest wrote, at least `left` bytes.
    ///
    /// # Errors
    ///
    /// What is not so.
    pub(super) fn check_device(&mut self, left: u64) -> Result<String, String> {
        if !self.running.runs() {
            return Err("the server has ended, see server.log".to_owned());
        }
        let mut command = Command::new(&self.program);
        command.current_dir(&self.folder);
        command.args(["--json", "probe", &format!("vfio-user:{SOCKET}")]);
        let text = process::output(&mut command).map_err(Failure::text)?;
        let said: Value =
            serde_json::from_str(&text).map_err(|error| error.to_string())?;
        if said["state"] != "RUNNING" {
            return Err(format!("the device is in {}", said["state"]));
        }
        match said["stop_copy_bytes"].as_u64() {
            Some(bytes) if bytes > left => {
                Ok(format!("RUNNING, with {} KiB of state", bytes >> 10))
            }
            other => Err(format!("the guest's data are gone: {other:?} bytes of state")),
        }
    }

    /// Ends it, as a service manager would.
    ///
    /// # Errors
    ///
    /// When it does not end well, or leaves its socket behind.
    pub(super) fn end(self) -> Result<String, String> {
        self.running.terminate().map_err(Failure::text)?;
        let status =
            self.running.end(Instant::now() + PATIENCE).map_err(Failure::text)?;
        if !status.success() {
            return Err(format!("{status}, see server.log"));
        }
        if self.folder.join(SOCKET).exists() {
            return Err("its socket is still there".to_owned());
        }
        Ok("ended by SIGTERM, socket removed".to_owned())
    }
}
