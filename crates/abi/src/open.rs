//! How numbers of others are written down.

/// A foreign number: any value, some of which have names.
///
/// Makes the type, its constants, `name` and a `Display` that shows the name, or the
/// number where there is none.
macro_rules! open_number {
    (
        $(#[$meta:meta])*
        $type:ident($int:ty), $unknown:literal;
        $($(#[$doc:meta])* $name:ident = $value:expr,)*
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(pub $int);

        impl $type {
            $($(#[$doc])* pub const $name: $type = $type($value);)*

            /// Every number that has a name here, in the order of the constants.
            pub const NAMED: &[$type] = &[$($type::$name),*];

            /// The name of the constant, or `None` for a number without one.
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $($type::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }

        impl core::fmt::Display for $type {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self.name() {
                    Some(name) => f.pad(name),
                    None => write!(f, concat!($unknown, " {}"), self.0),
                }
            }
        }
    };
}

/// Asserts the size, alignment and offsets of a structure for which no published
/// bindings exist. The others are checked in `tests/layout.rs`.
macro_rules! layout {
    ($type:ty, size $size:literal, align $align:literal $(, $field:ident at $offset:literal)*) => {
        const _: () = {
            assert!(size_of::<$type>() == $size);
            assert!(align_of::<$type>() == $align);
            $(assert!(core::mem::offset_of!($type, $field) == $offset);)*
        };
    };
}
