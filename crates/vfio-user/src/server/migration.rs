//! The data of a migration: `MIG_DATA_READ` and `MIG_DATA_WRITE`.

use abi::errno::Errno;
use abi::vfio_user::MigData;

use super::Server;
use super::commands::{Served, room};
use super::peer::Agreed;
use crate::codec::Reply;

const MIG_DATA: u32 = size_of::<MigData>() as u32;

impl Server {
    pub(super) fn data_read<'a>(
        &'a mut self,
        agreed: Agreed,
        wanted: MigData,
        data: &'a mut Vec<u8>,
    ) -> Result<Served<'a>, Errno> {
        self.check_v2()?;
        let into = room(data, wanted.size, agreed.send)?;
        if wanted.argsz < MIG_DATA.saturating_add(wanted.size) {
            return Err(Errno::EINVAL);
        }
        let session = self.runner.session().ok_or(Errno::ENODEV)?;
        let reply = |len: usize, sent: &'a [u8]| {
            let argsz = MIG_DATA + sent.len() as u32;
            Reply::MigDataRead(MigData { argsz, size: len as u32 }, sent)
        };
        // Over vfio-user a temporary end is an empty answer.
        if agreed.additions {
            let built = into.as_ptr();
            let bytes = match self.runner.lend_data(session, into) {
                Err(Errno::ENOMSG) => &[],
                other => other?,
            };
            let lent = !std::ptr::eq(bytes.as_ptr(), built);
            let reply = reply(bytes.len(), bytes);
            return Ok(if lent { Served::Reply(reply) } else { Served::InData(reply) });
        }
        let len = match self.runner.read_data(session, into) {
            Err(Errno::ENOMSG) => 0,
            other => other?,
        };
        // libvfio-user's own client wants as many bytes as it asked for, whatever `size`
        // says; so whoever does not know us gets them.
        into[len..].fill(0);
        Ok(Served::InData(reply(len, into)))
    }

    pub(super) fn data_write(
        &mut self,
        agreed: Agreed,
        fixed: MigData,
        bytes: &[u8],
    ) -> Result<Reply<'static>, Errno> {
        self.check_v2()?;
        if fixed.argsz < MIG_DATA.saturating_add(fixed.size)
            || bytes.is_empty()
            || bytes.len() > agreed.take
        {
            return Err(Errno::EINVAL);
        }
        let session = self.runner.session().ok_or(Errno::ENODEV)?;
        self.runner.write_data(session, bytes)?;
        Ok(Reply::Done)
    }

    /// The data of a device with a migration region goes through that.
    fn check_v2(&self) -> Result<(), Errno> {
        if self.front.is_some() { Err(Errno::ENOTTY) } else { Ok(()) }
    }
}
