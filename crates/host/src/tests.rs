//! What kernels and drivers do differently, replayed: the tables of their quirks, asked
//! by way of `control` as a migration would.

pub(crate) mod fake;
mod opening;
mod quirks;
mod sessions;
mod space;
