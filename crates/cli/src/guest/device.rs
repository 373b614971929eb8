//! One device of the guest, and the driver that fits it.
//!
//! ```text
//!   PCI ids --> Kind --> Device { transport, model }   what is there
//!                        Driver { pci, model }         what a vCPU remembers of it
//! ```
//!
//! What is the same for every function of the bus is in [`Pci`]. Everything that is
//! different for a kind of device is in its driver: [`Accel`] moves pages by DMA and
//! through a mapped window, [`Uart`] moves bytes through registers and reaches no memory
//! at all.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use abi::device_info::DeviceFlags;
use abi::pci::{config, region_index};
use anyhow::{Context, Result, bail};
use control::pci::FunctionError;
use control::{Transport, TransportError};
use device::{Digest, PciIds};
use models::{accel, uart};
use serde::{Deserialize, Serialize};
use vfio_user::Client;

use super::accel::{Accel, AccelDriver};
use super::board::Board;
use super::digests::{Device as Seen, Digests};
use super::layout::Area;
use super::options::InterruptKind;
use super::pci::{Addresses, Boot, Pci};
use super::round::Round;
use super::uart::{Uart, UartDriver};
use super::vcpu::Hands;
use crate::report::Problem;

/// What is said of a device that no driver fits.
const DRIVERS: &str = "the guest has drivers for `vfio-migrate serve --model accel` and \
                       `--model uart` only";

/// One device as the guest drives it.
pub(super) struct Device {
    /// Its place among the devices.
    pub(super) number: usize,
    /// The way to it.
    pub(super) transport: Arc<dyn Transport>,
    client: Client,
    /// What it is.
    pub(super) model: Model,
    /// Copies of what its driver counts, readable at any time.
    masks: AtomicU64,
    moves: AtomicU64,
}

/// A device, by the driver that fits it.
pub(super) enum Model {
    /// An accelerator.
    Accel(Accel),
    /// A card with serial ports.
    Uart(Uart),
}

/// What the driver of one device remembers; part of its vCPU's registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Driver {
    /// The device, by its number: that is its slot on the bus, too.
    pub(super) device: usize,
    /// The function that it is on the bus.
    pub(super) pci: Pci,
    /// The rest.
    pub(super) model: ModelDriver,
}

/// What is different for each kind of device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ModelDriver {
    /// Of an accelerator.
    Accel(AccelDriver),
    /// Of a card with serial ports.
    Uart(UartDriver),
}

/// The kinds of device that the guest has a driver for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `models::accel`.
    Accel,
    /// `models::uart`.
    Uart,
}

impl Kind {
    const ALL: [Kind; 2] = [Kind::Accel, Kind::Uart];

    /// What a device is, by its PCI ids.
    pub(super) fn of(transport: &dyn Transport) -> Result<Kind> {
        let flags = transport.device_info().context("ask what it is")?.flags;
        if !DeviceFlags::from_bits_retain(flags).contains(DeviceFlags::PCI) {
            bail!("it is not on PCI: {DRIVERS}");
        }
        let read = |at: u16| {
            let mut id = [0; 2];
            let read = transport.region_read(region_index::CONFIG, at.into(), &mut id);
            read.map(|()| u16::from_le_bytes(id)).context("read its PCI ids")
        };
        let (vendor, device) = (read(config::VENDOR_ID)?, read(config::DEVICE_ID)?);
        let fits =
            |kind: &Kind| (kind.ids().vendor, kind.ids().device) == (vendor, device);
        let Some(kind) = Kind::ALL.into_iter().find(fits) else {
            bail!("it is a PCI {vendor:04x}:{device:04x}: {DRIVERS}");
        };
        Ok(kind)
    }

    fn ids(self) -> PciIds {
        match self {
            Kind::Accel => accel::IDS,
            Kind::Uart => uart::IDS,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Accel => "accel",
            Kind::Uart => "uart",
        })
    }
}

impl Device {
    /// Opens the driver's way to a device, changing nothing. An accelerator takes the
    /// next of the `areas`, and `peer` says whether another device writes into it.
    pub(super) fn open(
        number: usize,
        kind: Kind,
        client: Client,
        areas: &mut dyn Iterator<Item = Area>,
        peer: bool,
    ) -> Result<Device> {
        let client = client.named(&format!("{kind}{number}"));
        let transport: Arc<dyn Transport> = Arc::new(client.clone());
        let on = Arc::clone(&transport);
        let model = match kind {
            Kind::Accel => {
                let area = areas.next().context("no memory is left for it")?;
                Model::Accel(Accel::open(number, on, area, peer)?)
            }
            Kind::Uart if peer => bail!(
                "it is a uart, which reaches no other device: leave out --p2p, or use \
                 accelerators only"
            ),
            Kind::Uart => Model::Uart(Uart::open(number, on)?),
        };
        let (masks, moves) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Device { number, transport, client, model, masks, moves })
    }

    /// The name of the device.
    pub(super) fn name(&self) -> &str {
        self.transport.name()
    }

    /// The accelerator that it is, if it is one.
    pub(super) fn accel(&self) -> Option<&Accel> {
        match &self.model {
            Model::Accel(accel) => Some(accel),
            Model::Uart(_) => None,
        }
    }

    /// Whether memory has to be mapped to it: what is mapped to no memory writes none.
    pub(super) fn does_dma(&self) -> bool {
        self.accel().is_some()
    }

    /// The device's own digest of what it holds.
    pub(super) fn digest(&self) -> Result<Digest> {
        let digest = self.client.digest().context("ask for its digest")?;
        digest.context("the device has no digest of what it holds")
    }

    /// The guest finds the device on the bus and gives it addresses and interrupts, of
    /// that kind where one is asked for.
    pub(super) fn boot(
        &self,
        board: &Board,
        addresses: &mut Addresses,
        kind: Option<InterruptKind>,
    ) -> Result<Driver> {
        let vectors = self.vectors();
        let boot = Boot { board, slot: self.number, kind, vectors };
        let pci = Pci::boot(&boot, addresses)
            .with_context(|| format!("the guest cannot boot {}", self.name()))?;
        Ok(Driver { pci, ..self.driver() })
    }

    /// The most vectors that its driver uses.
    fn vectors(&self) -> usize {
        self.accel().map_or(1, Accel::vectors)
    }

    /// The driver starts the device, which is idle where `rate` is 0. An accelerator
    /// writes that many bytes a second by itself, and where `peer` is an address, as many
    /// to there.
    pub(super) fn start(
        &self,
        board: &Board,
        pci: &Pci,
        rate: u64,
        peer: Option<u64>,
    ) -> Result<()> {
        match &self.model {
            Model::Accel(accel) => accel.start(&board.bus, pci, rate, peer),
            Model::Uart(uart) => uart.start(pci.reach(&board.bus), rate > 0),
        }
    }

    /// What the driver of the device knows before it has found it.
    pub(super) fn driver(&self) -> Driver {
        let model = match &self.model {
            Model::Accel(accel) => ModelDriver::Accel(AccelDriver::new(&accel.plan)),
            Model::Uart(uart) => ModelDriver::Uart(uart.driver()),
        };
        Driver { device: self.number, pci: Pci::default(), model }
    }

    /// Whether a driver's registers could be those of this device's: it indexes by them.
    /// `most` is more than anything was ever counted to.
    pub(super) fn fits(&self, driver: &Driver, most: u64) -> bool {
        driver.device == self.number
            && driver.pci.fits(self.number, self.vectors(), most)
            && match (&self.model, &driver.model) {
                (Model::Accel(accel), ModelDriver::Accel(driver)) => {
                    accel.fits(driver, most)
                }
                (Model::Uart(uart), ModelDriver::Uart(driver)) => uart.fits(driver, most),
                _ => false,
            }
    }

    /// A vCPU handles the device's interrupts, and where it is `busy` keeps it busy, masks
    /// what interrupts it and moves it about.
    pub(super) fn drive(
        &self,
        board: &Board,
        driver: &mut Driver,
        hands: &mut Hands,
        busy: bool,
    ) -> Result<(), FunctionError> {
        let driven = self.work(board, driver, hands, busy);
        self.show(driver);
        driven
    }

    fn work(
        &self,
        board: &Board,
        driver: &mut Driver,
        hands: &mut Hands,
        busy: bool,
    ) -> Result<(), FunctionError> {
        let now = board.timer.now();
        if busy && driver.pci.moves_at(now) {
            self.move_bar(board, &mut driver.pci, now)?;
        }
        let _still = board.still.read().unwrap_or_else(PoisonError::into_inner);
        if !board.controller.enabled() {
            return Ok(());
        }
        let pci = &mut driver.pci;
        match (&self.model, &mut driver.model) {
            (Model::Accel(accel), ModelDriver::Accel(driver)) => {
                accel.drive(board, pci, driver, hands, busy)?;
            }
            (Model::Uart(uart), ModelDriver::Uart(driver)) => {
                uart.drive(board, pci, driver, busy)?;
            }
            // Never: registers that do not fit are not taken.
            _ => {}
        }
        if busy {
            pci.mask_and_unmask(&board.bus, now, &|pci, vector| match &self.model {
                Model::Accel(accel) => accel.messages_sent(board, pci, vector).map(Some),
                Model::Uart(_) => Ok(None),
            })?;
        }
        Ok(())
    }

    /// A BAR of the device moves. Meanwhile it decodes nothing, so no vCPU is at any
    /// device that another one writes into, and none of these writes.
    fn move_bar(
        &self,
        board: &Board,
        pci: &mut Pci,
        now: u64,
    ) -> Result<(), FunctionError> {
        let devices = board.devices.len();
        if !board.p2p {
            let _still = board.still.read().unwrap_or_else(PoisonError::into_inner);
            if !board.controller.enabled() {
                return Ok(());
            }
            return pci.move_next(&board.bus, now, devices);
        }
        let _still = board.still.write().unwrap_or_else(PoisonError::into_inner);
        if !board.controller.enabled() {
            return Ok(());
        }
        let before = &board.devices[(self.number + devices - 1) % devices];
        let halted = before.accel().map(|accel| accel.halt(board)).transpose()?;
        pci.move_next(&board.bus, now, devices)?;
        let at = self.accel().and_then(|accel| accel.peer_address(pci));
        match (halted, at) {
            (Some(halted), Some(at)) => halted.go_on(at),
            _ => Ok(()),
        }
    }

    /// Lets everybody see how far the driver is.
    pub(super) fn show(&self, driver: &Driver) {
        self.masks.store(driver.pci.vectors.closed(), Ordering::Release);
        self.moves.store(driver.pci.moves, Ordering::Release);
        match (&self.model, &driver.model) {
            (Model::Accel(accel), ModelDriver::Accel(driver)) => accel.show(driver),
            (Model::Uart(uart), ModelDriver::Uart(driver)) => uart.show(driver),
            _ => {}
        }
    }

    /// How often something was masked that interrupts, and how often a BAR moved.
    pub(super) fn masks_and_moves(&self) -> (u64, u64) {
        (self.masks.load(Ordering::Acquire), self.moves.load(Ordering::Acquire))
    }

    /// How much the device has moved since it was started: blocks, or bytes of a uart.
    /// One that does not run is asked otherwise than one that does.
    pub(super) fn moved(&self, running: bool) -> Result<u64> {
        match &self.model {
            Model::Accel(accel) if running => Ok(accel.sent()?),
            Model::Accel(_) => {
                let counters = self.digest()?.counters;
                let sent = counters.into_iter().find(|(name, _)| name == Accel::SENT);
                Ok(sent.map_or(0, |(_, sent)| sent))
            }
            Model::Uart(uart) => Ok(uart.moved()),
        }
    }

    /// Pairs of commands that are over.
    pub(super) fn commands_over(&self) -> u64 {
        self.accel().map_or(0, Accel::commands_over)
    }

    /// Everything that counts writes to RAM and to the device.
    pub(super) fn rounds(&self) -> Result<Vec<Round>, TransportError> {
        match &self.model {
            Model::Accel(accel) => accel.rounds(),
            Model::Uart(uart) => Ok(uart.rounds()),
        }
    }

    /// The checksums that pages of RAM should have that the device writes, by their
    /// numbers.
    pub(super) fn pages(&self, driver: &Driver, seen: &Seen) -> Vec<(u64, u32)> {
        match (&self.model, &driver.model) {
            (Model::Accel(accel), ModelDriver::Accel(driver)) => {
                accel.pages(driver, seen)
            }
            _ => Vec::new(),
        }
    }

    /// Where the stopped device is not what its driver's registers say.
    pub(super) fn problems(&self, driver: &Driver, digests: &Digests) -> Vec<Problem> {
        match (&self.model, &driver.model) {
            (Model::Accel(accel), ModelDriver::Accel(driver)) => {
                accel.problems(driver, digests)
            }
            (Model::Uart(uart), ModelDriver::Uart(driver)) => {
                uart.problems(driver, digests)
            }
            _ => Vec::new(),
        }
    }
}
