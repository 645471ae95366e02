//! Newcomers at the gateway's door: what they ask goes up signed by the gateway, and the hub's answers come back to them.

use std::collections::BTreeMap;

use cnova_shared::ids::NodeId;
use cnova_shared::wire::v1::{self, EnrolAnswer, EnrolRefused, EnrolStep};

/// Steps of newcomers that wait for the hub at once; more are told to come again.
pub const NEWCOMERS_WAITING: usize = 64;
/// The hub has this long to answer a step, milliseconds.
pub const ANSWER_WITHIN_MS: u64 = 15_000;
/// A step that was not answered goes up again after this, milliseconds: a message may be lost on any link.
pub const ASK_AGAIN_MS: u64 = 4_000;

/// Names a newcomer's question; the daemon chooses it.
pub type DoorId = u64;

#[derive(Debug)]
struct Waiting {
    door: DoorId,
    enrol: v1::Enrol,
    again_ms: u64,
    until_ms: u64,
}

/// Those whose steps wait for an answer.
#[derive(Debug)]
pub(crate) struct Newcomers {
    me: NodeId,
    waiting: BTreeMap<u64, Waiting>,
    next: u64,
}

/// What came of looking at the time.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Ask(v1::Enrol),
    GiveUp(DoorId, EnrolAnswer),
}

impl Newcomers {
    /// `first` differs on every start: the hub remembers what it answered to which ticket.
    pub(crate) fn new(me: NodeId, first: u64) -> Self {
        Self {
            me,
            waiting: BTreeMap::new(),
            next: first,
        }
    }

    /// A newcomer's step; an answer when there is one at once.
    pub(crate) fn ask(
        &mut self,
        door: DoorId,
        step: EnrolStep,
        connected: bool,
        mono_ms: u64,
    ) -> Result<(), EnrolAnswer> {
        if matches!(step, EnrolStep::Renew { .. } | EnrolStep::Unknown) {
            return Err(refused(
                "step",
                "this step cannot be taken at the door".into(),
                "a node renews its certificate over its own link",
                false,
            ));
        }
        if !connected {
            return Err(self.away());
        }
        if self.waiting.len() >= NEWCOMERS_WAITING {
            let message = format!("{NEWCOMERS_WAITING} newcomers wait at {} already", self.me);
            return Err(refused("busy", message, "try again", true));
        }
        self.next = self.next.wrapping_add(1);
        let enrol = v1::Enrol {
            v: v1::VERSION,
            ticket: self.next,
            step,
        };
        let waiting = Waiting {
            door,
            enrol,
            again_ms: mono_ms,
            until_ms: mono_ms + ANSWER_WITHIN_MS,
        };
        self.waiting.insert(self.next, waiting);
        Ok(())
    }

    /// The hub answered.
    pub(crate) fn answered(&mut self, enrolled: v1::Enrolled) -> Option<(DoorId, EnrolAnswer)> {
        let waiting = self.waiting.remove(&enrolled.ticket)?;
        Some((waiting.door, enrolled.answer))
    }

    /// The newcomer has gone.
    pub(crate) fn gone(&mut self, door: DoorId) {
        self.waiting.retain(|_, w| w.door != door);
    }

    /// The next thing that time brings.
    pub(crate) fn poll(&mut self, connected: bool, mono_ms: u64) -> Option<Due> {
        let late = self
            .waiting
            .iter()
            .find(|(_, w)| w.until_ms <= mono_ms)
            .map(|(ticket, _)| *ticket);
        if let Some(waiting) = late.and_then(|ticket| self.waiting.remove(&ticket)) {
            return Some(Due::GiveUp(waiting.door, self.away()));
        }
        if !connected {
            return None;
        }
        let due = self.waiting.values_mut().find(|w| w.again_ms <= mono_ms)?;
        due.again_ms = mono_ms + ASK_AGAIN_MS;
        Some(Due::Ask(due.enrol.clone()))
    }

    /// When [`Newcomers::poll`] has something, monotonic milliseconds.
    pub(crate) fn timeout(&self, connected: bool) -> Option<u64> {
        let at = |w: &Waiting| {
            if connected {
                w.again_ms.min(w.until_ms)
            } else {
                w.until_ms
            }
        };
        self.waiting.values().map(at).min()
    }

    fn away(&self) -> EnrolAnswer {
        let message = format!("the hub cannot be reached through {}", self.me);
        refused("hub-away", message, "try again", true)
    }
}

fn refused(gate: &str, message: String, advice: &str, passing: bool) -> EnrolAnswer {
    EnrolAnswer::Refused(EnrolRefused {
        gate: gate.into(),
        message,
        advice: advice.into(),
        passing,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newcomers() -> Newcomers {
        Newcomers::new(NodeId::new("gw-1").unwrap(), 40)
    }

    fn finish() -> EnrolStep {
        EnrolStep::Finish(v1::EnrolFinish {
            session: vec![1],
            proof: vec![2],
        })
    }

    fn gate(answer: &EnrolAnswer) -> &str {
        match answer {
            EnrolAnswer::Refused(r) => &r.gate,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_step_goes_up_again_until_it_is_answered() {
        let mut n = newcomers();
        n.ask(1, finish(), true, 0).unwrap();
        let Some(Due::Ask(enrol)) = n.poll(true, 0) else {
            panic!("asked at once")
        };
        assert_eq!((n.poll(true, 1), n.timeout(true)), (None, Some(ASK_AGAIN_MS)));
        assert_eq!(
            n.poll(true, ASK_AGAIN_MS),
            Some(Due::Ask(enrol.clone())),
            "the same ticket"
        );
        let answer = EnrolAnswer::Unknown;
        let enrolled = v1::Enrolled {
            v: 1,
            ticket: enrol.ticket,
            answer: answer.clone(),
        };
        assert_eq!(n.answered(enrolled.clone()), Some((1, answer)));
        assert_eq!((n.answered(enrolled), n.timeout(true)), (None, None), "once");
    }

    #[test]
    fn a_hub_that_is_away_is_named_with_the_gateway() {
        let mut n = newcomers();
        let at_once = n.ask(1, finish(), false, 0).unwrap_err();
        assert_eq!(gate(&at_once), "hub-away");
        n.ask(2, finish(), true, 0).unwrap();
        assert!(n.poll(true, 0).is_some());
        assert_eq!(n.poll(false, ASK_AGAIN_MS), None, "nothing goes up a link that is down");
        assert_eq!(n.timeout(false), Some(ANSWER_WITHIN_MS));
        match n.poll(false, ANSWER_WITHIN_MS) {
            Some(Due::GiveUp(2, EnrolAnswer::Refused(r))) => {
                assert_eq!(r.message, "the hub cannot be reached through gw-1");
                assert!(r.passing);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_so_many_wait_and_only_with_steps_of_newcomers() {
        let mut n = newcomers();
        for door in 0..NEWCOMERS_WAITING as u64 {
            n.ask(door, finish(), true, 0).unwrap();
        }
        assert_eq!(gate(&n.ask(99, finish(), true, 0).unwrap_err()), "busy");
        n.gone(3);
        n.ask(99, finish(), true, 0).unwrap();
        assert_eq!(
            gate(&newcomers().ask(1, EnrolStep::Unknown, true, 0).unwrap_err()),
            "step"
        );
    }
}
