//! A device that interrupts by itself while its client binds, unbinds, stops, moves and
//! goes away: what it says it sent is what was heard, to the last one.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use abi::pci::irq_index::{INTX, MSI, MSIX};
use abi::v2::DeviceState;
use control::{DataSession, Direction, IrqAction, IrqForm, Transport};
use models::accel::registers as reg;
use models::accel::{self, Accel, BAR0, CONFIG, Parameters, VECTORS};
use support::{SOON, Served, until};
use sys::EventFd;
use vfio_migrate_vfio_user::{Client, ServerOptions};

fn served() -> Served {
    let accel = Accel::new(Parameters::default()).unwrap();
    Served::with(accel, ServerOptions::default())
}

fn config(client: &Client, at: usize, bytes: &[u8]) {
    client.region_write(CONFIG, at as u64, bytes).unwrap();
}

fn write(client: &Client, register: u64, value: u64) {
    client.region_write(BAR0, register, &value.to_le_bytes()).unwrap();
}

fn read(client: &Client, register: u64) -> u64 {
    let mut word = [0; 8];
    client.region_read(BAR0, register, &mut word).unwrap();
    u64::from_le_bytes(word)
}

fn state(client: &Client, state: DeviceState) {
    client.set_migration_state(state, None).unwrap();
}

/// Turns MSI on with room for all vectors, or off.
fn msi(client: &Client, on: bool) {
    config(client, accel::MSI + 2, &[0x30 | u8::from(on)]);
}

/// Lets the device write blocks of its own memory, with an interrupt for each.
fn run(client: &Client, vector: u64) {
    config(client, 4, &[6, 0]);
    write(client, reg::RING + reg::RATE, 40 << 20);
    write(client, reg::RING + reg::BATCH, 1);
    write(client, reg::RING + reg::VECTOR, vector);
    write(client, reg::RING + reg::CONTROL, reg::RUN);
}

fn taken(events: &[EventFd]) -> u64 {
    events.iter().map(|event| event.take().unwrap()).sum()
}

fn events<const N: usize>() -> [EventFd; N] {
    [(); N].map(|()| EventFd::new().unwrap())
}

#[test]
fn no_message_is_lost_while_vectors_are_bound_to_other_eventfds() {
    let served = served();
    let client = served.client();
    let bells = events::<2>();
    let all: Vec<&EventFd> = (0..VECTORS).map(|_| &bells[0]).collect();
    client.set_irqs(MSI, 0, &all).unwrap();
    msi(&client, true);
    run(&client, 5);
    let mut heard = 0;
    for turn in 0..200 {
        // The one vector, all of them, those around it.
        let bell = &bells[turn % 2];
        match turn % 3 {
            0 => client.set_irqs(MSI, 5, &[bell]).unwrap(),
            1 => client.set_irqs(MSI, 0, &[bell; 8]).unwrap(),
            _ => client.set_irqs(MSI, 4, &[bell; 3]).unwrap(),
        }
        heard += taken(&bells);
    }
    until(|| {
        heard += taken(&bells);
        heard > 50
    });
    state(&client, DeviceState::STOP);
    heard += taken(&bells);
    state(&client, DeviceState::RUNNING);
    write(&client, reg::RING + reg::CONTROL, 0);
    heard += taken(&bells);
    assert_eq!(read(&client, reg::IRQ_SENT + 8 * 5), heard);
    assert_eq!(read(&client, reg::IRQ_UNHEARD + 8 * 5), 0, "while it was bound anew");
    assert_eq!(read(&client, reg::RING + reg::ACKNOWLEDGED), heard);
}

#[test]
fn every_interrupt_is_a_message_or_waits_while_messages_come_and_go() {
    let served = served();
    let client = served.client();
    let bells = events::<1>();
    run(&client, 2);
    let mut heard = 0;
    for turn in 0..60 {
        // As a VMM has to: bound before it is on, off before it is unbound.
        let index = if turn % 2 == 0 { MSI } else { MSIX };
        client.set_irqs(index, 0, &[&bells[0]; 3]).unwrap();
        match index {
            MSI => msi(&client, true),
            _ => config(&client, accel::MSIX + 2, &[0, 0x80]),
        }
        // What came without messages waits here, and not for ever.
        write(&client, reg::INTERRUPTS, u64::MAX);
        until(|| {
            let now = taken(&bells);
            heard += now;
            now > 0
        });
        msi(&client, false);
        config(&client, accel::MSIX + 2, &[0, 0]);
        client.set_irqs(index, 0, &[]).unwrap();
    }
    write(&client, reg::RING + reg::CONTROL, 0);
    heard += taken(&bells);
    let (sent, unheard) =
        (read(&client, reg::IRQ_SENT + 16), read(&client, reg::IRQ_UNHEARD + 16));
    assert_eq!(sent, heard);
    assert_eq!(sent + unheard, read(&client, reg::RING + reg::ACKNOWLEDGED));
    // Each that nobody was told of is one that the line had to tell.
    assert!(read(&client, reg::IRQ_WAITED + 16) <= unheard);
}

#[test]
fn a_line_rises_once_for_each_acknowledgement_over_every_stop() {
    let served = served();
    let client = served.client();
    let bells = events::<1>();
    client.set_irqs(INTX, 0, &[&bells[0]]).unwrap();
    run(&client, 4);
    let mut acknowledged = 0;
    for turn in 0..90 {
        until(|| taken(&bells) > 0);
        // The device goes to STOP while the line is up: as it was, when it is back.
        if turn % 3 == 1 {
            state(&client, DeviceState::STOP);
            state(&client, DeviceState::RUNNING);
        }
        let waits = read(&client, reg::INTERRUPTS);
        assert_eq!(waits, 1 << 4, "told of nothing, turn {turn}");
        write(&client, reg::INTERRUPTS, waits);
        acknowledged += 1;
        if turn % 3 == 2 {
            state(&client, DeviceState::STOP);
            client.act_on_irqs(INTX, 0, IrqAction::Unmask, IrqForm::All(1)).unwrap();
            assert_eq!(taken(&bells), 0, "told while it is stopped");
            state(&client, DeviceState::RUNNING);
        } else {
            client.act_on_irqs(INTX, 0, IrqAction::Unmask, IrqForm::All(1)).unwrap();
        }
    }
    write(&client, reg::RING + reg::CONTROL, 0);
    let up = read(&client, reg::INTERRUPTS) >> 4;
    assert_eq!(read(&client, reg::IRQ_WAITED + 8 * 4), acknowledged + up);
}

/// All the data of a device, which is stopped then.
fn saved(client: &Client) -> Vec<u8> {
    let opened = client
        .set_migration_state(DeviceState::STOP_COPY, Some(Direction::Save))
        .unwrap();
    let mut session: Box<dyn DataSession> = opened.unwrap();
    let mut data = Vec::new();
    let mut buffer = vec![0; 1 << 20];
    let end = std::time::Instant::now() + SOON;
    while let read @ 1.. = session.read(&mut buffer).unwrap() {
        assert!(std::time::Instant::now() < end);
        data.extend_from_slice(&buffer[..read]);
    }
    data
}

fn load(client: &Client, mut data: &[u8]) -> Box<dyn DataSession> {
    let opened = client
        .set_migration_state(DeviceState::RESUMING, Some(Direction::Resume))
        .unwrap();
    let mut session: Box<dyn DataSession> = opened.unwrap();
    while !data.is_empty() {
        let written = session.write(&data[..data.len().min(64 << 10)]).unwrap();
        data = &data[written..];
    }
    session
}

#[test]
fn what_was_sent_is_heard_to_the_last_one_where_the_device_goes() {
    let (here, there) = (served(), served());
    let mut ends = [here.client(), there.client()];
    let bells = events::<1>();
    ends[0].set_irqs(MSI, 0, &[&bells[0]; 8]).unwrap();
    msi(&ends[0], true);
    run(&ends[0], 7);
    let mut heard = 0;
    for _ in 0..6 {
        until(|| {
            let now = taken(&bells);
            heard += now;
            now > 0
        });
        let data = saved(&ends[0]);
        // It stopped: nothing comes any more, so what is taken now is all.
        heard += taken(&bells);
        let session = load(&ends[1], &data);
        config(&ends[1], 4, &[6, 0]);
        msi(&ends[1], true);
        ends[1].set_irqs(MSI, 0, &[&bells[0]; 8]).unwrap();
        state(&ends[1], DeviceState::STOP);
        drop(session);
        assert_eq!(taken(&bells), 0, "the load raised something");
        state(&ends[1], DeviceState::RUNNING);
        // The source lets go of them late, as it does after a migration.
        state(&ends[0], DeviceState::STOP);
        ends[0].set_irqs(MSI, 0, &[]).unwrap();
        ends.swap(0, 1);
    }
    write(&ends[0], reg::RING + reg::CONTROL, 0);
    heard += taken(&bells);
    assert_eq!(read(&ends[0], reg::IRQ_SENT + 8 * 7), heard);
    assert_eq!(read(&ends[0], reg::IRQ_UNHEARD + 8 * 7), 0);
}

#[test]
fn a_client_that_goes_away_takes_its_eventfds_along_and_a_reset_leaves_them() {
    let served = served();
    let client = served.client();
    let bells = events::<2>();
    client.set_irqs(MSI, 0, &[&bells[0]; 8]).unwrap();
    msi(&client, true);
    run(&client, 1);
    until(|| taken(&bells) > 0);
    // A reset turns messages off; the eventfds stay bound, and are heard again.
    client.reset().unwrap();
    let _ = taken(&bells);
    assert_eq!(read(&client, reg::IRQ_SENT + 8), 0);
    run(&client, 1);
    until(|| read(&client, reg::INTERRUPTS) == 1 << 1);
    assert_eq!(taken(&bells), 0, "sent after messages were turned off");
    msi(&client, true);
    until(|| taken(&bells) > 0);
    drop(client);
    // The device runs on with nobody: what it would tell is counted, and no more.
    let client = served.client();
    let unheard = read(&client, reg::IRQ_UNHEARD + 8);
    let _ = taken(&bells);
    until(|| read(&client, reg::IRQ_UNHEARD + 8) > unheard);
    assert_eq!(taken(&bells), 0, "an eventfd of a client that has gone");
    client.set_irqs(MSI, 1, &[&bells[1]]).unwrap();
    until(|| bells[1].take().unwrap() > 0);
    assert_eq!(bells[0].take().unwrap(), 0);
}
