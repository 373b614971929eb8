//! Which of the optional states a device has.

use super::State;
use std::fmt;

/// One of the four capability sets that the uAPI defines for
/// `VFIO_DEVICE_FEATURE_MIGRATION`: 1, 3, 5 and 7.
///
/// Any other set is refused, with its number: the kernel says of them "other
/// combinations of flags have behavior to be defined in the future".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Capabilities(u8);

impl Capabilities {
    /// Set 1: STOP, RUNNING, `STOP_COPY` and RESUMING.
    pub const STOP_COPY: Capabilities = Capabilities(1);
    /// Set 3: and `RUNNING_P2P`.
    pub const P2P: Capabilities = Capabilities(3);
    /// Set 5: set 1 and `PRE_COPY`.
    pub const PRE_COPY: Capabilities = Capabilities(5);
    /// Set 7: all states.
    pub const ALL: Capabilities = Capabilities(7);
    /// The four sets, smallest first.
    pub const EVERY: [Capabilities; 4] =
        [Self::STOP_COPY, Self::P2P, Self::PRE_COPY, Self::ALL];

    /// The set that a device announces by `flags`.
    ///
    /// # Errors
    ///
    /// [`UnknownCapabilities`] for anything but 1, 3, 5 and 7.
    pub const fn try_from_flags(flags: u64) -> Result<Self, UnknownCapabilities> {
        match flags {
            1 | 3 | 5 | 7 => Ok(Capabilities(flags as u8)),
            _ => Err(UnknownCapabilities(flags)),
        }
    }

    /// The flags of `struct vfio_device_feature_migration`.
    pub const fn flags(self) -> u64 {
        self.0 as u64
    }

    /// Whether the device has the P2P states.
    pub const fn p2p(self) -> bool {
        self.0 & 2 != 0
    }

    /// Whether the device can be read while it works.
    pub const fn pre_copy(self) -> bool {
        self.0 & 4 != 0
    }

    /// Whether a device with this set may be asked for `state`, or be in it.
    ///
    /// False for ERROR: a device can fall into it, but nobody can count on it.
    pub const fn supports(self, state: State) -> bool {
        match state {
            State::Error => false,
            State::Stop | State::Running | State::StopCopy | State::Resuming => true,
            State::RunningP2p => self.p2p(),
            State::PreCopy => self.pre_copy(),
            State::PreCopyP2p => self.p2p() && self.pre_copy(),
        }
    }

    /// The states of this set, by number.
    pub fn states(self) -> impl Iterator<Item = State> {
        State::ALL.into_iter().filter(move |state| self.supports(*state))
    }

    /// The position in [`Self::EVERY`].
    pub(super) const fn index(self) -> usize {
        (self.0 >> 1) as usize
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl TryFrom<u64> for Capabilities {
    type Error = UnknownCapabilities;

    fn try_from(flags: u64) -> Result<Self, UnknownCapabilities> {
        Self::try_from_flags(flags)
    }
}

/// Migration flags that are none of the four defined sets. Holds the flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("migration capabilities {0} ({0:#x}) are none of the defined sets 1, 3, 5 and 7")]
pub struct UnknownCapabilities(pub u64);
