//! Finding out whether a device can migrate, and who it is.

use std::sync::Arc;

use abi::device_info::DeviceFlags;
use abi::errno::Errno;
use abi::feature::Feature;
use abi::v2::Migration;
use port::{Bus, Generation, Identity, PciLayout};
use states::v2::{Capabilities, UnknownCapabilities};
use thiserror::Error;
use zerocopy::FromBytes;

use crate::device::{V2Device, Withheld};
use crate::identity;
use crate::pci::{Seen, broken};
use crate::transport::{SaveStream, Transport, TransportError};

/// Opens a device for migration: asks what it can do and who it is. Changes nothing,
/// except that a device with PRE_COPY is told that REINIT is understood (feature 12).
///
/// PRE_COPY is left out of the identity where the transport says that the stream of the
/// device may start over at STOP_COPY ([`Transport::save_stream`]);
/// [`V2Device::withheld`] tells.
///
/// # Errors
/// When the device cannot migrate, with the reason; when it announces capabilities
/// that nobody defined; when it does not answer.
pub fn open(transport: Arc<dyn Transport>) -> Result<V2Device, ProbeError> {
    let has = capabilities(&*transport)?;
    let (capabilities, withheld) = used(has, transport.save_stream());
    let (bus, layout) = bus(&*transport)?;
    let model = model(&*transport)?;
    let generation = Generation::V2;
    let identity = Identity { bus, generation, capabilities, model, layout };
    let reinit = capabilities.pre_copy() && understands_reinit(&*transport)?;
    Ok(V2Device::new(transport, identity, has, withheld, reinit))
}

/// What of a device's capabilities is used, and what is not. A stream that restarts at
/// STOP_COPY is read there alone: the bytes of PRE_COPY would be forwarded twice.
pub(crate) fn used(
    has: Capabilities,
    stream: SaveStream,
) -> (Capabilities, Vec<Withheld>) {
    match stream {
        SaveStream::Restarts(why) if has.pre_copy() => {
            let rest =
                if has.p2p() { Capabilities::P2P } else { Capabilities::STOP_COPY };
            (rest, vec![Withheld { what: "PRE_COPY", why }])
        }
        _ => (has, Vec::new()),
    }
}

/// A device is not opened for migration.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// It cannot migrate.
    #[error("{device} cannot migrate: {why} ({errno})")]
    NotMigratable {
        /// The device.
        device: String,
        /// What that answer means.
        why: &'static str,
        /// What it answered.
        errno: Errno,
    },
    /// Its capabilities are no set that the uAPI defines.
    #[error("{device} cannot migrate")]
    Capabilities {
        /// The device.
        device: String,
        /// The set.
        #[source]
        source: UnknownCapabilities,
    },
    /// It answered something that its interface does not allow.
    #[error("{device} broke its protocol: {what}")]
    Broken {
        /// The device.
        device: String,
        /// What was wrong.
        what: String,
    },
    /// It failed to answer.
    #[error("{device} does not say {what}")]
    Transport {
        /// The device.
        device: String,
        /// What was asked.
        what: &'static str,
        /// Why.
        #[source]
        source: TransportError,
    },
}

pub(crate) fn failed<'a>(
    transport: &'a dyn Transport,
    what: &'static str,
) -> impl FnOnce(TransportError) -> ProbeError + 'a {
    move |source| ProbeError::Transport {
        device: transport.name().to_owned(),
        what,
        source,
    }
}

/// Whether an errno says that there is no such feature: ENOTTY in the kernel (other
/// numbers before Linux 6.18), EINVAL in libvfio-user.
pub(crate) fn says_absent(errno: Errno) -> bool {
    matches!(errno, Errno::ENOTTY | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS)
}

fn capabilities(transport: &dyn Transport) -> Result<Capabilities, ProbeError> {
    let device = || transport.name().to_owned();
    let answer =
        match transport.feature_get(Feature::MIGRATION, &[], size_of::<Migration>()) {
            Ok(answer) => answer,
            Err(TransportError::Errno { errno, .. }) => {
                let why = match errno {
                    Errno::ENOTTY => "its driver does not support migration",
                    Errno::EINVAL => "its server does not know the migration feature",
                    _ => "asking for the migration feature failed",
                };
                return Err(ProbeError::NotMigratable { device: device(), why, errno });
            }
            Err(source) => {
                return Err(failed(transport, "whether it can migrate")(source));
            }
        };
    let Ok(migration) = Migration::read_from_bytes(&answer) else {
        let what = format!("migration feature of {} bytes instead of 8", answer.len());
        return Err(ProbeError::Broken { device: device(), what });
    };
    Capabilities::try_from_flags(migration.flags)
        .map_err(|source| ProbeError::Capabilities { device: device(), source })
}

/// The bus of a device with what its guest sees of it there.
pub(crate) fn bus(
    transport: &dyn Transport,
) -> Result<(Bus, Option<PciLayout>), ProbeError> {
    let info = transport.device_info().map_err(failed(transport, "what it is"))?;
    let flags = DeviceFlags::from_bits_retain(info.flags);
    if !flags.contains(DeviceFlags::PCI) {
        let known = flags & !(DeviceFlags::RESET | DeviceFlags::CAPS);
        let names: Vec<_> =
            known.iter_names().map(|(name, _)| name.to_lowercase()).collect();
        let name = match names.as_slice() {
            [] => format!("unknown bus, flags {:#x}", info.flags),
            names => names.join(" "),
        };
        return Ok((Bus::Other(name), None));
    }
    let seen = Seen::of(transport).map_err(|unfit| broken(transport, unfit))?;
    Ok((Bus::Pci(seen.ids), Some(seen.layout)))
}

pub(crate) fn model(
    transport: &dyn Transport,
) -> Result<Option<port::Model>, ProbeError> {
    let feature = Feature::VFIO_MIGRATE_IDENTITY;
    match transport.feature_get(feature, &[], identity::MOST) {
        Ok(answer) => identity::decode(&answer).map(Some).map_err(|unreadable| {
            let device = transport.name().to_owned();
            ProbeError::Broken { device, what: unreadable.to_string() }
        }),
        Err(TransportError::Errno { .. }) => Ok(None),
        Err(source) => Err(failed(transport, "which model it is")(source)),
    }
}

fn understands_reinit(transport: &dyn Transport) -> Result<bool, ProbeError> {
    match transport.feature_set(Feature::MIG_PRECOPY_INFO_V2, &[]) {
        Ok(_) => Ok(true),
        Err(TransportError::Errno { errno, .. }) => {
            tracing::debug!(device = transport.name(), %errno, "no REINIT");
            Ok(false)
        }
        Err(source) => Err(failed(transport, "whether it reports REINIT")(source)),
    }
}
