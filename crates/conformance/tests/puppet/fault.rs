//! What can be wrong with a device.

use states::v2::State;

/// What is wrong with the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Migration flags that nobody defined.
    Flags,
    /// PROBE does not know what GET does.
    ProbeHides,
    /// PROBE says that everything can be set.
    ProbeBoasts,
    /// Every feature exists.
    AnyFeature,
    /// `argsz` is not looked at.
    AnyArgsz,
    /// It begins in STOP.
    BeginsStopped,
    /// A reset leaves the state as it is in STOP.
    NoReset,
    /// It leaves PRE_COPY by itself after a while.
    Wanders,
    /// A SET from that state is done, and does nothing.
    Ignores(State),
    /// ERROR can be asked for.
    TakesError,
    /// PRE_COPY follows STOP_COPY.
    GoesBack,
    /// A SET to the same state opens another session.
    Reopens,
    /// A SET to STOP_COPY in STOP_COPY begins its data again.
    Rewinds,
    /// Its descriptors are inherited.
    Inherited,
    /// A byte is lost on the way from PRE_COPY to STOP_COPY.
    LosesByte,
    /// A session that is over can still be used.
    Stale,
    /// Data can be had without a session.
    Sessionless,
    /// Closing a descriptor resets the device.
    ClosingEnds,
    /// After a SET that failed it runs.
    FailsOnward,
    /// It says that a session was opened where no descriptor was left.
    NoDescriptor,
    /// It is in ERROR, and a request leads out of it.
    LeavesError,
    /// Config space is gone in STOP.
    NoConfig,
    /// What it saves changes while it is stopped.
    Restless,
    /// The temporary end is 0.
    ZeroEnd,
    /// After the end of STOP_COPY comes ENOMSG.
    EndsTwice,
    /// There are no initial bytes.
    NoInitial,
    /// The initial bytes rise.
    Rises,
    /// Pre-copy is told about in STOP_COPY.
    InfoAnywhere,
    /// A short structure is filled.
    ShortInfo,
    /// REINIT is told to everybody.
    AlwaysReinit,
    /// The flags are what was given.
    EchoesFlags,
    /// The size is an errno.
    ErrnoSize,
    /// The size is 1.
    SmallSize,
    /// A read of 7 bytes loses one.
    DropsOnRead,
    /// The second write is forgotten.
    SecondWrite,
    /// A read of nothing is the end.
    NothingEnds,
    /// Whatever is loaded is taken.
    TakesAll,
    /// What was refused is taken the second time.
    Moody,
    /// A write that failed is forgotten at the end.
    Forgives,
    /// Every range and page size can be logged.
    LogsAll,
    /// The DMA log never reports.
    NoReport,
    /// A report succeeds whatever it is of.
    ReportsAll,
    /// A STOP of the log breaks it for good.
    StopBreaks,
    /// The request for STOP_COPY never comes back.
    Wedged,
    /// A reset never comes back.
    WedgedReset,
    /// The process that serves it is gone after that many calls.
    Gone(usize),
    /// The data of STOP_COPY never ends.
    Endless,
    /// There is no data in STOP_COPY.
    Empty,
    /// More bytes are read than there was room for.
    Overlong,
}
