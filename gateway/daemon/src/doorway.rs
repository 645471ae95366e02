//! The door for newcomers, and who waits at it.

use std::collections::BTreeMap;

use cnova_gateway_core::{DoorId, Event};
use cnova_link::enrol::{Asked, Door};
use cnova_shared::wire::v1::EnrolAnswer;
use tokio::sync::oneshot;

/// The door, if there is one.
#[derive(Debug, Default)]
pub struct Doorway {
    door: Option<Door>,
    waiting: BTreeMap<DoorId, oneshot::Sender<EnrolAnswer>>,
    next: DoorId,
}

impl Doorway {
    /// An open one.
    #[must_use]
    pub fn new(door: Door) -> Self {
        Self {
            door: Some(door),
            ..Self::default()
        }
    }

    /// Whether there is one.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.door.is_some()
    }

    /// What the core must hear: who has gone, and who asks.
    pub fn take(&mut self, asked: Asked) -> Vec<Event> {
        let gone: Vec<DoorId> = self
            .waiting
            .iter()
            .filter(|(_, reply)| reply.is_closed())
            .map(|(id, _)| *id)
            .collect();
        self.waiting.retain(|_, reply| !reply.is_closed());
        self.next += 1;
        tracing::debug!(peer = %asked.peer, door = self.next, "a newcomer asks");
        self.waiting.insert(self.next, asked.reply);
        let asks = Event::Newcomer {
            door: self.next,
            step: asked.step,
        };
        gone.into_iter().map(Event::NewcomerGone).chain([asks]).collect()
    }

    /// Answers one, who may have gone.
    pub fn answer(&mut self, door: DoorId, answer: EnrolAnswer) {
        if let EnrolAnswer::Refused(no) = &answer {
            tracing::info!(door, "a newcomer is refused: {no}");
        }
        if let Some(reply) = self.waiting.remove(&door) {
            let _ = reply.send(answer);
        }
    }
}
