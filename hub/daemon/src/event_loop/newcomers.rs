//! Newcomers: randomness and certificates for the core, and the hub's own door.

use std::collections::BTreeMap;
use std::sync::Arc;

use cnova_hub_core::Event;
use cnova_hub_core::enrol::{Certify, RANDOM_BYTES};
use cnova_link::enrol::{Asked, Door, DoorLimits};
use cnova_shared::ids::NodeId;
use cnova_shared::topics::Kind;
use cnova_shared::wire::v1::{EnrolAnswer, EnrolStep, Enrolled};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{mpsc, oneshot};

use super::{EventLoop, LoopError, Parts};
use crate::store::audit::Draft;

/// The hub's own door, where it has one, and who waits at it.
#[derive(Default)]
pub(super) struct Doorway {
    open: Option<(Door, mpsc::Receiver<Asked>)>,
    waiting: BTreeMap<u64, oneshot::Sender<EnrolAnswer>>,
    next: u64,
}

impl Doorway {
    pub(super) async fn open(parts: &Parts) -> Result<Self, LoopError> {
        let mut doorway = Self {
            next: parts.clock.now().wall_ms,
            ..Self::default()
        };
        if let Some(listen) = parts.enrolment.as_ref().and_then(|e| e.listen) {
            let own = parts.downstream.identity.certified();
            let (door, asked) = Door::open(listen, own, DoorLimits::default()).await?;
            tracing::info!(address = %door.address(), "newcomers can enrol");
            doorway.open = Some((door, asked));
        }
        Ok(doorway)
    }

    pub(super) async fn next(&mut self) -> Asked {
        if let Some((_, asked)) = &mut self.open
            && let Some(asked) = asked.recv().await
        {
            return asked;
        }
        std::future::pending().await
    }

    fn admit(&mut self, asked: Asked) -> (u64, EnrolStep) {
        // Who has gone is no longer waited for.
        self.waiting.retain(|_, reply| !reply.is_closed());
        self.next = self.next.wrapping_add(1);
        self.waiting.insert(self.next, asked.reply);
        (self.next, asked.step)
    }

    fn answer(&mut self, enrolled: Enrolled) {
        if let Some(reply) = self.waiting.remove(&enrolled.ticket) {
            // The newcomer may have gone.
            let _ = reply.send(enrolled.answer);
        }
    }
}

/// What enrolment needs of the daemon.
pub struct Enrolling {
    /// Where the hub's own door is, if it has one.
    pub listen: Option<std::net::SocketAddr>,
    /// Makes the certificates.
    pub issuer: Arc<crate::issuer::Issuer>,
}

impl EventLoop {
    pub(super) fn on_newcomer(&mut self, asked: Asked) {
        let peer = asked.peer;
        let (ticket, step) = self.doorway.admit(asked);
        tracing::debug!(%peer, ticket, "a newcomer asks");
        let me = self.parts.config.node.clone();
        self.draw(me, ticket, step);
    }

    /// Hands a step to the core with fresh randomness.
    pub(super) fn draw(&mut self, author: NodeId, ticket: u64, step: EnrolStep) {
        let mut random = Box::new([0; RANDOM_BYTES]);
        if SystemRandom::new().fill(&mut random[..]).is_err() {
            return tracing::error!("the system gives no random numbers: a newcomer is not answered");
        }
        let now = self.parts.clock.now();
        let event = Event::Enrol {
            author,
            ticket,
            step,
            random,
        };
        self.hub.handle(event, now);
        self.gather();
    }

    /// A certificate that nobody has seen is no effect: it is made before what the core keeps of it is committed.
    pub(super) fn certify(&mut self, certify: Box<Certify>) {
        let issuer = self.parts.enrolment.as_ref().map(|e| e.issuer.clone());
        let result = match issuer {
            Some(issuer) => issuer.certify(&certify).map_err(|e| e.to_string()),
            None => Err("this hub has no [enrolment]".to_owned()),
        };
        self.hub
            .handle(Event::Certified { certify, result }, self.parts.clock.now());
    }

    pub(super) fn answer_enrolment(&mut self, child: Option<NodeId>, author: &NodeId, enrolled: Enrolled) {
        let Some(child) = child else {
            return self.doorway.answer(enrolled);
        };
        let now_s = self.parts.clock.now_s();
        let sealed = self.parts.signer.to_child(Kind::Enrolled, author, &enrolled, now_s);
        self.say(&child, Kind::Enrolled, sealed);
    }

    /// An audit entry about what nobody's request asked for.
    pub(super) fn draft(&self, action: &'static str, object: String, outcome: &'static str, detail: &str) -> Draft {
        Draft {
            at_ms: self.parts.clock.now().wall_ms,
            user: "hub".to_owned(),
            action,
            object,
            outcome,
            detail: cnova_shared::limits::clip(detail),
        }
    }
}
