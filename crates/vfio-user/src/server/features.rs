//! `DEVICE_FEATURE`: the checks of the kernel, and the features of this device.

use std::time::Instant;

use abi::dma_logging::MAX_RANGES;
use abi::errno::Errno;
use abi::feature::{Feature, FeatureFlags, FeatureHeader};
use abi::v2::{DeviceMigState, PrecopyFlags};
use abi::vfio_user::{LoggingControl, LoggingReport, MigratePrecopyInfo};
use device::Moved;
use states::v2::State;
use zerocopy::{FromBytes, IntoBytes};

use super::Server;
use super::commands::{Asked, Served};
use super::dma::as_sent;
use super::peer::{AskedBy, Deferred, Peer};
use crate::codec::{DigestPart, Reply, encode_digest, parse_log_start};

const HEADER: u32 = FeatureHeader::SIZE as u32;

/// Words of a report before its bits.
const FIELDS: usize = size_of::<LoggingReport>() / size_of::<u64>();

/// Serves one feature call. Answers are built in `data`, and those with a bitmap in
/// `words`.
pub(super) fn feature<'a>(
    server: &mut Server,
    peer: &mut Peer,
    asked: Asked,
    (header, input): (FeatureHeader, &[u8]),
    data: &'a mut Vec<u8>,
    words: &'a mut Vec<u64>,
) -> Result<Served<'a>, Errno> {
    let (feature, operation) = (header.feature(), header.operation());
    let both = FeatureFlags::GET | FeatureFlags::SET;
    let probe = operation.contains(FeatureFlags::PROBE);
    if header.argsz < HEADER
        || operation.bits() & !FeatureFlags::KNOWN != 0
        || (operation.contains(both) && !probe)
    {
        return Err(Errno::EINVAL);
    }
    let allowed = operations(server, peer, feature)?;
    let wanted = operation & both;
    if !allowed.contains(wanted) || (wanted.is_empty() && !probe) {
        return Err(Errno::EINVAL);
    }
    data.clear();
    if probe {
        data.extend_from_slice(input);
        return Ok(reply(header, data));
    }
    // What the answer may be long, without the feature's header.
    let most = (header.argsz - HEADER) as usize;
    if most < payload(feature) {
        return Err(Errno::EINVAL);
    }
    let call = Call { server, peer, most };
    if operation.contains(FeatureFlags::GET) && feature == Feature::DMA_LOGGING_REPORT {
        return Ok(reply(header, call.log_report(input, words)?));
    }
    if operation.contains(FeatureFlags::GET) {
        call.get(feature, input, data)?;
        return Ok(reply(header, data));
    }
    match call.set(feature, input, data)? {
        Moved::Done(_) => Ok(reply(header, data)),
        Moved::Pending => {
            let (state, _) =
                DeviceMigState::read_from_prefix(input).map_err(|_| Errno::EINVAL)?;
            Ok(Served::Deferred(Deferred {
                id: asked.id,
                no_reply: asked.no_reply,
                by: AskedBy::Feature {
                    data_fd: state.data_fd,
                    target: state.device_state,
                },
            }))
        }
    }
}

/// What can be done with a feature. ENOTTY where it is not there.
fn operations(
    server: &Server,
    peer: &Peer,
    feature: Feature,
) -> Result<FeatureFlags, Errno> {
    let additions = peer.agreed.is_some_and(|agreed| agreed.additions);
    let description = server.runner.description();
    let pre_copy = description.capabilities.pre_copy();
    if server.front.is_some() && is_v2(feature) {
        return Err(Errno::ENOTTY);
    }
    match feature {
        Feature::MIGRATION | Feature::DMA_LOGGING_REPORT => Ok(FeatureFlags::GET),
        Feature::MIG_DEVICE_STATE => Ok(FeatureFlags::GET | FeatureFlags::SET),
        Feature::DMA_LOGGING_START | Feature::DMA_LOGGING_STOP => Ok(FeatureFlags::SET),
        Feature::MIG_DATA_SIZE if additions => Ok(FeatureFlags::GET),
        Feature::MIG_PRECOPY_INFO_V2 if additions && pre_copy => Ok(FeatureFlags::SET),
        // Not ENOTTY: the kernel says this even to PROBE (7.3).
        Feature::MIG_PRECOPY_INFO_V2 if additions => Err(Errno::EINVAL),
        Feature::VFIO_MIGRATE_PRECOPY_INFO if additions && pre_copy => {
            Ok(FeatureFlags::GET)
        }
        Feature::VFIO_MIGRATE_IDENTITY | Feature::VFIO_MIGRATE_DIGEST if additions => {
            Ok(FeatureFlags::GET)
        }
        _ => Err(Errno::ENOTTY),
    }
}

/// Whether a feature is part of the migration of v2, which a device with a migration
/// region does not have: neither would know where the other left it. Who it is, what it
/// holds and what it wrote can be asked for in every generation.
fn is_v2(feature: Feature) -> bool {
    matches!(
        feature,
        Feature::MIGRATION
            | Feature::MIG_DEVICE_STATE
            | Feature::MIG_DATA_SIZE
            | Feature::MIG_PRECOPY_INFO_V2
            | Feature::VFIO_MIGRATE_PRECOPY_INFO
    )
}

/// The length of a feature's fixed structure in bytes, which `argsz` has to have room for
/// before anything is done, as in the kernel. The ranges and words behind a structure
/// are pointers there and do not count.
fn payload(feature: Feature) -> usize {
    match feature {
        Feature::MIGRATION | Feature::MIG_DATA_SIZE => size_of::<u64>(),
        Feature::MIG_DEVICE_STATE => size_of::<DeviceMigState>(),
        Feature::DMA_LOGGING_START => size_of::<LoggingControl>(),
        Feature::DMA_LOGGING_REPORT => size_of::<LoggingReport>(),
        Feature::VFIO_MIGRATE_PRECOPY_INFO => size_of::<MigratePrecopyInfo>(),
        Feature::VFIO_MIGRATE_DIGEST => size_of::<DigestPart>(),
        // DMA_LOGGING_STOP and MIG_PRECOPY_INFO_V2 have none; the identity's length
        // varies, and asking for it does nothing.
        _ => 0,
    }
}

struct Call<'a> {
    server: &'a mut Server,
    peer: &'a mut Peer,
    most: usize,
}

impl Call<'_> {
    fn get(
        self,
        feature: Feature,
        input: &[u8],
        data: &mut Vec<u8>,
    ) -> Result<(), Errno> {
        let runner = &mut self.server.runner;
        match feature {
            Feature::MIGRATION => {
                data.extend(runner.description().capabilities.flags().to_ne_bytes());
            }
            Feature::MIG_DEVICE_STATE => {
                data.extend(state_data(runner.state().number(), -1));
            }
            Feature::MIG_DATA_SIZE => {
                data.extend(runner.stop_copy_bytes().to_ne_bytes());
            }
            Feature::VFIO_MIGRATE_PRECOPY_INFO => {
                if !matches!(runner.state(), State::PreCopy | State::PreCopyP2p) {
                    return Err(Errno::EINVAL);
                }
                let session = runner.session().ok_or(Errno::ENODEV)?;
                let info = runner.precopy_info(session)?;
                let mut flags = PrecopyFlags::empty();
                let reinit = info.reinit && self.peer.precopy_flags;
                flags.set(PrecopyFlags::REINIT, reinit);
                let info = MigratePrecopyInfo {
                    flags: flags.bits(),
                    reserved: 0,
                    initial_bytes: info.initial_bytes,
                    dirty_bytes: info.dirty_bytes,
                };
                data.extend_from_slice(info.as_bytes());
            }
            Feature::VFIO_MIGRATE_IDENTITY => {
                let identity = &runner.description().identity;
                let model = port::Model {
                    name: identity.model.clone(),
                    data_version: identity.data_version,
                };
                data.extend(control::identity::encode(&model).ok_or(Errno::EIO)?);
            }
            Feature::VFIO_MIGRATE_DIGEST => return self.digest(input, data),
            _ => return Err(Errno::ENOTTY),
        }
        if data.len() > self.most { Err(Errno::EINVAL) } else { Ok(()) }
    }

    fn set(
        self,
        feature: Feature,
        input: &[u8],
        data: &mut Vec<u8>,
    ) -> Result<Moved, Errno> {
        let runner = &mut self.server.runner;
        match feature {
            Feature::MIG_DEVICE_STATE => {
                let (state, _) =
                    DeviceMigState::read_from_prefix(input).map_err(|_| Errno::EINVAL)?;
                let target =
                    State::from_number(state.device_state).ok_or(Errno::EINVAL)?;
                data.extend(state_data(state.device_state, state.data_fd));
                return runner.set_state(target, Instant::now());
            }
            Feature::DMA_LOGGING_START => {
                let (control, _) =
                    LoggingControl::read_from_prefix(input).map_err(|_| Errno::EINVAL)?;
                if control.num_ranges > MAX_RANGES {
                    return Err(Errno::E2BIG);
                }
                let (mut control, ranges) =
                    parse_log_start(input).map_err(|_| Errno::EINVAL)?;
                control.page_size = runner.log_start(control.page_size, &ranges)?.bytes();
                data.extend_from_slice(control.as_bytes());
                data.extend_from_slice(&input[size_of::<LoggingControl>()..]);
                // The answer is the question with another page size, but not longer
                // than is wanted.
                data.truncate(self.most);
            }
            Feature::DMA_LOGGING_STOP => {
                runner.log_stop();
                data.extend_from_slice(input);
                data.truncate(self.most);
            }
            Feature::MIG_PRECOPY_INFO_V2 => self.peer.precopy_flags = true,
            _ => return Err(Errno::ENOTTY),
        }
        Ok(Moved::Done(None))
    }

    /// The fields of the question and the bits, which together are whole words: the log
    /// writes them where they are sent from.
    fn log_report<'a>(
        self,
        input: &[u8],
        words: &'a mut Vec<u64>,
    ) -> Result<&'a [u8], Errno> {
        let (report, _) =
            LoggingReport::read_from_prefix(input).map_err(|_| Errno::EINVAL)?;
        let limit = self.most.min(self.server.options.max_data_xfer_size);
        let room = limit.saturating_sub(size_of::<LoggingReport>()) / size_of::<u64>();
        let LoggingReport { iova, length, page_size } = report;
        words.clear();
        words.extend([iova, length, page_size]);
        let told =
            self.server.runner.log_report_into(iova, length, page_size, room, words);
        // What does not fit is a matter of argsz here.
        told.map_err(|errno| match errno {
            Errno::E2BIG => Errno::EINVAL,
            other => other,
        })?;
        as_sent(&mut words[FIELDS..]);
        Ok(words.as_bytes())
    }

    fn digest(self, input: &[u8], data: &mut Vec<u8>) -> Result<(), Errno> {
        let (asked, _) = DigestPart::parse(input).map_err(|_| Errno::EINVAL)?;
        if asked.offset == 0 {
            let digest = self.server.runner.digest().ok_or(Errno::ENOTTY)?;
            self.peer.digest = encode_digest(&digest);
        }
        let whole = &self.peer.digest;
        let start = usize::try_from(asked.offset).map_err(|_| Errno::EINVAL)?;
        let rest = whole.get(start..).ok_or(Errno::EINVAL)?;
        let limit = self.peer.agreed.map_or(0, |agreed| agreed.send);
        let room = self.most.min(limit);
        let room = room.checked_sub(16).filter(|room| *room > 0).ok_or(Errno::EINVAL)?;
        let part = DigestPart { offset: asked.offset, total: whole.len() as u64 };
        data.extend(part.bytes());
        data.extend_from_slice(&rest[..rest.len().min(room)]);
        if rest.len() <= room {
            self.peer.digest = Vec::new();
        }
        Ok(())
    }
}

/// The data of a reply about the state. There is no descriptor over vfio-user; what the
/// client put in its place comes back.
pub(super) fn state_data(state: u32, data_fd: i32) -> [u8; 8] {
    let mut data = [0; 8];
    let state = DeviceMigState { device_state: state, data_fd };
    data.copy_from_slice(state.as_bytes());
    data
}

/// The header of a deferred reply.
pub(super) fn state_header() -> FeatureHeader {
    FeatureHeader::new(Feature::MIG_DEVICE_STATE, FeatureFlags::SET, 8)
}

fn reply(header: FeatureHeader, data: &[u8]) -> Served<'_> {
    let header = FeatureHeader {
        argsz: HEADER.saturating_add(data.len() as u32),
        flags: header.flags,
    };
    Served::Reply(Reply::Feature(header, data))
}
