//! One hop of the report stream: a sender that repeats until it hears, a receiver that takes each thing once.
//!
//! Both ends hold a [`Position`]. A message covers `from < seq <= to`. The receiver takes it when nothing before it is
//! missing, stores it, and acknowledges cumulatively. Nothing relies on the transport: messages may be lost, doubled
//! or swapped. Either side may lose its store: a receiver that knows less than the sender believed says so with its
//! acknowledgement, and a sender whose stream began anew takes a higher incarnation.

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::time::Backoff;

/// A place in a stream; incarnations are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Position {
    /// Which life of the sender's store.
    pub incarnation: u64,
    /// The last sequence number.
    pub seq: u64,
}

/// What a receiver does with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admit {
    /// Take it, store the new position, then acknowledge.
    Fresh(Position),
    /// It was taken before; acknowledge again.
    Duplicate,
    /// Something before it is missing; acknowledge what is held, so that the sender goes back.
    Gap,
}

/// Decides on a message that covers `from..=to` of `incarnation`, when `held` was taken so far.
#[must_use]
pub fn admit(held: Position, incarnation: u64, from: u64, to: u64) -> Admit {
    if incarnation < held.incarnation {
        return Admit::Duplicate;
    }
    let last = if incarnation == held.incarnation { held.seq } else { 0 };
    if to <= last && incarnation == held.incarnation {
        Admit::Duplicate
    } else if from > last {
        Admit::Gap
    } else {
        Admit::Fresh(Position { incarnation, seq: to })
    }
}

/// What an acknowledgement meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckEffect {
    /// Nothing new.
    Nothing,
    /// Everything up to this sequence number is safe with the parent.
    Advanced(u64),
    /// The parent has less than it once acknowledged: it lost its store. Everything is to be sent again, in a new
    /// incarnation.
    Regressed,
    /// The parent knows a later incarnation: this stream must begin anew with a higher one.
    Outlived {
        /// The incarnation to take.
        take: u64,
    },
}

/// The sending end. It holds numbers only; what is sent lives in the owner's store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender {
    incarnation: u64,
    acked: u64,
    sent: u64,
    unacked_batches: usize,
    connected: bool,
    backoff: Backoff,
    resend_at: Option<u64>,
}

impl Sender {
    /// A sender whose parent had acknowledged `acked` when the store was last written.
    #[must_use]
    pub fn new(incarnation: u64, acked: u64) -> Self {
        Self {
            incarnation,
            acked,
            sent: acked,
            unacked_batches: 0,
            connected: false,
            backoff: Backoff::default(),
            resend_at: None,
        }
    }

    /// The stream's incarnation.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// The last sequence number that the parent holds.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// The parent can be reached: what it did not acknowledge is sent again.
    pub fn connected(&mut self) {
        self.connected = true;
        self.backoff.reset();
        self.rewind();
    }

    /// The parent cannot be reached.
    pub fn disconnected(&mut self) {
        self.connected = false;
        self.rewind();
    }

    fn rewind(&mut self) {
        self.sent = self.acked;
        self.unacked_batches = 0;
        self.resend_at = None;
    }

    /// The sequence number after which to send now, when `newest` is the last one in the store.
    #[must_use]
    pub fn ready(&self, newest: u64) -> Option<u64> {
        (self.connected && newest > self.sent && self.unacked_batches < limits::HOP_WINDOW).then_some(self.sent)
    }

    /// A batch up to `to` was handed to the transport.
    pub fn sent(&mut self, to: u64, mono_ms: u64) {
        self.sent = self.sent.max(to);
        self.unacked_batches += 1;
        if self.resend_at.is_none() {
            self.resend_at = Some(mono_ms + self.backoff.next_pause());
        }
    }

    /// An acknowledgement came; `welcome` when it is the answer to a hello, and so the parent's word of now.
    pub fn on_ack(&mut self, ack: Position, welcome: bool, mono_ms: u64) -> AckEffect {
        if ack.incarnation > self.incarnation {
            self.incarnation = ack.incarnation.saturating_add(1);
            self.acked = 0;
            self.rewind();
            return AckEffect::Outlived { take: self.incarnation };
        }
        let same_life = ack.incarnation == self.incarnation;
        let seq = if same_life { ack.seq } else { 0 };
        if same_life && seq < self.acked && !welcome {
            // An old acknowledgement that was overtaken on its way.
            return AckEffect::Nothing;
        }
        if seq < self.acked {
            // What was acknowledged may be deleted here, and after a restart its numbers would be given out again: a
            // stream that is told once more is told in a new life.
            self.incarnation = self.incarnation.saturating_add(1);
            self.acked = 0;
            self.rewind();
            return AckEffect::Regressed;
        }
        if seq == self.acked {
            return AckEffect::Nothing;
        }
        self.acked = seq;
        self.sent = self.sent.max(seq);
        self.backoff.reset();
        self.unacked_batches = self.unacked_batches.saturating_sub(1);
        if self.sent == self.acked {
            self.unacked_batches = 0;
            self.resend_at = None;
        } else {
            self.resend_at = Some(mono_ms + self.backoff.next_pause());
        }
        AckEffect::Advanced(seq)
    }

    /// When [`Sender::on_timeout`] is due, monotonic milliseconds.
    #[must_use]
    pub fn timeout(&self) -> Option<u64> {
        self.resend_at
    }

    /// Goes back to what is not acknowledged, when it is time.
    pub fn on_timeout(&mut self, mono_ms: u64) {
        if self.resend_at.is_some_and(|t| t <= mono_ms) {
            self.rewind();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receiver_takes_each_thing_once_and_notices_gaps() {
        let held = Position {
            incarnation: 5,
            seq: 10,
        };
        assert_eq!(
            admit(held, 5, 10, 12),
            Admit::Fresh(Position {
                incarnation: 5,
                seq: 12
            })
        );
        assert_eq!(
            admit(held, 5, 8, 12),
            Admit::Fresh(Position {
                incarnation: 5,
                seq: 12
            })
        );
        assert_eq!(admit(held, 5, 8, 10), Admit::Duplicate);
        assert_eq!(admit(held, 5, 11, 12), Admit::Gap);
        assert_eq!(admit(held, 4, 0, 99), Admit::Duplicate);
        assert_eq!(admit(held, 6, 0, 1), Admit::Fresh(Position { incarnation: 6, seq: 1 }));
        assert_eq!(admit(held, 6, 3, 4), Admit::Gap);
    }

    #[test]
    fn sender_repeats_until_heard_and_restarts_when_the_parent_forgot() {
        let mut s = Sender::new(1, 0);
        assert_eq!(s.ready(3), None, "not connected");
        s.connected();
        assert_eq!(s.ready(3), Some(0));
        s.sent(3, 0);
        assert_eq!(s.ready(3), None);
        let due = s.timeout().unwrap();
        s.on_timeout(due);
        assert_eq!(s.ready(3), Some(0));
        s.sent(3, due);
        assert_eq!(
            s.on_ack(Position { incarnation: 1, seq: 3 }, false, due),
            AckEffect::Advanced(3)
        );
        assert_eq!((s.ready(3), s.timeout()), (None, None));
        let late = Position { incarnation: 1, seq: 2 };
        assert_eq!(s.on_ack(late, false, due), AckEffect::Nothing, "overtaken on its way");
        assert_eq!(
            s.on_ack(Position { incarnation: 0, seq: 0 }, false, due),
            AckEffect::Regressed
        );
        assert_eq!((s.ready(3), s.incarnation()), (Some(0), 2));
        assert_eq!(
            s.on_ack(Position { incarnation: 7, seq: 2 }, true, due),
            AckEffect::Outlived { take: 8 }
        );
    }
}
