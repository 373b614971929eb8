//! `docs/failure.md`, row by row: at every phase of either side every connection breaks,
//! as it does when one side dies, and what is left does what the page says.

mod rig;

use std::collections::BTreeSet;

use port::Phase;
use rig::{Cutter, Rig, Wires, at, laws, migrate_into};
use states::v2::Capabilities;
use testkit::Side;
use vfio_migrate_engine::migration::Recovery;
use vfio_migrate_engine::migration::sink::Ending;

/// What a source does whose destination is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Untouched,
    Resumes,
    InDoubt,
    Completed,
}

/// What a destination does whose source is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Destination {
    Discards,
    Holds,
    Runs,
}

/// A phase, whose, and what either side does when the other is gone in it. Two answers
/// where it depends on the moment; the first is the one before the word that decides.
struct Step {
    of: &'static str,
    phase: Phase,
    source: &'static [Source],
    destination: &'static [Destination],
}

const fn source(
    phase: Phase,
    source: &'static [Source],
    destination: &'static [Destination],
) -> Step {
    Step { of: "source", phase, source, destination }
}

const fn destination(
    phase: Phase,
    source: &'static [Source],
    destination: &'static [Destination],
) -> Step {
    Step { of: "destination", phase, source, destination }
}

const RESUMES: &[Source] = &[Source::Resumes];
const DISCARDS: &[Destination] = &[Destination::Discards];

/// Every phase of the two sides, in order.
const STEPS: &[Step] = &[
    source(Phase::Negotiate, &[Source::Untouched], DISCARDS),
    source(Phase::Setup, RESUMES, DISCARDS),
    source(Phase::Precopy, RESUMES, DISCARDS),
    source(Phase::Switchover, RESUMES, DISCARDS),
    source(Phase::VcpuStop, RESUMES, DISCARDS),
    source(Phase::P2p, RESUMES, DISCARDS),
    source(Phase::Stop, RESUMES, DISCARDS),
    source(Phase::Dirty, RESUMES, DISCARDS),
    source(Phase::Config, RESUMES, DISCARDS),
    source(Phase::Verify, RESUMES, DISCARDS),
    source(Phase::Memory, RESUMES, DISCARDS),
    source(Phase::Devices, RESUMES, DISCARDS),
    source(Phase::Prepare, RESUMES, &[Destination::Discards, Destination::Holds]),
    source(
        Phase::Commit,
        &[Source::Resumes, Source::InDoubt],
        &[Destination::Holds, Destination::Runs],
    ),
    source(Phase::Start, &[Source::InDoubt], &[Destination::Holds, Destination::Runs]),
    source(Phase::Cleanup, &[Source::Completed], &[Destination::Runs]),
    destination(Phase::Negotiate, &[Source::Untouched], DISCARDS),
    destination(Phase::Setup, &[Source::Untouched, Source::Resumes], DISCARDS),
    destination(Phase::Precopy, RESUMES, DISCARDS),
    destination(Phase::Prepare, RESUMES, &[Destination::Discards, Destination::Holds]),
    destination(Phase::Commit, &[Source::InDoubt], &[Destination::Runs]),
    destination(Phase::Start, &[Source::InDoubt], &[Destination::Runs]),
    // Only of an attempt that failed already: nothing is decided in it.
    destination(Phase::Cleanup, RESUMES, DISCARDS),
];

impl Source {
    fn does(self) -> &'static str {
        match self {
            Source::Untouched => "ends; its guest was not touched",
            Source::Resumes => "rolls back; its guest runs as before",
            Source::InDoubt => "stays paused, in doubt (exit 3)",
            Source::Completed => "has completed",
        }
    }
}

impl Destination {
    fn does(self) -> &'static str {
        match self {
            Destination::Discards => "discards what it has, and says so",
            Destination::Holds => "holds, and says so",
            Destination::Runs => "runs the guest",
        }
    }
}

/// A row of the page for each party that dies.
fn rows(step: &Step) -> [String; 3] {
    let either = |mut texts: Vec<&str>| {
        texts.dedup();
        texts.join("; later: ")
    };
    let here = either(step.source.iter().map(|one| one.does()).collect());
    let there = either(step.destination.iter().map(|one| one.does()).collect());
    let row = |dies: &str, here: &str, there: &str, guest: &str, operator: &str| {
        let (of, phase) = (step.of, step.phase.name());
        format!("| {of}: {phase} | {dies} | {here} | {there} | {guest} | {operator} |")
    };
    let decided = |texts: [&'static str; 3]| {
        either(
            step.destination
                .iter()
                .map(|one| match one {
                    Destination::Discards => texts[0],
                    Destination::Holds => texts[1],
                    Destination::Runs => texts[2],
                })
                .collect(),
        )
    };
    let source_dies = row(
        "source",
        "is gone",
        &there,
        &decided([
            "nobody: it died with its host",
            "the destination has the only copy",
            "the destination",
        ]),
        &decided([
            "starts the guest anew",
            "throws the held one away only if the source still has its own",
            "nothing",
        ]),
    );
    let kept = |texts: [&'static str; 3]| {
        either(
            step.source
                .iter()
                .map(|one| match one {
                    Source::Untouched | Source::Resumes => texts[0],
                    Source::InDoubt => texts[1],
                    Source::Completed => texts[2],
                })
                .collect(),
        )
    };
    let destination_dies = row(
        "destination",
        &here,
        "is gone",
        &kept(["the source", "not known to the source", "nobody: it died with its host"]),
        &kept([
            "migrates again, elsewhere",
            "looks at the destination's record: RAN, and the guest is lost with its host; \
             none, and the source's may go on",
            "starts the guest anew",
        ]),
    );
    let connection = row(
        "connection",
        &here,
        &there,
        &kept(["the source", "see the destination", "the destination"]),
        &kept([
            "nothing (a held copy is thrown away)",
            "looks at the destination: it runs the guest, or holds it",
            "nothing",
        ]),
    );
    [source_dies, destination_dies, connection]
}

fn table() -> String {
    let mut table = String::from(
        "| phase | dies | the source | the destination | who has the guest | the operator |\n\
         | --- | --- | --- | --- | --- | --- |\n",
    );
    for row in STEPS.iter().flat_map(rows) {
        table.push_str(&row);
        table.push('\n');
    }
    table
}

const SET: [Capabilities; 2] = [Capabilities::ALL, Capabilities::STOP_COPY];

fn sides() -> (Rig, Rig) {
    let (near, far) = Side::pair();
    let mut source = Rig::source(&near, &SET);
    source.busy_guest();
    (source, Rig::destination(&far, &SET))
}

#[test]
fn the_page_on_failures_has_a_row_for_every_phase_and_party() {
    let page = include_str!("../../../docs/failure.md");
    let table = table();
    assert!(page.contains(&table), "docs/failure.md should contain:\n{table}");
    // Whatever phase a side enters has its rows.
    let mut entered = BTreeSet::new();
    for cancelled in [false, true] {
        let (mut source, mut destination) = sides();
        let here = destination.machine.take().expect("a machine");
        let wires = Wires::default();
        let went =
            migrate_into(&mut source, Box::new(|_| Ok(here)), wires, |handle, _| {
                if cancelled {
                    handle.cancel();
                }
            });
        let told = went.expect("an end").told;
        entered.extend(told.0.phases().into_iter().map(|phase| ("source", phase)));
        entered.extend(told.1.phases().into_iter().map(|phase| ("destination", phase)));
    }
    for step in STEPS {
        entered.remove(&(step.of, step.phase));
    }
    assert_eq!(entered, BTreeSet::new(), "phases without a row");
}

#[test]
fn whoever_dies_in_whatever_phase_the_other_does_what_the_page_says() {
    for step in STEPS {
        let (mut source, mut destination) = sides();
        let here = destination.machine.take().expect("a machine");
        let mut wires = Wires::impatient();
        let (cutter, phase) = (wires.cutter.clone(), step.phase);
        let cut = at(phase, move || cutter.cut());
        match step.of {
            "source" => wires.watchers.0 = cut,
            _ => wires.watchers.1 = cut,
        }
        // A destination cleans up after an attempt that failed.
        let fails = (step.of, step.phase) == ("destination", Phase::Cleanup);
        let begun = move |handle: vfio_migrate_engine::drive::SourceHandle, _| {
            if fails {
                handle.changed("a device was unplugged");
            }
        };
        let went = migrate_into(&mut source, Box::new(|_| Ok(here)), wires, begun)
            .expect("both sides come to an end");
        let who = format!("{}: {}", step.of, step.phase.name());
        let told = if step.of == "source" { &went.told.0 } else { &went.told.1 };
        if !told.phases().contains(&step.phase) {
            // The devices were done before the memory, or the attempt before it could
            // fail: this phase did not come.
            let may = fails || step.phase == Phase::Devices;
            assert!(may, "{who}: never entered");
            continue;
        }
        assert_eq!(laws::broken(&source, &destination, &went, None), [""; 0], "{who}");
        let kept = match went.sent.result.as_ref().map_err(|error| error.recovery()) {
            Ok(()) => Source::Completed,
            Err(Recovery::Retry) => Source::Untouched,
            Err(Recovery::SourceResumed) => Source::Resumes,
            Err(Recovery::InDoubt) => Source::InDoubt,
            Err(other) => panic!("{who}: {other:?}"),
        };
        let did = match &went.received.ending {
            Ending::Running { .. } => Destination::Runs,
            Ending::Discarded(_) if went.held => Destination::Holds,
            Ending::Discarded(_) => Destination::Discards,
            other => panic!("{who}: {other:?}"),
        };
        let untouched = fails && kept == Source::Untouched;
        assert!(untouched || step.source.contains(&kept), "{who}: the source {kept:?}");
        assert!(step.destination.contains(&did), "{who}: the destination {did:?}");
    }
}

#[test]
fn a_cutter_cuts() {
    // Without this the rows above would all be those of a migration that completes.
    let (mut source, mut destination) = sides();
    let here = destination.machine.take().expect("a machine");
    let mut wires = Wires::impatient();
    let cutter: Cutter = wires.cutter.clone();
    wires.watchers.0 = at(Phase::Precopy, move || cutter.cut());
    let went = migrate_into(&mut source, Box::new(|_| Ok(here)), wires, |_, _| {});
    assert!(went.expect("an end").sent.result.is_err());
}
