use super::*;
use crate::{FakeDevice, Side};
use states::v2::Capabilities;

fn wrapped(breaker: &Breaker) -> Box<dyn Device> {
    let side = Side::alone("source");
    let device = FakeDevice::new(&side, "fake0", Capabilities::P2P, vec![1; 9]);
    Box::new(Faulty::new("fake0", breaker, Box::new(device)))
}

fn use_it(device: &mut dyn Device) -> Result<(), DeviceError> {
    device.state()?;
    let Opened::Save(mut session) = device.set_state(State::StopCopy)? else {
        return Ok(());
    };
    session.read(&mut [0; 4])?;
    session.read(&mut [0; 4])?;
    Ok(())
}

#[test]
fn every_call_can_be_broken_once() {
    let never = Breaker::never();
    use_it(&mut *wrapped(&never)).unwrap();
    let calls = never.calls();
    let names =
        ["fake0: state", "fake0: set state STOP_COPY", "fake0: read", "fake0: read"];
    assert_eq!(calls, names);
    assert_eq!(never.targets()[3], ("fake0: read".to_owned(), 1));
    assert_eq!(never.broken(), None);
    for (number, (name, occurrence)) in never.targets().into_iter().enumerate() {
        for breaker in [
            Breaker::nth(number, Break::Before),
            Breaker::call(&name, occurrence, Break::After),
        ] {
            let error = use_it(&mut *wrapped(&breaker)).unwrap_err();
            assert_eq!(error.fault, Fault::Refused(Errno::EIO));
            assert_eq!(breaker.broken().as_ref(), Some(&name));
            assert_eq!(breaker.calls().len(), number + 1);
        }
    }
}

#[test]
fn a_call_that_fails_after_it_was_done_is_done() {
    let breaker = Breaker::call("fake0: set state STOP", 0, Break::After);
    let mut device = wrapped(&breaker);
    assert!(device.set_state(State::Stop).is_err());
    assert_eq!(device.state().unwrap(), State::Stop);
    let breaker = Breaker::call("fake0: set state STOP", 0, Break::Before);
    let mut device = wrapped(&breaker);
    assert!(device.set_state(State::Stop).is_err());
    assert_eq!(device.state().unwrap(), State::Running);
}

#[test]
fn a_lost_device_answers_nothing_but_a_reset() {
    let breaker = Breaker::nth(1, Break::ForGood);
    let mut device = wrapped(&breaker);
    device.state().unwrap();
    assert!(device.set_state(State::Stop).unwrap_err().fault.is_lost());
    assert!(device.state().unwrap_err().fault.is_lost());
    device.reset().unwrap();
    assert_eq!(device.state().unwrap(), State::Running);
}

/// The bits of a container go with its mappings.
struct Container;

impl DirtySource for Container {
    fn name(&self) -> &str {
        "container"
    }

    fn space(&self) -> Space {
        Space::Iova
    }

    fn goes_with_mappings(&self) -> Option<PageSize> {
        Some(PageSize::FOUR_K)
    }

    fn start(&mut self, _: &[IovaRange], _: PageSize) -> Result<(), SourceError> {
        Ok(())
    }

    fn collect(
        &mut self,
        _: IovaRange,
        _: &mut dyn FnMut(DirtyReport<'_>),
    ) -> Result<(), SourceError> {
        Ok(())
    }

    fn stop(&mut self) -> Result<(), SourceError> {
        Ok(())
    }
}

#[test]
fn nobody_asks_a_wrapped_log_for_the_bits_that_go_with_a_mapping() {
    let log = Box::new(Container) as Box<dyn DirtySource>;
    let log = Faulty::new("log", &Breaker::never(), log);
    assert_eq!(log.goes_with_mappings(), Some(PageSize::FOUR_K));
}
