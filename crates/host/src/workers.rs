//! Calls that may block for ever, made by threads that may be given up.

use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::Builder;
use std::time::Duration;

use control::TransportError;

use crate::device::refused;

/// How many threads of this process wait in a call that nobody waits for any more.
static STUCK: AtomicUsize = AtomicUsize::new(0);

/// How many threads are stuck in calls of devices that were given up, now and in the
/// whole process. A kernel that hangs holds them until it answers, or for ever.
pub fn stuck_threads() -> usize {
    STUCK.load(Ordering::Acquire)
}

/// Closes what belongs to a device that was given up, which may hang as well: in a thread
/// that is counted until that is done. Where there is none to be had it stays open.
pub(crate) fn let_go(what: impl Send + 'static) {
    let what = ManuallyDrop::new(what);
    STUCK.fetch_add(1, Ordering::AcqRel);
    let closing = Builder::new().name("kernel close".to_owned()).spawn(move || {
        drop(ManuallyDrop::into_inner(what));
        STUCK.fetch_sub(1, Ordering::AcqRel);
    });
    if closing.is_err() {
        STUCK.fetch_sub(1, Ordering::AcqRel);
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// The threads of one device: as many as calls run at once, each used again.
///
/// Nothing that a job uses may be borrowed from its caller, who may have gone on.
#[derive(Debug)]
pub(crate) struct Workers {
    name: String,
    idle: Mutex<Vec<Sender<Job>>>,
    lost: Arc<OnceLock<&'static str>>,
}

/// Whether the device has been given up: for jobs that would go on for ever.
#[derive(Clone, Debug)]
pub(crate) struct Lost(Arc<OnceLock<&'static str>>);

impl Lost {
    pub(crate) fn is_lost(&self) -> bool {
        self.0.get().is_some()
    }
}

impl Workers {
    pub(crate) fn new(name: &str) -> Workers {
        Workers { name: name.to_owned(), idle: Mutex::default(), lost: Arc::default() }
    }

    /// Whether the device has been given up.
    pub(crate) fn lost(&self) -> Lost {
        Lost(Arc::clone(&self.lost))
    }

    /// Has a thread make a call, and waits for it at most `limit`. Where it takes longer,
    /// the device is lost: no call is made any more.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        limit: Duration,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, TransportError> {
        if let Some(stuck) = self.lost.get() {
            let why = format!("it never answered to: {stuck}");
            let source = Some(std::io::Error::other(why));
            return Err(TransportError::Gone { operation, source });
        }
        let (tell, told) = channel();
        // Set by whoever comes first, the answer or the end of the wait.
        let over = Arc::new(AtomicBool::new(false));
        let answered = Arc::clone(&over);
        let job: Job = Box::new(move || {
            // What the job holds is let go of before anybody hears that it is done.
            let _ = tell.send(job());
            if answered.swap(true, Ordering::AcqRel) {
                STUCK.fetch_sub(1, Ordering::AcqRel);
            }
        });
        // Without a thread to be had nothing was asked, and the device is as it was.
        let worker = self.give(job).map_err(|error| refused(operation, &error))?;
        match told.recv_timeout(limit) {
            Ok(answer) => {
                self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(worker);
                Ok(answer)
            }
            Err(RecvTimeoutError::Timeout) => {
                STUCK.fetch_add(1, Ordering::AcqRel);
                let _ = self.lost.set(operation);
                if over.swap(true, Ordering::AcqRel) {
                    STUCK.fetch_sub(1, Ordering::AcqRel);
                }
                let millis = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
                tracing::error!(device = self.name, operation, millis, "lost");
                Err(TransportError::TimedOut { operation, millis })
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(TransportError::Gone { operation, source: None })
            }
        }
    }

    /// A thread that is idle, or a new one, gets the job.
    fn give(&self, job: Job) -> std::io::Result<Sender<Job>> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let (worker, job) = match idle {
            None => (self.start()?, job),
            Some(worker) => match worker.send(job) {
                Ok(()) => return Ok(worker),
                // It panicked, and is not there any more.
                Err(back) => (self.start()?, back.0),
            },
        };
        worker.send(job).map_err(|_| std::io::Error::other("a thread ended early"))?;
        Ok(worker)
    }

    fn start(&self) -> std::io::Result<Sender<Job>> {
        let (give, jobs) = channel::<Job>();
        Builder::new().name("kernel call".to_owned()).spawn(move || {
            for job in jobs {
                job();
            }
        })?;
        Ok(give)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::tests::fake::{SOON, wait_until};

    #[test]
    fn threads_are_used_again_and_not_one_a_call() {
        let workers = Workers::new("test");
        let me = || std::thread::current().id();
        let first = workers.run("ask", SOON, me).unwrap();
        assert_eq!(workers.run("ask", SOON, me).unwrap(), first);
        assert_ne!(first, me());
    }

    #[test]
    fn a_kernel_that_never_answers_costs_a_thread_and_not_the_migration() {
        let workers = Workers::new("test");
        let (answer, wait) = channel::<()>();
        let late = workers.run("hang", Duration::from_millis(10), move || wait.recv());
        assert!(matches!(late, Err(TransportError::TimedOut { millis: 10, .. })));
        assert!(workers.lost().is_lost());
        assert!(stuck_threads() > 0, "a thread that is stuck is counted");
        let refused = workers.run("ask", SOON, || ()).unwrap_err();
        assert!(matches!(refused, TransportError::Gone { .. }));
        // When the kernel answers after all, the thread ends.
        answer.send(()).unwrap();
        wait_until(|| stuck_threads() == 0);
    }

    #[test]
    fn a_close_that_never_returns_is_counted_and_not_waited_for() {
        struct Stuck(std::sync::mpsc::Receiver<()>, Sender<usize>);
        impl Drop for Stuck {
            fn drop(&mut self) {
                let _ = self.1.send(stuck_threads());
                let _ = self.0.recv_timeout(SOON);
            }
        }
        let (go_on, wait) = channel();
        let (tell, counted) = channel();
        let_go(Stuck(wait, tell));
        assert!(counted.recv_timeout(SOON).unwrap() > 0);
        drop(go_on);
        wait_until(|| stuck_threads() == 0);
    }

    #[test]
    fn a_call_that_panics_is_an_error_and_the_next_one_is_made() {
        let workers = Workers::new("test");
        let failed = workers.run("ask", SOON, || panic!("on purpose"));
        assert!(matches!(failed, Err(TransportError::Gone { .. })));
        assert_eq!(workers.run("ask", SOON, || 7).unwrap(), 7);
    }
}
