//! Source, sink and device set as pure machines, explored: every answer that their
//! surroundings may give, in every order, with faults and hostile words in between.
//!
//! The surroundings are a model: what became of devices, vCPUs and the store. Each
//! action adds the answers that may come; the explorer delivers any of them next. Some
//! answers are faults, and some events come unasked; each path has a budget of those.
//! Where no answer is outstanding, the deadline comes. Every path has to end.

mod devices;
mod explorer;
mod hiccup;
mod sink;
mod source;
