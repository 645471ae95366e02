//! The exchange with newcomers, and the renewal of nodes' certificates.

use std::collections::{BTreeMap, VecDeque};

use cnova_attestation::enrol::Makers;
use cnova_shared::certificate::Tier;
use cnova_shared::ids::{Digest, NodeId, SitePath};
use cnova_shared::keys::PublicKey;
use cnova_shared::time::Now;
use cnova_shared::wire;
use cnova_shared::wire::v1::{EnrolAnswer, EnrolBegin, EnrolChallenge, EnrolFinish, EnrolIssued, EnrolStep};
use serde_bytes::ByteBuf;

use super::admission::{Admitted, Case, IsRevoked};
use super::tpm::{self, Endorsement, Pending};
use super::{
    ANSWER_MS, ANSWERS_KEPT, EnrolChange, EnrolOp, EnrolRules, EnrolmentInfo, Gate, Pinned, Refused, SESSION_MS,
    SESSIONS_MAX, SESSIONS_PER_DOOR, StoredEnrolment,
};

/// Fresh random bytes that go with every step.
pub const RANDOM_BYTES: usize = 64;
const SESSION_ID_BYTES: usize = 16;
const SEED: std::ops::Range<usize> = 16..48;
const JITTER: std::ops::Range<usize> = 48..56;
/// A certificate is renewed at half of its lifetime, earlier by up to this part of it, so that nodes that were enrolled
/// together do not all come together.
const JITTER_PART: u64 = 10;

type SessionId = [u8; SESSION_ID_BYTES];

/// What proves the key.
#[derive(Debug)]
enum Proof {
    Tpm(Box<Pending>, Endorsement),
    Signature(Vec<u8>),
}

#[derive(Debug)]
struct Session {
    door: NodeId,
    begin: EnrolBegin,
    proof: Proof,
    until_ms: u64,
}

/// A certificate to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certify {
    /// Whom to answer, and about which of its tickets.
    pub asker: (NodeId, u64),
    /// The node.
    pub node: NodeId,
    /// Where it hangs.
    pub site: SitePath,
    /// What it holds its key in.
    pub tier: Tier,
    /// Its key.
    pub key: PublicKey,
    /// When it begins to count, seconds since 1970.
    pub issued_s: u64,
    /// When it ends, seconds since 1970.
    pub not_after_s: u64,
    /// When the node is to ask for the next one, seconds since 1970.
    pub renew_s: u64,
    ek: Option<Digest>,
    /// Its attestation key, `TPMT_PUBLIC`; empty without a TPM.
    pub ak: Vec<u8>,
    token: Option<Digest>,
    spends: bool,
}

/// What follows from a step.
#[derive(Debug)]
pub(crate) enum Next {
    Answer(EnrolAnswer),
    Certify(Box<Certify>),
}

/// One step as it came.
#[derive(Debug)]
pub(crate) struct Step<'a> {
    pub(crate) author: &'a NodeId,
    pub(crate) ticket: u64,
    pub(crate) step: EnrolStep,
    pub(crate) random: &'a [u8; RANDOM_BYTES],
    pub(crate) now: Now,
}

/// The hub's desk for newcomers.
#[derive(Debug, Default)]
pub struct Desk {
    rules: Option<EnrolRules>,
    makers: Makers,
    stored: StoredEnrolment,
    sessions: BTreeMap<SessionId, Session>,
    answered: VecDeque<((NodeId, u64), EnrolAnswer, u64)>,
}

fn busy(message: String) -> Refused {
    Refused::new(Gate::Busy, message, "try again")
}

impl Desk {
    /// A desk with what the store held; without rules it admits nobody.
    pub(crate) fn new(rules: Option<EnrolRules>, stored: StoredEnrolment) -> Self {
        let makers = Makers {
            roots: rules.as_ref().map(|r| r.tpm_roots.clone()).unwrap_or_default(),
            intermediates: rules.as_ref().map(|r| r.tpm_intermediates.clone()).unwrap_or_default(),
        };
        Self {
            rules,
            makers,
            stored,
            ..Self::default()
        }
    }

    /// Everything, as people see it.
    #[must_use]
    pub fn info(&self) -> EnrolmentInfo {
        EnrolmentInfo::of(&self.stored)
    }

    /// What was pinned of a node.
    #[must_use]
    pub fn pinned(&self, node: &NodeId) -> Option<&Pinned> {
        self.stored.pinned.get(node)
    }

    pub(crate) fn change(&mut self, change: EnrolChange, now: Now) -> Result<Vec<EnrolOp>, super::changes::Denied> {
        let ops = change.ops(&self.stored, now.wall_ms / 1000)?;
        ops.iter().for_each(|op| self.stored.apply(op));
        Ok(ops)
    }

    /// Takes a step of a newcomer or a node.
    pub(crate) fn take(&mut self, step: Step<'_>, is_revoked: IsRevoked<'_>) -> Result<Next, Refused> {
        let asker = (step.author.clone(), step.ticket);
        let mono_ms = step.now.mono_ms;
        self.answered.retain(|(_, _, until)| *until > mono_ms);
        self.sessions.retain(|_, s| s.until_ms > mono_ms);
        if let Some((_, answer, _)) = self.answered.iter().find(|(a, _, _)| *a == asker) {
            return Ok(Next::Answer(answer.clone()));
        }
        if self.rules.is_none() {
            let advice = "an admin opens it with [enrolment] in hub.toml";
            return Err(Refused::new(Gate::Closed, "this hub enrols no nodes", advice));
        }
        match step.step.clone() {
            EnrolStep::Begin(begin) => {
                let challenge = self.begin(begin, &step, is_revoked)?;
                Ok(Next::Answer(EnrolAnswer::Challenge(challenge)))
            }
            EnrolStep::Finish(finish) => self.finish(&finish, &step, is_revoked),
            EnrolStep::Renew { key } => self.renew(&key, &step, is_revoked),
            EnrolStep::Unknown => {
                let message = "a step of enrolment that this hub does not know";
                Err(Refused::new(Gate::Malformed, message, "update the hub"))
            }
        }
    }

    /// Remembers an answer: the question may come again because it was lost.
    pub(crate) fn remember(&mut self, asker: (NodeId, u64), answer: &EnrolAnswer, now: Now) {
        if self.answered.iter().any(|(a, _, _)| *a == asker) {
            return;
        }
        if self.answered.len() >= ANSWERS_KEPT {
            self.answered.pop_front();
        }
        self.answered
            .push_back((asker, answer.clone(), now.mono_ms + ANSWER_MS));
    }

    fn begin(
        &mut self,
        begin: EnrolBegin,
        step: &Step<'_>,
        is_revoked: IsRevoked<'_>,
    ) -> Result<EnrolChallenge, Refused> {
        if self.sessions.len() >= SESSIONS_MAX {
            return Err(busy(format!("{SESSIONS_MAX} newcomers are being looked at already")));
        }
        let of_door = self.sessions.values().filter(|s| s.door == *step.author).count();
        if of_door >= SESSIONS_PER_DOOR {
            return Err(busy(format!(
                "{SESSIONS_PER_DOOR} newcomers at {} wait already",
                step.author
            )));
        }
        let proof = self.proof_of(&begin, step)?;
        let (endorsement, challenge) = match &proof {
            Proof::Tpm(pending, e) => (Some(e), credential(pending)?),
            Proof::Signature(nonce) => (None, (None, nonce.clone())),
        };
        self.case(&begin, endorsement, step.now, is_revoked).decide()?;
        let mut id = SessionId::default();
        id.copy_from_slice(&step.random[..SESSION_ID_BYTES]);
        let session = Session {
            door: step.author.clone(),
            begin,
            proof,
            until_ms: step.now.mono_ms + SESSION_MS,
        };
        self.sessions.insert(id, session);
        let (credential, nonce) = challenge;
        Ok(EnrolChallenge {
            session: id.to_vec(),
            credential,
            nonce,
        })
    }

    fn proof_of(&self, begin: &EnrolBegin, step: &Step<'_>) -> Result<Proof, Refused> {
        let seed = &step.random[SEED];
        match begin.tier {
            Tier::Tpm => {
                let now_s = step.now.wall_ms / 1000;
                let (endorsement, pending) = tpm::begin(begin, &self.makers, now_s, seed)?;
                Ok(Proof::Tpm(Box::new(pending), endorsement))
            }
            Tier::Soft if self.rules.as_ref().is_some_and(|r| r.allow_soft) => Ok(Proof::Signature(seed.to_vec())),
            Tier::Soft => {
                let message = "this hub admits no keys in files";
                let advice = "use a TPM (root = \"tpm\" in [identity]), or allow_soft = true in the hub's [enrolment]";
                Err(Refused::new(Gate::Soft, message, advice))
            }
        }
    }

    fn case<'a>(
        &'a self,
        begin: &'a EnrolBegin,
        endorsement: Option<&'a Endorsement>,
        now: Now,
        is_revoked: IsRevoked<'a>,
    ) -> Case<'a> {
        Case {
            stored: &self.stored,
            begin,
            endorsement,
            now_s: now.wall_ms / 1000,
            is_revoked,
        }
    }

    fn finish(&mut self, finish: &EnrolFinish, step: &Step<'_>, is_revoked: IsRevoked<'_>) -> Result<Next, Refused> {
        let id = SessionId::try_from(finish.session.as_slice()).unwrap_or_default();
        // One attempt each: whoever guesses begins anew.
        let session = match self.sessions.get(&id) {
            Some(session) if session.door == *step.author => self.sessions.remove(&id),
            _ => None,
        };
        let Some(session) = session else {
            let message = "there is no such enrolment: it took too long, or the hub was started anew";
            return Err(Refused::new(Gate::Session, message, "enrol again"));
        };
        let begin = session.begin;
        let (endorsement, ak) = match session.proof {
            Proof::Tpm(pending, endorsement) => {
                let enrolled = tpm::finish(*pending, &begin, &finish.proof)?;
                (Some(endorsement), enrolled.ak_public)
            }
            Proof::Signature(nonce) => {
                if !begin.key.verifies(&begin.to_be_signed(&nonce), &finish.proof) {
                    let message = "the newcomer does not have the key that it wants certified";
                    return Err(Refused::new(Gate::Possession, message, "enrol again"));
                }
                (None, Vec::new())
            }
        };
        // Again: another one may have used the token, or the name, meanwhile.
        let admitted = self.case(&begin, endorsement.as_ref(), step.now, is_revoked).decide()?;
        let ek = endorsement.map(|e| e.ek);
        Ok(self.certify(step, admitted, begin.tier, begin.key, (ek, ak)))
    }

    /// The author's envelope was verified with the key of its certificate, so it is who it says.
    fn renew(&self, key: &PublicKey, step: &Step<'_>, is_revoked: IsRevoked<'_>) -> Result<Next, Refused> {
        let node = step.author;
        let Some(pinned) = self.stored.pinned.get(node) else {
            let message = format!("{node} was not enrolled by this hub");
            return Err(Refused::new(
                Gate::NotANode,
                message,
                "certify it anew with: cnova trust issue",
            ));
        };
        if pinned.key != *key {
            let message = format!("{node} asks for a certificate about another key than the one that was admitted");
            return Err(Refused::new(Gate::Bound, message, "a new key is enrolled, not renewed"));
        }
        if is_revoked(node, key) {
            let message = format!("{node} was revoked");
            return Err(Refused::new(Gate::Revoked, message, "only an admin can let it back in"));
        }
        let admitted = Admitted {
            node: node.clone(),
            site: pinned.site.clone(),
            token: pinned.token,
            spends: false,
        };
        let proven = (pinned.ek, pinned.ak.clone());
        Ok(self.certify(step, admitted, pinned.tier, key.clone(), proven))
    }

    fn certify(
        &self,
        step: &Step<'_>,
        admitted: Admitted,
        tier: Tier,
        key: PublicKey,
        (ek, ak): (Option<Digest>, Vec<u8>),
    ) -> Next {
        let issued_s = step.now.wall_ms / 1000;
        let (lifetime_s, ends_s) = self.rules.as_ref().map_or((0, 0), |r| (r.lifetime_s, r.issuer_ends_s));
        let not_after_s = issued_s.saturating_add(lifetime_s).min(ends_s);
        let lasts_s = not_after_s.saturating_sub(issued_s);
        let mut random = [0; 8];
        random.copy_from_slice(&step.random[JITTER]);
        let earlier_s = u64::from_le_bytes(random) % (lasts_s / JITTER_PART + 1);
        Next::Certify(Box::new(Certify {
            asker: (step.author.clone(), step.ticket),
            node: admitted.node,
            site: admitted.site,
            tier,
            key,
            issued_s,
            not_after_s,
            renew_s: issued_s + (lasts_s / 2).saturating_sub(earlier_s),
            ek,
            ak,
            token: admitted.token,
            spends: admitted.spends,
        }))
    }

    /// A certificate was made: what is to be kept, and what is to be said after that.
    pub(crate) fn certified(
        &mut self,
        c: Certify,
        chain: Vec<Vec<u8>>,
        bundles: Vec<ByteBuf>,
    ) -> (Vec<EnrolOp>, Box<EnrolIssued>) {
        let mut ops = Vec::new();
        if let Some(hash) = c.token.filter(|_| c.spends)
            && let Some(token) = self.stored.tokens.get(&hash)
        {
            let mut token = token.clone();
            token.uses_left = token.uses_left.saturating_sub(1);
            ops.push(EnrolOp::PutToken { hash, token });
        }
        let before = self.stored.pinned.get(&c.node);
        let pinned = Pinned {
            site: c.site.clone(),
            tier: c.tier,
            ek: c.ek,
            ak: c.ak,
            key: c.key,
            token: c.token.or(before.and_then(|p| p.token)),
            first_s: before.map_or(c.issued_s, |p| p.first_s),
            last_s: c.issued_s,
            not_after_s: c.not_after_s,
        };
        ops.push(EnrolOp::PutPinned {
            node: c.node.clone(),
            pinned: Box::new(pinned),
        });
        ops.iter().for_each(|op| self.stored.apply(op));
        let issued = EnrolIssued {
            node: c.node,
            site: c.site,
            chain: chain.into_iter().map(ByteBuf::from).collect(),
            bundles,
            issued_s: c.issued_s,
            renew_s: c.renew_s,
        };
        (ops, Box::new(issued))
    }
}

fn credential(pending: &Pending) -> Result<(Option<ByteBuf>, Vec<u8>), Refused> {
    let bytes = wire::encode(pending.credential());
    let bytes = bytes.map_err(|e| busy(format!("the credential cannot be encoded: {e}")))?;
    Ok((Some(ByteBuf::from(bytes)), Vec::new()))
}
