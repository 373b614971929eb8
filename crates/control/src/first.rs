//! Several sources of dirty bits for the same writes, of which one is enough.

use dirty::{IovaRange, PageSize};
use port::{DirtyReport, DirtySource, SourceError, Space};

/// The first of several sources that starts. Each of them knows of all writes, the first
/// most exactly.
pub(crate) struct FirstThatStarts {
    /// At least one.
    sources: Vec<Box<dyn DirtySource>>,
    /// The one that was started last, or the first.
    chosen: usize,
    /// How many were tried since the last stop.
    tried: usize,
}

impl FirstThatStarts {
    /// One of `sources`, in their order; `None` of none.
    pub(crate) fn of(
        sources: impl IntoIterator<Item = Box<dyn DirtySource>>,
    ) -> Option<Box<dyn DirtySource>> {
        let mut sources: Vec<Box<dyn DirtySource>> = sources.into_iter().collect();
        match sources.len() {
            0 | 1 => sources.pop(),
            _ => Some(Box::new(FirstThatStarts { sources, chosen: 0, tried: 0 })),
        }
    }

    fn chosen(&mut self) -> &mut dyn DirtySource {
        &mut *self.sources[self.chosen]
    }
}

impl DirtySource for FirstThatStarts {
    fn name(&self) -> &str {
        self.sources[self.chosen].name()
    }

    fn space(&self) -> Space {
        self.sources[self.chosen].space()
    }

    fn goes_with_mappings(&self) -> Option<PageSize> {
        self.sources[self.chosen].goes_with_mappings()
    }

    fn start(&mut self, ranges: &[IovaRange], page: PageSize) -> Result<(), SourceError> {
        let mut first = None;
        for (number, source) in self.sources.iter_mut().enumerate() {
            self.tried = self.tried.max(number + 1);
            match source.start(ranges, page) {
                Ok(()) => {
                    self.chosen = number;
                    return Ok(());
                }
                Err(error) => {
                    tracing::info!(
                        log = source.name(),
                        error = &error as &dyn std::error::Error,
                        "does not start"
                    );
                    // What the best of them lacks is what people can do something about.
                    first.get_or_insert(error);
                }
            }
        }
        self.chosen = 0;
        first.map_or(Ok(()), Err)
    }

    fn collect(
        &mut self,
        range: IovaRange,
        found: &mut dyn FnMut(DirtyReport<'_>),
    ) -> Result<(), SourceError> {
        self.chosen().collect(range, found)
    }

    /// Those that did not start too, since each knows best what it began; and none that
    /// was not tried, which somebody else may use.
    fn stop(&mut self) -> Result<(), SourceError> {
        let mut stopped = Ok(());
        for source in &mut self.sources[..std::mem::take(&mut self.tried)] {
            stopped = stopped.and(source.stop());
        }
        stopped
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    type Calls = Arc<Mutex<Vec<String>>>;

    struct Source(&'static str, bool, Calls);

    impl Source {
        fn note(&self, call: &str) {
            self.2.lock().unwrap().push(format!("{} {call}", self.0));
        }
    }

    impl DirtySource for Source {
        fn name(&self) -> &str {
            self.0
        }

        fn goes_with_mappings(&self) -> Option<PageSize> {
            (self.0 == "container").then_some(PageSize::FOUR_K)
        }

        fn space(&self) -> Space {
            Space::Iova
        }

        fn start(&mut self, _: &[IovaRange], _: PageSize) -> Result<(), SourceError> {
            self.note("start");
            match self.1 {
                true => Ok(()),
                false => Err(SourceError::new(self.0, "start", "on purpose")),
            }
        }

        fn collect(
            &mut self,
            _: IovaRange,
            _: &mut dyn FnMut(DirtyReport<'_>),
        ) -> Result<(), SourceError> {
            self.note("collect");
            Ok(())
        }

        fn stop(&mut self) -> Result<(), SourceError> {
            self.note("stop");
            Ok(())
        }
    }

    fn used(log: bool, container: bool) -> (Result<(), String>, Vec<String>) {
        let calls = Calls::default();
        let source = |name, starts| {
            Box::new(Source(name, starts, Arc::clone(&calls))) as Box<dyn DirtySource>
        };
        let both = [source("log", log), source("container", container)];
        let mut one = FirstThatStarts::of(both).unwrap();
        let range = IovaRange::new(0, 4096).unwrap();
        let started = one.start(&[range], PageSize::FOUR_K);
        let started = started.map_err(|error| error.name);
        if started.is_ok() {
            one.collect(range, &mut |_| ()).unwrap();
            one.stop().unwrap();
        }
        let calls = calls.lock().unwrap().clone();
        (started, calls)
    }

    #[test]
    fn a_log_that_never_reports_is_not_the_end_while_somebody_else_counts() {
        let (started, calls) = used(false, true);
        assert_eq!(started, Ok(()));
        let container = ["log start", "container start", "container collect"];
        // The log may be on all the same, and nobody else would end it.
        assert_eq!(calls, [&container[..], &["log stop", "container stop"]].concat());
    }

    #[test]
    fn what_a_container_counted_is_asked_for_when_its_mapping_is_gone() {
        let range = IovaRange::new(0, 4096).unwrap();
        for (log, goes) in [(true, None), (false, Some(PageSize::FOUR_K))] {
            let source = |name, starts| {
                Box::new(Source(name, starts, Calls::default())) as Box<dyn DirtySource>
            };
            let both = [source("log", log), source("container", true)];
            let mut one = FirstThatStarts::of(both).unwrap();
            one.start(&[range], PageSize::FOUR_K).unwrap();
            assert_eq!(one.goes_with_mappings(), goes);
        }
    }

    #[test]
    fn what_counts_worse_is_left_alone_where_the_log_starts() {
        let (started, calls) = used(true, true);
        assert_eq!(started, Ok(()));
        assert_eq!(calls, ["log start", "log collect", "log stop"]);
        let (started, _) = used(false, false);
        assert_eq!(started, Err("log".to_owned()), "the best one's reason is told");
    }
}
