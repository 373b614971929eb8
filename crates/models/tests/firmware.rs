//! What an accelerator holds before anybody used it.

#![allow(clippy::unwrap_used, reason = "tests")]

use device::Runner;
use states::v2::State;
use std::time::Instant;
use vfio_migrate_models::accel::{Accel, AccelError, BAR2, MEMORY_MIN, Parameters};

const FIRMWARE: u64 = 256 << 10;

fn runner(firmware: u64) -> Runner {
    let parameters = Parameters { firmware, ..Parameters::default() };
    Runner::new(Box::new(Accel::new(parameters).unwrap())).unwrap()
}

fn save(runner: &mut Runner) -> Vec<u8> {
    let _ = runner.set_state(State::StopCopy, Instant::now()).unwrap();
    let session = runner.session().unwrap();
    let mut saved = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    loop {
        match runner.read_data(session, &mut chunk).unwrap() {
            0 => return saved,
            read => saved.extend_from_slice(&chunk[..read]),
        }
    }
}

fn load(runner: &mut Runner, saved: &[u8]) {
    let _ = runner.set_state(State::Resuming, Instant::now()).unwrap();
    let session = runner.session().unwrap();
    runner.write_data(session, saved).unwrap();
    let _ = runner.set_state(State::Stop, Instant::now()).unwrap();
}

#[test]
fn a_device_that_nobody_used_has_nothing_to_save() {
    let saved = save(&mut runner(FIRMWARE));
    assert!(saved.len() as u64 > FIRMWARE, "{} bytes", saved.len());
    assert!((save(&mut runner(0)).len() as u64) < 4096);
}

#[test]
fn a_loaded_device_keeps_its_own_firmware() {
    let mut source = runner(0);
    let mut destination = runner(FIRMWARE);
    assert_ne!(source.digest(), destination.digest());
    load(&mut destination, &save(&mut source));
    assert_eq!(source.digest(), destination.digest());
}

#[test]
fn a_reset_leaves_a_device_without_its_firmware() {
    let mut device = runner(FIRMWARE);
    let fresh = device.digest();
    let at = Parameters::default().mapped_window + FIRMWARE - 8;
    device.write_region(BAR2, at, &[0; 8]).unwrap();
    assert_ne!(device.digest(), fresh);
    device.reset();
    assert_eq!(device.digest(), fresh);
}

#[test]
fn firmware_that_does_not_fit_is_written_over_the_end() {
    let window = Parameters::default().mapped_window;
    for firmware in [1, MEMORY_MIN - window + 4096, u64::MAX - 4095] {
        let parameters = Parameters { firmware, ..Parameters::default() };
        let refused = Accel::new(parameters);
        assert!(matches!(refused, Err(AccelError::Firmware(_))), "{firmware}");
    }
    runner(MEMORY_MIN - window);
}
