//! Devices that break one rule each: a check that never fails proves nothing.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod puppet;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use puppet::{Fault, Puppet};
use states::v2::State;
use vfio_migrate_conformance::{CHECKS, Finding, Options, Release, Verdict, run, select};

/// What nothing can be said of from here, in every run.
const NEVER: [&str; 4] = ["12.error", "14.p2p", "22.races", "23.complete"];

fn options() -> Options {
    Options { release: Some(Release::new(7, 3, 4)), ..Options::default() }
}

/// `12.no-descriptors` takes the whole process's away.
static ALONE: Mutex<()> = Mutex::new(());

fn check(puppet: &Puppet, only: &[&str], options: &Options) -> Vec<Finding> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let only: Vec<String> = only.iter().map(|id| (*id).to_owned()).collect();
    let checks = select(&only).unwrap();
    run(Arc::new(puppet.clone()), &checks, options, &mut |_| {}).unwrap()
}

fn not(findings: &[Finding], verdict: Verdict) -> Vec<String> {
    let others = findings.iter().filter(|finding| finding.verdict != verdict);
    others.map(|it| format!("{}: {:?}: {}", it.check.id, it.verdict, it.saw)).collect()
}

/// Which check each fault is found by. Those that need a kernel's transport say so.
const FOUND: &[(Fault, bool, &str)] = &[
    (Fault::Flags, true, "1.flags"),
    (Fault::ProbeHides, true, "1.probe"),
    (Fault::ProbeBoasts, true, "1.operations"),
    (Fault::AnyFeature, true, "1.unknown"),
    (Fault::AnyArgsz, true, "1.malformed"),
    (Fault::BeginsStopped, true, "2.initial"),
    (Fault::NoReset, true, "2.reset"),
    (Fault::Wanders, true, "3.steady"),
    (Fault::Ignores(State::Running), true, "4.from-running"),
    (Fault::Ignores(State::RunningP2p), true, "4.from-running-p2p"),
    (Fault::Ignores(State::PreCopy), true, "4.from-pre-copy"),
    (Fault::Ignores(State::PreCopyP2p), true, "4.from-pre-copy-p2p"),
    (Fault::Ignores(State::Stop), true, "4.from-stop"),
    (Fault::Ignores(State::StopCopy), true, "4.from-stop-copy"),
    (Fault::Ignores(State::Resuming), true, "4.from-resuming"),
    (Fault::TakesError, true, "4.no-state"),
    (Fault::GoesBack, true, "5.back"),
    (Fault::Reopens, true, "6.self"),
    (Fault::Rewinds, true, "6.self"),
    (Fault::Inherited, true, "7.descriptor"),
    (Fault::LosesByte, true, "8.one-stream"),
    (Fault::Stale, true, "9.stale"),
    (Fault::Stale, true, "9.one-session"),
    (Fault::Sessionless, false, "9.no-session"),
    (Fault::ClosingEnds, true, "10.closed"),
    (Fault::FailsOnward, true, "12.failed-set"),
    (Fault::NoDescriptor, true, "12.no-descriptors"),
    (Fault::LeavesError, true, "12.error"),
    (Fault::NoConfig, true, "13.config"),
    (Fault::Restless, true, "13.still"),
    (Fault::ZeroEnd, true, "15.temporary"),
    (Fault::EndsTwice, true, "15.final"),
    (Fault::LosesByte, true, "16.any-amount"),
    (Fault::NoInitial, true, "17.start"),
    (Fault::Rises, true, "17.falls"),
    (Fault::InfoAnywhere, true, "17.elsewhere"),
    (Fault::ShortInfo, true, "17.argsz"),
    (Fault::AlwaysReinit, true, "18.silent"),
    (Fault::EchoesFlags, true, "18.asked"),
    (Fault::ErrnoSize, true, "19.every-state"),
    (Fault::SmallSize, true, "19.bound"),
    (Fault::DropsOnRead, true, "20.reads"),
    (Fault::SecondWrite, true, "20.writes"),
    (Fault::NothingEnds, true, "20.nothing"),
    (Fault::TakesAll, true, "21.empty"),
    (Fault::TakesAll, true, "21.truncated"),
    (Fault::TakesAll, true, "21.extra"),
    (Fault::TakesAll, true, "21.header"),
    (Fault::Moody, true, "21.flipped"),
    (Fault::Forgives, true, "21.after-error"),
    (Fault::TakesAll, true, "21.garbage"),
    (Fault::LogsAll, true, "23.start"),
    (Fault::LogsAll, true, "23.page-size"),
    (Fault::NoReport, true, "23.cycle"),
    (Fault::LogsAll, true, "23.twice"),
    (Fault::ReportsAll, true, "23.report"),
    (Fault::ReportsAll, true, "23.not-started"),
    (Fault::StopBreaks, true, "23.stop"),
];

#[test]
fn a_device_that_obeys_is_not_accused() {
    for kernel in [true, false] {
        let findings = check(&Puppet::new(Fault::None, kernel), &[], &options());
        let others = not(&findings, Verdict::Pass);
        let skipped = |id: &str| {
            let here: &[&str] = if kernel {
                &["9.no-session"]
            } else {
                &["7.descriptor", "12.no-descriptors"]
            };
            NEVER.contains(&id) || here.contains(&id)
        };
        for finding in &findings {
            let expected = match skipped(finding.check.id) {
                true => Verdict::Skipped,
                false => Verdict::Pass,
            };
            assert_eq!(finding.verdict, expected, "{others:#?}");
        }
    }
}

#[test]
fn each_check_finds_the_device_that_breaks_its_rule() {
    for (fault, kernel, id) in FOUND {
        let findings = check(&Puppet::new(*fault, *kernel), &[id], &options());
        assert_eq!(findings.len(), 1);
        let Finding { verdict, saw, .. } = &findings[0];
        assert_eq!(*verdict, Verdict::Fail, "{fault:?}: {id}: {saw}");
        assert!(!saw.contains("lost"), "{fault:?}: {id}: {saw}");
    }
    // What cannot be checked here has nothing to find.
    let proved: BTreeSet<_> = FOUND.iter().map(|(_, _, id)| *id).collect();
    for check in CHECKS {
        let known = proved.contains(check.id) || NEVER.contains(&check.id);
        assert!(known, "{} was never seen to fail", check.id);
    }
}

#[test]
fn a_broken_device_fails_and_does_not_hang_a_whole_run() {
    for (fault, kernel, _) in FOUND {
        let findings = check(&Puppet::new(*fault, *kernel), &[], &options());
        assert_eq!(findings.len(), CHECKS.len(), "{fault:?}");
        let failed = findings.iter().any(|finding| finding.verdict == Verdict::Fail);
        assert!(failed, "{fault:?}: {:#?}", not(&findings, Verdict::Pass));
    }
}

#[test]
fn a_kernel_that_would_hang_is_never_asked_the_question() {
    let options = Options { release: Some(Release::new(6, 12, 95)), ..options() };
    let puppet = Puppet::new(Fault::None, true);
    let findings = check(&puppet, &[], &options);
    assert_eq!(puppet.backs(), 0);
    let back = findings.iter().find(|finding| finding.check.id == "5.back").unwrap();
    assert_eq!(back.verdict, Verdict::Skipped);
    assert!(back.saw.contains("6.12.95"), "{}", back.saw);
    // A server of vfio-user is a process, whatever the kernel.
    let puppet = Puppet::new(Fault::None, false);
    let findings = check(&puppet, &["5"], &options);
    assert_eq!(findings[0].verdict, Verdict::Pass, "{}", findings[0].saw);
    assert!(puppet.backs() > 0);
}

/// virtio's driver writes to what it freed.
#[test]
fn a_driver_that_takes_the_kernel_down_at_a_stale_write_is_spared_it() {
    let driver = Some("virtio_vfio_pci".to_owned());
    let options = Options { driver, ..options() };
    let puppet = Puppet::new(Fault::None, true);
    let findings = check(&puppet, &["9"], &options);
    assert_eq!(puppet.stale_writes(), 0);
    let stale = findings.iter().find(|finding| finding.check.id == "9.stale").unwrap();
    assert_eq!(stale.verdict, Verdict::Pass, "{}", stale.saw);
    assert!(stale.saw.contains("no write was tried"), "{}", stale.saw);
    // Every other is asked.
    drop(check(&puppet, &["9"], &self::options()));
    assert!(puppet.stale_writes() > 0);
}

#[test]
fn a_wedged_device_costs_its_check_and_skips_the_rest() {
    let options = Options {
        deadline: Duration::from_millis(200),
        patience: Duration::from_millis(300),
        ..options()
    };
    let findings = check(&Puppet::new(Fault::Wedged, true), &["13", "19"], &options);
    let verdicts: Vec<_> = findings.iter().map(|finding| finding.verdict).collect();
    assert_eq!(verdicts[0], Verdict::Fail, "{}", findings[0].saw);
    assert!(verdicts[1..].iter().all(|verdict| *verdict == Verdict::Skipped));
    assert!(findings[1].saw.contains("lost in 13.config"), "{}", findings[1].saw);
}

#[test]
fn a_device_that_wedges_after_the_last_check_is_not_waited_for() {
    let options = Options {
        deadline: Duration::from_millis(200),
        patience: Duration::from_millis(300),
        ..options()
    };
    // It ends in RESUMING, and a reset would lead out of it.
    let findings = check(&Puppet::new(Fault::WedgedReset, true), &["7"], &options);
    assert_eq!(findings[0].verdict, Verdict::Pass, "{}", findings[0].saw);
}

#[test]
fn after_a_device_is_gone_the_rest_is_skipped_with_the_reason() {
    for calls in [0, 1, 5, 50, 500, 1500] {
        let findings = check(&Puppet::new(Fault::Gone(calls), true), &[], &options());
        assert_eq!(findings.len(), CHECKS.len());
        let lost =
            findings.iter().position(|finding| finding.verdict == Verdict::Fail).unwrap();
        assert!(findings[lost].saw.contains("gone"), "{}", findings[lost].saw);
        for finding in &findings[lost + 1..] {
            assert_eq!(finding.verdict, Verdict::Skipped);
            assert!(finding.saw.contains(findings[lost].check.id), "{}", finding.saw);
        }
    }
}

#[test]
fn data_without_an_end_is_not_read_for_ever() {
    let options = Options { most_bytes: 1 << 20, ..options() };
    let puppet = Puppet::new(Fault::Endless, true);
    let findings = check(&puppet, &["15.final", "20.reads"], &options);
    assert_eq!(findings[0].verdict, Verdict::Fail);
    assert!(findings[0].saw.contains("96 were said"), "{}", findings[0].saw);
    assert_eq!(findings[1].verdict, Verdict::Skipped);
    assert!(findings[1].saw.contains("more than 1048576 bytes"), "{}", findings[1].saw);
    // Nor by time: what is read is less than there may be.
    let options = Options {
        deadline: Duration::from_millis(100),
        most_bytes: usize::MAX,
        ..self::options()
    };
    let findings = check(&puppet, &["5"], &options);
    assert_eq!(findings[0].verdict, Verdict::Fail);
    assert!(findings[0].saw.contains("not over within"), "{}", findings[0].saw);
}

/// Of no bytes each is refused, at every length: that proves nothing.
#[test]
fn a_device_that_saves_nothing_passes_no_check_of_its_data() {
    let findings = check(&Puppet::new(Fault::Empty, true), &["20", "21"], &options());
    assert_eq!(not(&findings, Verdict::Skipped), [] as [String; 0]);
    assert!(findings.iter().all(|finding| finding.saw == "it saves nothing"));
}

#[test]
fn a_count_beyond_the_buffer_is_not_believed() {
    let findings = check(&Puppet::new(Fault::Overlong, true), &["15.final"], &options());
    assert_eq!(findings[0].verdict, Verdict::Fail);
    assert!(findings[0].saw.contains("room for"), "{}", findings[0].saw);
}

#[test]
fn a_rule_or_an_id_selects_and_anything_else_is_refused() {
    let ids = |only: &[&str]| {
        let only: Vec<String> = only.iter().map(|id| (*id).to_owned()).collect();
        select(&only)
            .map(|checks| checks.iter().map(|check| check.id).collect::<Vec<_>>())
    };
    assert_eq!(ids(&["5"]).unwrap(), ["5.back"]);
    assert_eq!(ids(&["21.empty", "5"]).unwrap(), ["5.back", "21.empty"]);
    assert_eq!(ids(&[]).unwrap().len(), CHECKS.len());
    for wrong in ["99", "5.", "5.backs", "", "-1"] {
        assert!(ids(&[wrong]).unwrap_err().to_string().contains(wrong));
    }
    let unique: BTreeSet<_> = CHECKS.iter().map(|check| check.id).collect();
    assert_eq!(unique.len(), CHECKS.len());
    for check in CHECKS {
        assert!(check.id.starts_with(&format!("{}.", check.rule)), "{}", check.id);
    }
}

#[test]
fn a_page_that_does_not_name_a_check_hides_it() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/conform.md");
    let page = std::fs::read_to_string(path).unwrap();
    let rows: Vec<_> = page.lines().filter(|line| line.starts_with("| ")).collect();
    for check in CHECKS {
        let row = format!("| {} | {} | {} |", check.id, check.effect.word(), check.did);
        assert!(rows.iter().any(|line| line.starts_with(&row)), "docs/conform.md: {row}");
    }
    let named = |line: &&str| {
        line[2..].split_once('.').is_some_and(|(rule, _)| rule.parse::<u8>().is_ok())
    };
    assert_eq!(rows.iter().copied().filter(|line| named(line)).count(), CHECKS.len());
}
