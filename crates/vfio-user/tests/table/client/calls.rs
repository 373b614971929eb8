//! What a client calls, and how an honest server answers.

use std::io;

use abi::feature::Feature;
use abi::v2::DeviceState;
use control::{
    Direction, DmaTarget, DmaWrites, IrqAction, IrqForm, RegionWrite, Transport,
    TransportError,
};
use dirty::{IovaRange, PageSize};
use sys::{EventFd, SharedMemory};
use vfio_migrate_vfio_user::Client;

use super::super::row::{Fd, Row};
use super::super::valid::{longs, words};
use super::super::wire::{Message, REPLY};
use super::u32_at;

type Result = std::result::Result<(), TransportError>;

/// A call.
#[derive(Debug)]
pub struct Call {
    pub name: &'static str,
    /// The command that is lied about.
    pub command: u16,
    /// Nothing for VERSION, which making the client is.
    pub make: fn(&Client) -> Result,
}

macro_rules! calls {
    ($($name:ident, $command:literal, $make:expr;)*) => {
        $(pub static $name: Call =
            Call { name: stringify!($name), command: $command, make: $make };)*
        pub static CALLS: [&Call; [$($command),*].len()] = [$(&$name),*];
    };
}

calls! {
    VERSION, 1, |_| Ok(());
    DMA_MAP, 2, |client| client.dma_map(range(), MESSAGES);
    DMA_MAP_MEMORY, 2, |client| {
        let memory = SharedMemory::create("guest", 8192).unwrap();
        let target = DmaTarget::Memory { memory: &memory, offset: 0, writable: true };
        client.dma_map(range(), target)
    };
    DMA_UNMAP, 3, |client| client.dma_unmap(range());
    DMA_UNMAP_DIRTY, 3, |client| {
        let page = PageSize::new(4096).unwrap();
        let words = client.dma_unmap_dirty(range(), page, DmaWrites::MayGoOn)?;
        assert_eq!(words, [3]);
        Ok(())
    };
    DEVICE_INFO, 4, |client| {
        let info = client.device_info()?;
        assert_eq!((info.flags, info.irqs), (3, 5));
        Ok(())
    };
    REGION_INFO, 5, |client| {
        let info = client.region_info(2)?;
        assert_eq!(info.areas, [(4096, 8192)]);
        Ok(())
    };
    REGION_MAP, 5, |client| {
        let area = client.region_map(2, 5000)?;
        assert_eq!((area.offset, area.memory.len()), (4096, 8192));
        Ok(())
    };
    REGION_IO_FDS, 6, |client| client.region_io_fds(2).map(drop);
    IRQ_INFO, 7, |client| {
        let info = client.irq_info(2)?;
        assert_eq!(info.count, 40);
        Ok(())
    };
    SET_IRQS, 8, |client| {
        let event = EventFd::new().unwrap();
        client.set_irqs(2, 0, &[&event, &event])
    };
    MASK_IRQS, 8, |client| {
        client.act_on_irqs(0, 0, IrqAction::Mask, IrqForm::Each(&[true]))
    };
    REGION_READ, 9, |client| {
        let mut data = [0; 64];
        client.region_read(2, 0, &mut data)?;
        assert_eq!(data, [0x99; 64]);
        Ok(())
    };
    REGION_WRITE, 10, |client| client.region_write(2, 0, &[1; 64]);
    RESET, 13, |client| client.reset();
    WRITE_MANY, 15, |client| {
        let write = |offset| RegionWrite { index: 2, offset, data: &[1; 8] };
        client.region_write_many(&[write(0), write(8), write(16)])
    };
    FEATURE_GET, 16, |client| {
        let data = client.feature_get(Feature::MIGRATION, &[], 8)?;
        if data.len() == 8 { Ok(()) } else { Err(odd()) }
    };
    FEATURE_SET, 16, |client| client.feature_set(Feature::DMA_LOGGING_STOP, &[]).map(drop);
    FEATURE_PROBE, 16, |client| client.feature_probe(Feature::MIGRATION);
    SET_STATE, 16, |client| {
        client.set_migration_state(DeviceState::STOP, None).map(drop)
    };
    DATA_READ, 17, |client| {
        let target = DeviceState::STOP_COPY;
        let session = client.set_migration_state(target, Some(Direction::Save))?;
        let mut data = [0; 64];
        let read = session.unwrap().read(&mut data)?;
        assert!(data[..read].iter().all(|byte| *byte == 0x17));
        Ok(())
    };
    DATA_WRITE, 18, |client| {
        let target = DeviceState::RESUMING;
        let session = client.set_migration_state(target, Some(Direction::Resume))?;
        session.unwrap().write(&[1; 64]).map(drop)
    };
}

const MESSAGES: DmaTarget<'static> = DmaTarget::Messages { writable: true };

fn range() -> IovaRange {
    IovaRange::new(0x10000, 8192).unwrap()
}

/// A feature that is not as long as it has to be: what a caller of the transport says.
fn odd() -> TransportError {
    let source = Some(io::ErrorKind::InvalidData.into());
    TransportError::Gone { operation: "the caller", source }
}

/// What an honest server answers.
pub fn answer(asked: &Message) -> std::result::Result<Row, String> {
    let word = |at| u32_at(asked, at);
    let body = &asked.body;
    let mut fds = Vec::new();
    let answer = match asked.command {
        1 => version(
            r#"{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,
                "write_multiple":true,"vfio_migrate":{"version":1}}}"#,
        ),
        2 | 8 | 13 | 18 => Vec::new(),
        3 if word(4)? == 1 => [&body[..40], &longs(&[3])].concat(),
        3 => body.clone(),
        4 => words(&[16, 3, 9, 5]),
        5 => {
            fds.push(Fd::Memory);
            region(word(8)?)
        }
        6 => words(&[16, 0, word(8)?, 0]),
        7 => words(&[16, 9, word(8)?, 40]),
        9 => [&body[..16], &vec![0x99; word(12)? as usize]].concat(),
        10 => body[..16].to_vec(),
        15 => body[..8].to_vec(),
        // GET of the migration flags; all others are an echo.
        16 if word(4)? == 1 | 1 << 16 => {
            [&words(&[16, word(4)?])[..], &longs(&[7])].concat()
        }
        16 => body.clone(),
        17 => {
            [&words(&[word(0)?, word(4)?])[..], &vec![0x17; word(4)? as usize]].concat()
        }
        other => return Err(format!("command {other} came")),
    };
    Ok(Row::new(asked.command, answer).flags(REPLY).fds(&fds))
}

/// The body of an answer to VERSION. 0 major, 2 minor, 4 the text and a NUL.
pub fn version(text: &str) -> Vec<u8> {
    [&[0; 4], text.as_bytes(), &[0]].concat()
}

/// 0 argsz, 4 flags, 8 index, 12 `cap_offset`, 16 size, 24 offset; 32 id and version, 36
/// next, 40 areas, 44 reserved, 48 start and 56 length of the first.
fn region(index: u32) -> Vec<u8> {
    [
        words(&[64, 15, index, 32]),
        longs(&[1 << 20, 0]),
        words(&[1 | 1 << 16, 0, 1, 0]),
        longs(&[4096, 8192]),
    ]
    .concat()
}
