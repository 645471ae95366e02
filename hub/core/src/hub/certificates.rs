//! Newcomers and certificates, on their way through the hub.

use super::*;
use crate::enrol::{Certify, EnrolChange, EnrolmentInfo, Next, RANDOM_BYTES, Refused, Step, changes::Denied};
use cnova_shared::keys::PublicKey;
use cnova_shared::wire::v1::{EnrolAnswer, EnrolRefused, EnrolStep};
use serde_bytes::ByteBuf;

impl Hub {
    /// Whether a node, or a key, is one that was revoked: it gets no certificate. A key that was revoked under one name
    /// gets none under another.
    fn is_revoked(&self, node: &NodeId, key: &PublicKey) -> bool {
        let is_listed = || {
            let list = self.trust.revocations();
            list.is_some_and(|l| l.value().nodes.iter().any(|r| r.keys.contains(&key.id())))
        };
        self.trust.revoked(node, Some(key.id())).is_some() || is_listed()
    }

    /// Everything about enrolment, as people see it.
    #[must_use]
    pub fn enrolment(&self) -> EnrolmentInfo {
        self.desk.info()
    }

    pub(super) fn on_enrol(
        &mut self,
        author: NodeId,
        ticket: u64,
        step: EnrolStep,
        random: &[u8; RANDOM_BYTES],
        now: Now,
    ) {
        let mut desk = std::mem::take(&mut self.desk);
        let step = Step {
            author: &author,
            ticket,
            step,
            random,
            now,
        };
        let next = desk.take(step, &|node, key| self.is_revoked(node, key));
        self.desk = desk;
        match next {
            Ok(Next::Answer(answer)) => self.answer_newcomer((author, ticket), answer, now),
            Ok(Next::Certify(certify)) => self.effects.push_back(Action::Certify(certify)),
            Err(refused) => self.refuse_newcomer((author, ticket), refused, now),
        }
    }

    fn refuse_newcomer(&mut self, asker: (NodeId, u64), refused: Refused, now: Now) {
        let is_audited = refused.is_audited();
        let refused = EnrolRefused::from(refused);
        self.note(format!("a newcomer at {} was refused: {refused}", asker.0));
        if is_audited {
            self.audit(
                "enrol",
                format!("newcomer at {}", asker.0),
                "refused",
                refused.to_string(),
            );
        }
        self.answer_newcomer(asker, EnrolAnswer::Refused(refused), now);
    }

    fn audit(&mut self, action: &'static str, object: String, outcome: &'static str, detail: String) {
        self.effects.push_back(Action::Audit {
            action,
            object,
            outcome,
            detail,
        });
    }

    fn answer_newcomer(&mut self, asker: (NodeId, u64), answer: EnrolAnswer, now: Now) {
        self.desk.remember(asker.clone(), &answer, now);
        let (author, ticket) = asker;
        let enrolled = v1::Enrolled {
            v: v1::VERSION,
            ticket,
            answer,
        };
        let child = if author == self.config.node {
            None
        } else if let Some(via) = self.tree.via(&author) {
            Some(via.clone())
        } else {
            return self.note(format!("{author} asked for a certificate and has gone"));
        };
        self.effects.push_back(Action::Enrolled {
            child,
            author,
            enrolled,
        });
    }

    pub(super) fn on_certified(&mut self, certify: Certify, result: Result<Vec<Vec<u8>>, String>, now: Now) {
        let asker = certify.asker.clone();
        let chain = match result {
            Ok(chain) => chain,
            Err(why) => {
                let message = format!("the hub could not make the certificate: {why}");
                let refused = Refused::new(
                    crate::enrol::Gate::Issuer,
                    message,
                    "an admin looks at [enrolment] of the hub",
                );
                return self.refuse_newcomer(asker, refused, now);
            }
        };
        let word = crate::enrol::tier_word(certify.tier);
        let detail = format!(
            "site {}, {word}, key {}, through {}, until {}",
            certify.site,
            certify.key.id(),
            asker.0,
            certify.not_after_s
        );
        let object = format!("node {}", certify.node);
        let action = if asker.0 == certify.node { "renew" } else { "enrol" };
        let bundles = self.newest_bundles();
        let (ops, issued) = self.desk.certified(certify, chain, bundles);
        self.ops.extend(ops.into_iter().map(Op::Enrol));
        self.note(format!("{action}: {object}: {detail}"));
        self.audit(action, object, "done", detail);
        self.answer_newcomer(asker, EnrolAnswer::Issued(*issued), now);
    }

    /// The trust bundles that go with a certificate, oldest first: as many of the newest as fit. A newcomer whose own is older
    /// than all of them gets what is between over its link.
    fn newest_bundles(&self) -> Vec<ByteBuf> {
        let mut room = limits::ENROL_BUNDLES_BYTES;
        let newest_first = self.trust.bundles().rev().map(|b| b.bytes().to_vec());
        let fits = newest_first.map_while(|bytes| {
            room = room.checked_sub(bytes.len())?;
            Some(ByteBuf::from(bytes))
        });
        let mut bundles: Vec<ByteBuf> = fits.collect();
        bundles.reverse();
        bundles
    }

    pub(super) fn on_enrol_change(&mut self, request: RequestId, change: EnrolChange, now: Now) {
        match self.desk.change(change, now) {
            Ok(ops) => {
                self.ops.extend(ops.into_iter().map(Op::Enrol));
                self.answer(request, Outcome::Done);
            }
            Err(Denied::NotFound(what)) => self.answer(request, Outcome::NotFound { what }),
            Err(Denied::Refused(why)) => self.refuse(request, vec![why]),
        }
    }
}
