//! Interrupting a long call: the calling thread asks its caller now and then whether to stop.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use rayon::ThreadPool;

/// How often the caller is asked.
const PERIOD: Duration = Duration::from_millis(50);

/// Blocks of states between two looks at the clock when the calling thread works itself.
const TICKS: u32 = 16;

/// Carries the wish to stop to all workers of one call.
pub struct Watch<'a> {
    poll: &'a (dyn Fn() -> bool + Sync),
    stop: AtomicBool,
    /// Whether the calling thread does the work and must poll between blocks.
    inline: AtomicBool,
    ticks: AtomicU32,
    start: Instant,
    next_poll: AtomicU64,
}

impl<'a> Watch<'a> {
    /// `poll` is called on the calling thread only; true means stop.
    pub fn new(poll: &'a (dyn Fn() -> bool + Sync)) -> Self {
        Watch {
            poll,
            stop: AtomicBool::new(false),
            inline: AtomicBool::new(false),
            ticks: AtomicU32::new(0),
            start: Instant::now(),
            next_poll: AtomicU64::new(PERIOD.as_millis() as u64),
        }
    }

    /// Called once a block; true if the work should be abandoned.
    #[inline]
    pub(crate) fn tick(&self) -> bool {
        if self.inline.load(Ordering::Relaxed) {
            return self.tick_here();
        }
        self.stopped()
    }

    /// Called now and then on the calling thread; true if the work should be abandoned.
    #[inline]
    pub fn tick_here(&self) -> bool {
        let ticks = self.ticks.load(Ordering::Relaxed).wrapping_add(1);
        self.ticks.store(ticks, Ordering::Relaxed);
        if ticks.is_multiple_of(TICKS) {
            self.look_at_the_clock();
        }
        self.stopped()
    }

    /// As [`Watch::tick_here`], for work in long pieces: looks at the clock every time.
    pub(crate) fn look(&self) -> bool {
        self.look_at_the_clock();
        self.stopped()
    }

    fn look_at_the_clock(&self) {
        let now = self.start.elapsed().as_millis() as u64;
        if now >= self.next_poll.load(Ordering::Relaxed) {
            self.next_poll
                .store(now + PERIOD.as_millis() as u64, Ordering::Relaxed);
            self.ask();
        }
    }

    fn ask(&self) {
        if (self.poll)() {
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the work should be abandoned.
    #[inline]
    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Runs `work` in the pool while the calling thread polls; without a pool, here.
    pub(crate) fn run<R: Send>(
        &self,
        pool: Option<&ThreadPool>,
        work: impl FnOnce() -> R + Send,
    ) -> R {
        let Some(pool) = pool else {
            self.inline.store(true, Ordering::Relaxed);
            return work();
        };
        let (sender, receiver) = mpsc::channel();
        pool.in_place_scope(|scope| {
            scope.spawn(move |_| {
                // fails only if the receiver is gone, and then nobody waits
                let _ = sender.send(work());
            });
            loop {
                match receiver.recv_timeout(PERIOD) {
                    Ok(result) => break Some(result),
                    Err(RecvTimeoutError::Timeout) => self.ask(),
                    // the worker panicked: the scope passes the panic on
                    Err(RecvTimeoutError::Disconnected) => break None,
                }
            }
        })
        .expect("the scope passes on the panic of a worker that sent nothing")
    }
}
