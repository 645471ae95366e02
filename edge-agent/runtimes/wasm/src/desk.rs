//! Where the socket's thread asks a workload how it is. The workload answers between two of its own calls, on its own
//! thread, since a component can be in one call at a time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// How long the socket's thread waits for an answer; the agent gives up after twice that.
const ANSWER_WAIT: Duration = Duration::from_secs(1);

/// What a workload says of its health: well, or why not.
pub(crate) type HealthAnswer = Result<(), String>;
/// Numbers by name.
pub(crate) type MetricsAnswer = BTreeMap<String, f64>;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unanswered {
    /// The workload is not of a kind that can be asked.
    #[error("the workload cannot be asked")]
    Nobody,
    /// It ended instead of answering.
    #[error("the workload ended while it was asked")]
    Ended,
    /// It is in another call.
    #[error("no answer within {ANSWER_WAIT:?}: `{call}` has been running for {:.1} s", .since.as_secs_f64())]
    Busy {
        /// Which one.
        call: &'static str,
        /// For how long.
        since: Duration,
    },
}

/// Which questions wait for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) health: Option<u64>,
    pub(crate) metrics: Option<u64>,
}

#[derive(Default)]
pub(crate) struct Desk {
    board: Mutex<Board>,
    answered: Condvar,
    /// Wakes the workload's thread for a question or a stop.
    pub(crate) bell: Notify,
    stop_asked: AtomicBool,
}

#[derive(Default)]
struct Board {
    /// A workload that answers is there.
    open: bool,
    health: Slot<HealthAnswer>,
    metrics: Slot<MetricsAnswer>,
    /// The call that it is in.
    call: Option<(&'static str, Instant)>,
}

/// One kind of question, counted.
struct Slot<T> {
    asked: u64,
    answered: u64,
    last: Option<T>,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Slot {
            asked: 0,
            answered: 0,
            last: None,
        }
    }
}

impl<T> Slot<T> {
    fn waiting(&self) -> Option<u64> {
        (self.asked > self.answered).then_some(self.asked)
    }

    fn answer(&mut self, number: u64, answer: T) {
        self.answered = self.answered.max(number);
        self.last = Some(answer);
    }
}

impl Desk {
    fn board(&self) -> MutexGuard<'_, Board> {
        // What is on the board is whole after each statement, also where a panic interrupted.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on there is a workload that answers.
    pub(crate) fn open(&self) {
        self.board().open = true;
    }

    /// True once somebody answers here: such a workload is asked to stop before it is made to.
    pub(crate) fn is_open(&self) -> bool {
        self.board().open
    }

    /// The workload is gone; whoever waits stops waiting.
    pub(crate) fn close(&self) {
        self.board().open = false;
        self.answered.notify_all();
    }

    /// Asks the workload to end by itself.
    pub(crate) fn ask_stop(&self) {
        self.stop_asked.store(true, Ordering::Release);
        self.bell.notify_one();
    }

    pub(crate) fn stop_asked(&self) -> bool {
        self.stop_asked.load(Ordering::Acquire)
    }

    /// Notes which call the workload is in, so that one that hangs can be named.
    pub(crate) fn entering(&self, call: &'static str) {
        self.board().call = Some((call, Instant::now()));
    }

    pub(crate) fn left(&self) {
        self.board().call = None;
    }

    /// What is to be answered now.
    pub(crate) fn asked(&self) -> Asked {
        let board = self.board();
        Asked {
            health: board.health.waiting(),
            metrics: board.metrics.waiting(),
        }
    }

    pub(crate) fn answer_health(&self, number: u64, answer: HealthAnswer) {
        self.board().health.answer(number, answer);
        self.answered.notify_all();
    }

    pub(crate) fn answer_metrics(&self, number: u64, answer: MetricsAnswer) {
        self.board().metrics.answer(number, answer);
        self.answered.notify_all();
    }

    pub(crate) fn ask_health(&self) -> Result<HealthAnswer, Unanswered> {
        self.ask(|board| &mut board.health)
    }

    pub(crate) fn ask_metrics(&self) -> Result<MetricsAnswer, Unanswered> {
        self.ask(|board| &mut board.metrics)
    }

    fn ask<T: Clone>(&self, slot: impl Fn(&mut Board) -> &mut Slot<T>) -> Result<T, Unanswered> {
        let mut board = self.board();
        if !board.open {
            return Err(Unanswered::Nobody);
        }
        slot(&mut board).asked += 1;
        let number = slot(&mut board).asked;
        self.bell.notify_one();
        let waits = |board: &mut Board| board.open && slot(board).answered < number;
        let waited = self.answered.wait_timeout_while(board, ANSWER_WAIT, waits);
        let (mut board, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let answered = slot(&mut board).answered >= number;
        match (answered, slot(&mut board).last.clone(), board.call, board.open) {
            (true, Some(answer), ..) => Ok(answer),
            (.., false) => Err(Unanswered::Ended),
            (.., call, true) => {
                // Between two calls only for a moment, unless the whole machine is overloaded.
                let (call, since) = call.unwrap_or(("none", Instant::now()));
                Err(Unanswered::Busy {
                    call,
                    since: since.elapsed(),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn nobody_answers_at_a_closed_desk() {
        assert!(matches!(Desk::default().ask_health(), Err(Unanswered::Nobody)));
    }

    #[test]
    fn a_question_is_answered_by_the_other_thread() {
        let desk = Arc::new(Desk::default());
        desk.open();
        let workload = desk.clone();
        let thread = std::thread::spawn(move || {
            loop {
                let asked = workload.asked();
                if let Some(number) = asked.health {
                    workload.answer_health(number, Err("too hot".into()));
                    assert_eq!(asked.metrics, None);
                    return;
                }
                std::thread::yield_now();
            }
        });
        assert_eq!(desk.ask_health().unwrap(), Err("too hot".to_owned()));
        thread.join().unwrap();
    }

    #[test]
    fn a_workload_that_hangs_is_named_with_its_call() {
        let desk = Desk::default();
        desk.open();
        desk.entering("step");
        let message = desk.ask_health().unwrap_err().to_string();
        assert!(message.contains("`step` has been running for"), "{message}");
    }
}
