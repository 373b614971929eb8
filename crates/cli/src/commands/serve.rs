//! `vfio-migrate serve`: one device over vfio-user, until it is told to end.

use anyhow::{Context, Result};
use device::{Migratable, Runner};
use models::accel::{self, Accel};
use models::uart::{self, Uart};
use serde_json::json;
use vfio_user::server::{Server, ServerOptions, Stop};

use crate::args::{Serve, ServedModel};
use crate::exit::{Exit, Found, status};
use crate::signals::watch;
use crate::{output, socket};

/// Serves until SIGINT or SIGTERM. The socket is removed at the end.
pub(super) fn run(serve: &Serve, json: bool) -> Result<Exit> {
    let path = &serve.socket;
    let name = serve.name.clone().unwrap_or_else(|| {
        path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
    });
    let model = build(serve).with_context(|| format!("cannot build {name}"))?;
    let runner = Runner::new(model).with_context(|| format!("cannot run {name}"))?;
    let identity = runner.description().identity.clone();
    let options = ServerOptions {
        name: name.clone(),
        reset_on_disconnect: serve.reset_on_disconnect,
        front: serve.generation.front(serve.data_section),
        ..ServerOptions::default()
    };
    let mut server =
        Server::new(runner, options).with_context(|| format!("cannot serve {name}"))?;
    let stop = Stop::new().context("cannot serve")?;
    let stopping = stop.clone();
    // From here on no signal leaves the socket behind.
    let watching = watch(move |signal| {
        tracing::info!(signal, "the server ends");
        stopping.stop();
    })?;
    let listener = socket::listen(path, "listen")?;
    if json {
        output::json(&json!({ "ready": {
            "device": name,
            "model": identity.model,
            "data_version": identity.data_version,
            "capabilities": serve.capabilities.flags(),
            "socket": path,
            "pid": std::process::id(),
        }}))?;
    } else {
        output::line(&format!(
            "{name} ({}, capabilities {}) is served at vfio-user:{}",
            identity.model,
            serve.capabilities,
            path.display()
        ))?;
    }
    let served = server.serve(listener, &stop);
    drop(watching);
    served.with_context(|| format!("{name} cannot be served any longer"))?;
    Ok(status(Found::Done))
}

/// The model that was asked for.
fn build(serve: &Serve) -> Result<Box<dyn Migratable>> {
    let capabilities = serve.capabilities;
    Ok(match serve.model {
        ServedModel::Accel => Box::new(Accel::new(accel::Parameters {
            memory_bytes: serve.memory.bytes(),
            mapped_window: serve.mapped_window.bytes(),
            firmware: serve.firmware.bytes(),
            vectors: u32::from(serve.vectors),
            msi: serve.msi.registers(),
            bars: serve.bars.order(),
            capabilities,
            data_version: accel::DATA_VERSION,
        })?),
        ServedModel::Uart => {
            let ports = u32::from(serve.ports);
            Box::new(Uart::new(uart::Parameters { ports, capabilities })?)
        }
    })
}
