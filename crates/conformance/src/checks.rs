//! The checks, rule by rule, and how some are chosen.

mod errors;
mod features;
mod info;
mod logging;
mod sessions;
mod states;
mod streams;

use thiserror::Error;

use crate::bench::Bench;
use crate::check::Effect::{Asks, Loads, Moves};
use crate::check::{Check, Effect};
use crate::outcome::Outcome;

const fn check(
    id: &'static str,
    rule: u8,
    effect: Effect,
    did: &'static str,
    run: fn(&Bench) -> Outcome,
) -> Check {
    Check { id, rule, did, effect, run }
}

/// Every check, in the order in which they are run: what only asks comes first, and what
/// loads something damaged late.
#[rustfmt::skip]
pub static CHECKS: &[Check] = &[
    check("1.flags", 1, Asks, "asks for the migration flags", features::flags),
    check("1.probe", 1, Asks, "probes every migration feature", features::probe),
    check("1.operations", 1, Asks, "probes GET and SET of every migration feature", features::operations),
    check("1.unknown", 1, Asks, "asks for features that do not exist", features::unknown),
    check("1.malformed", 1, Asks, "calls features with wrong sizes and flags", features::malformed),
    check("2.initial", 2, Asks, "asks for the state before anything else", states::initial),
    check("2.reset", 2, Moves, "resets in every state", states::reset),
    check("3.steady", 3, Moves, "asks for the state again and again in every state", states::steady),
    check("4.from-running", 4, Moves, "sets every state from RUNNING", states::from_running),
    check("4.from-running-p2p", 4, Moves, "sets every state from RUNNING_P2P", states::from_running_p2p),
    check("4.from-pre-copy", 4, Moves, "sets every state from PRE_COPY", states::from_pre_copy),
    check("4.from-pre-copy-p2p", 4, Moves, "sets every state from PRE_COPY_P2P", states::from_pre_copy_p2p),
    check("4.from-stop", 4, Moves, "sets every state from STOP", states::from_stop),
    check("4.from-stop-copy", 4, Moves, "sets every state from STOP_COPY", states::from_stop_copy),
    check("4.from-resuming", 4, Loads, "loads its own data and sets every state from RESUMING", states::from_resuming),
    check("4.no-state", 4, Moves, "sets ERROR, unknown and unsupported states in every state", states::no_state),
    check("5.back", 5, Moves, "sets PRE_COPY from STOP_COPY, half-way through the data", states::back),
    check("6.self", 6, Loads, "sets each state again while the device is in it", states::itself),
    check("7.descriptor", 7, Moves, "looks at the data descriptors", sessions::descriptor),
    check("8.one-stream", 8, Loads, "reads across PRE_COPY, PRE_COPY_P2P and STOP_COPY, and loads that", sessions::one_stream),
    check("9.stale", 9, Loads, "uses a session after each way to end it", sessions::stale),
    check("9.one-session", 9, Loads, "uses a session after the next one began", sessions::one_session),
    check("9.no-session", 9, Moves, "reads and writes data in states that have none", sessions::no_session),
    check("10.closed", 10, Moves, "closes a session, and nothing else", sessions::closed),
    check("12.failed-set", 12, Loads, "sets RUNNING with half of the data loaded", errors::failed_set),
    check("12.no-descriptors", 12, Moves, "opens a session without a free descriptor", errors::no_descriptors),
    check("12.error", 12, Asks, "sets a state in ERROR", errors::in_error),
    check("13.config", 13, Moves, "reads config space while stopped", states::config),
    check("13.still", 13, Moves, "saves twice without running", states::still),
    check("14.p2p", 14, Asks, "has a peer write while in the P2P states", states::p2p),
    check("15.temporary", 15, Moves, "reads PRE_COPY to its end", sessions::temporary),
    check("15.final", 15, Moves, "reads STOP_COPY past its end", sessions::last),
    check("16.any-amount", 16, Loads, "reads none, some and all of PRE_COPY before STOP_COPY, and loads each", sessions::any_amount),
    check("17.start", 17, Moves, "asks what pre-copy has left as it begins", info::start),
    check("17.falls", 17, Moves, "asks what pre-copy has left while it is read", info::falls),
    check("17.elsewhere", 17, Moves, "asks what pre-copy has left outside of it", info::elsewhere),
    check("17.argsz", 17, Moves, "asks what pre-copy has left with a short structure", info::argsz),
    check("18.silent", 18, Moves, "looks for REINIT without having asked for it", info::silent),
    check("18.asked", 18, Moves, "asks for REINIT, and looks at the flags", info::asked),
    check("19.every-state", 19, Moves, "asks for the size of the data in every state", info::size_everywhere),
    check("19.bound", 19, Moves, "compares that size with what STOP_COPY has", info::size_bound),
    check("20.reads", 20, Moves, "saves with reads of several sizes", streams::reads),
    check("20.writes", 20, Loads, "loads with writes of several sizes, and saves", streams::writes),
    check("20.nothing", 20, Loads, "reads and writes no bytes at all in between", streams::nothing),
    check("21.empty", 21, Loads, "loads nothing", streams::empty),
    check("21.truncated", 21, Loads, "loads its data cut off", streams::truncated),
    check("21.extra", 21, Loads, "loads its data with bytes behind it", streams::extra),
    check("21.header", 21, Loads, "loads its data with a bit of the first 8 bytes wrong", streams::header),
    check("21.flipped", 21, Loads, "loads its data with one bit wrong, anywhere, twice", streams::flipped),
    check("21.after-error", 21, Loads, "goes on after a write that was refused", streams::after_error),
    check("21.garbage", 21, Loads, "loads much that is no state at all", streams::garbage),
    check("22.races", 22, Asks, "uses one session from two threads", errors::races),
    check("23.start", 23, Moves, "starts the DMA log with ranges that it must refuse", logging::start),
    check("23.page-size", 23, Moves, "starts the DMA log with page sizes that are none", logging::page_size),
    check("23.cycle", 23, Moves, "starts, reports and stops the DMA log", logging::cycle),
    check("23.twice", 23, Moves, "starts the DMA log while it runs", logging::twice),
    check("23.report", 23, Moves, "reports ranges and page sizes that it must refuse", logging::report),
    check("23.not-started", 23, Moves, "reports without a start", logging::not_started),
    check("23.stop", 23, Moves, "stops the DMA log without a start", logging::stop),
    check("23.complete", 23, Asks, "has the device write, and looks for every page", logging::complete),
];

/// Neither a rule nor the id of a check. Holds what it was.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is no check: write the number of a rule, such as 4, or an id of --list")]
pub struct UnknownCheck(pub String);

/// The checks of these rules or with these ids, in their order; all of them where none is
/// named.
///
/// # Errors
/// What is neither a rule nor an id.
pub fn select(only: &[String]) -> Result<Vec<&'static Check>, UnknownCheck> {
    let names =
        |check: &Check, name: &str| check.id == name || name.parse() == Ok(check.rule);
    let unknown = only.iter().find(|name| !CHECKS.iter().any(|check| names(check, name)));
    if let Some(name) = unknown {
        return Err(UnknownCheck(name.clone()));
    }
    let wanted =
        |check: &&Check| only.is_empty() || only.iter().any(|name| names(check, name));
    Ok(CHECKS.iter().filter(wanted).collect())
}
