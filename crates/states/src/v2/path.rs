//! From one state to another: arcs, tables, paths and what becomes of the session.

use super::{Capabilities, State};

/// The states that a request from `from` to `to` passes through, the last one being
/// `to`; empty when `from` is `to`, which is a request that does nothing.
///
/// # Errors
///
/// A [`Refusal`] where the kernel answers `EINVAL` and changes nothing.
pub const fn plan(
    capabilities: Capabilities,
    from: State,
    to: State,
) -> Result<Path, Refusal> {
    if let Err(refusal) = check(capabilities, from, to) {
        return Err(refusal);
    }
    let mut path = Path { from, steps: [to; Path::LONGEST], len: 0 };
    let mut at = from;
    while at as u8 != to as u8 && (path.len as usize) < Path::LONGEST {
        at = match NEXT[capabilities.index()][at as usize][to as usize] {
            Some(next) => next,
            None => break,
        };
        path.steps[path.len as usize] = at;
        path.len += 1;
    }
    Ok(path)
}

/// The first arc of a request from `from` to `to`: the state it leads to. `to`
/// itself when `from` is `to`.
///
/// # Errors
///
/// A [`Refusal`] where the kernel answers `EINVAL` and changes nothing.
pub const fn next(
    capabilities: Capabilities,
    from: State,
    to: State,
) -> Result<State, Refusal> {
    match plan(capabilities, from, to) {
        Ok(path) if path.len == 0 => Ok(to),
        Ok(path) => Ok(path.steps[0]),
        Err(refusal) => Err(refusal),
    }
}

/// The arcs that a driver with this set implements: 6, 8, 9 or 15 of them.
pub fn arcs(capabilities: Capabilities) -> impl Iterator<Item = (State, State)> {
    ARCS.iter()
        .filter(move |arc| arc.2.holds(capabilities))
        .map(|(from, to, _)| (*from, *to))
}

/// What the single arc from `from` to `to` does to the data session.
///
/// It is meant for the arcs of a [`Path`]; of any other two states it says what is
/// left behind, the opening of a session before the end of another. Where `from` is
/// `to` nothing happens: the session is neither opened again nor closed.
pub const fn session(from: State, to: State) -> Session {
    if from as u8 == to as u8 {
        Session::None
    } else if matches!(to, State::Resuming) {
        Session::OpensResume
    } else if from.is_saving() && to.is_saving() {
        Session::KeepsSave
    } else if to.is_saving() {
        Session::OpensSave
    } else if from.is_saving() {
        Session::EndsSave
    } else if matches!(from, State::Resuming) {
        Session::EndsResume
    } else {
        Session::None
    }
}

/// What an arc does to the data session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Session {
    /// Nothing: there is none on either side of the arc.
    None,
    /// A save session begins; the kernel returns its descriptor.
    OpensSave,
    /// A resume session begins; the kernel returns its descriptor.
    OpensResume,
    /// The save session goes on, the descriptor stays the same.
    KeepsSave,
    /// The save session is over; what was not read is lost.
    EndsSave,
    /// The resume session is over; the device checks what it was given, and may
    /// refuse the arc.
    EndsResume,
}

impl Session {
    /// Whether a descriptor is returned for the arc.
    pub const fn opens(self) -> bool {
        matches!(self, Session::OpensSave | Session::OpensResume)
    }

    /// Whether the session that was open before the arc is over after it.
    pub const fn ends(self) -> bool {
        matches!(self, Session::EndsSave | Session::EndsResume)
    }
}

/// The chain of arcs of one request, without allocation.
///
/// Iterates over the states it passes, without the one it starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    from: State,
    steps: [State; Path::LONGEST],
    len: u8,
}

impl Path {
    /// No path is longer: it would pass a state twice. (The longest is 4.)
    pub const LONGEST: usize = 7;

    /// The states passed, the target last.
    pub fn as_slice(&self) -> &[State] {
        &self.steps[..usize::from(self.len)]
    }

    /// The number of arcs.
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether the request does nothing, being for the state that the device is in.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The states passed, the target last.
    pub fn iter(&self) -> std::iter::Copied<std::slice::Iter<'_, State>> {
        self.as_slice().iter().copied()
    }

    /// The arcs, each as the state before and the state after it.
    pub fn arcs(&self) -> impl Iterator<Item = (State, State)> {
        std::iter::once(self.from).chain(self.iter()).zip(self.iter())
    }

    /// Whether the last arc opens a session, so that the request returns a data
    /// descriptor.
    pub fn opens_session(&self) -> bool {
        self.arcs().last().is_some_and(|(from, to)| session(from, to).opens())
    }
}

impl IntoIterator for Path {
    type Item = State;
    type IntoIter = std::iter::Take<std::array::IntoIter<State, { Path::LONGEST }>>;

    fn into_iter(self) -> Self::IntoIter {
        self.steps.into_iter().take(usize::from(self.len))
    }
}

impl<'a> IntoIterator for &'a Path {
    type Item = State;
    type IntoIter = std::iter::Copied<std::slice::Iter<'a, State>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Why there is no way from one state to another. The kernel says `EINVAL` to all of
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The device is in ERROR, which only a reset leaves.
    #[error("the device is in ERROR, which only a reset leaves")]
    FromError,
    /// ERROR cannot be asked for.
    #[error("ERROR cannot be asked for")]
    ToError,
    /// One of the two states is not among those of the device.
    #[error("state {state} is not among those of capability set {capabilities}")]
    Unsupported {
        /// The state that it does not have.
        state: State,
        /// What it has.
        capabilities: Capabilities,
    },
    /// From `STOP_COPY` back into pre-copy; reserved by the kernel for a future flag.
    #[error("there is no way from STOP_COPY to {to} inside one session")]
    BackToPreCopy {
        /// The state asked for, `PRE_COPY` or `PRE_COPY_P2P`.
        to: State,
    },
}

const fn check(
    capabilities: Capabilities,
    from: State,
    to: State,
) -> Result<(), Refusal> {
    match (from, to) {
        (State::Error, _) => Err(Refusal::FromError),
        (_, State::Error) => Err(Refusal::ToError),
        _ if !capabilities.supports(from) => {
            Err(Refusal::Unsupported { state: from, capabilities })
        }
        _ if !capabilities.supports(to) => {
            Err(Refusal::Unsupported { state: to, capabilities })
        }
        (State::StopCopy, State::PreCopy | State::PreCopyP2p) => {
            Err(Refusal::BackToPreCopy { to })
        }
        _ => Ok(()),
    }
}

/// The devices that have an arc.
#[derive(Clone, Copy)]
enum When {
    Always,
    P2p,
    NoP2p,
    PreCopy,
    PreCopyNoP2p,
    PreCopyAndP2p,
}

impl When {
    const fn holds(self, capabilities: Capabilities) -> bool {
        match self {
            When::Always => true,
            When::P2p => capabilities.p2p(),
            When::NoP2p => !capabilities.p2p(),
            When::PreCopy => capabilities.pre_copy(),
            When::PreCopyNoP2p => capabilities.pre_copy() && !capabilities.p2p(),
            When::PreCopyAndP2p => capabilities.pre_copy() && capabilities.p2p(),
        }
    }
}

/// Every arc that a driver of some capability set implements (document 002, and the
/// `PRE_COPY` arcs of Linux 6.2).
const ARCS: [(State, State, When); 18] = [
    (State::Resuming, State::Stop, When::Always),
    (State::Stop, State::Resuming, When::Always),
    (State::Stop, State::StopCopy, When::Always),
    (State::StopCopy, State::Stop, When::Always),
    (State::Running, State::Stop, When::NoP2p),
    (State::Stop, State::Running, When::NoP2p),
    (State::Running, State::RunningP2p, When::P2p),
    (State::RunningP2p, State::Running, When::P2p),
    (State::RunningP2p, State::Stop, When::P2p),
    (State::Stop, State::RunningP2p, When::P2p),
    (State::Running, State::PreCopy, When::PreCopy),
    (State::PreCopy, State::Running, When::PreCopy),
    (State::PreCopy, State::StopCopy, When::PreCopyNoP2p),
    (State::RunningP2p, State::PreCopyP2p, When::PreCopyAndP2p),
    (State::PreCopyP2p, State::RunningP2p, When::PreCopyAndP2p),
    (State::PreCopy, State::PreCopyP2p, When::PreCopyAndP2p),
    (State::PreCopyP2p, State::PreCopy, When::PreCopyAndP2p),
    (State::PreCopyP2p, State::StopCopy, When::PreCopyAndP2p),
];

/// By capability set, state and target: the state after the next arc.
type Table = [[[Option<State>; 8]; 8]; 4];

static NEXT: Table = tables();

const fn tables() -> Table {
    let mut table = [[[None; 8]; 8]; 4];
    let mut set = 0;
    while set < 4 {
        let mut from = 0;
        while from < 8 {
            let mut to = 0;
            while to < 8 {
                table[set][from][to] =
                    shortest(Capabilities::EVERY[set], State::ALL[from], State::ALL[to]);
                to += 1;
            }
            from += 1;
        }
        set += 1;
    }
    table
}

/// The first state on the shortest legal path, by distances to the target.
const fn shortest(capabilities: Capabilities, from: State, to: State) -> Option<State> {
    if from as u8 == to as u8 || check(capabilities, from, to).is_err() {
        return None;
    }
    const FAR: u8 = u8::MAX - 1;
    let within_session = from.is_saving() && to.is_saving();
    let mut distance = [FAR; 8];
    distance[to as usize] = 0;
    let mut first = None;
    // Each round makes all distances one longer right; no path is longer than 7.
    let mut round = 0;
    while round < Path::LONGEST {
        let mut at = 0;
        while at < ARCS.len() {
            let (before, after, when) = ARCS[at];
            at += 1;
            let interior = after as u8 != to as u8;
            let barred = interior && after.is_saving() && !within_session;
            let through = distance[after as usize] + 1;
            if when.holds(capabilities) && !barred && through < distance[before as usize]
            {
                distance[before as usize] = through;
                if before as u8 == from as u8 {
                    first = Some(after);
                }
            }
        }
        round += 1;
    }
    first
}
