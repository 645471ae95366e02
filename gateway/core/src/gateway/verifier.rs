//! The gateway in the hub's place: while the hub is out of reach and a delegation allows it, the gateway appraises its
//! direct children itself.
//!
//! It appraises nobody that hangs behind another gateway: that one does, under a delegation of its own. So each node has
//! one gateway whose word it takes beside the hub's, its parent, and no way between two gateways has to work for it.

use std::collections::BTreeMap;

use cnova_attestation::appraiser::{About, Appraiser, Known, Rhythm, Verdict};
use cnova_attestation::ear::{self, EarError, Status};
use cnova_attestation::evidence::Evidence;
use cnova_attestation::reference::References;
use cnova_attestation::result::{self, Expected, Opened, Results, When};
use cnova_shared::certificate::Tier;
use cnova_shared::envelope::VerifiedBytes;
use cnova_shared::ids::SitePath;
use cnova_shared::keys::KeyId;
use cnova_shared::limits::{DELEGATED_RESULT_S, VERIFIER_GRACE_S};
use cnova_shared::trust_documents::Right;
use cnova_shared::wire::v1::TrustItemKind;
use serde_bytes::ByteBuf;

use super::*;
use crate::api::Appraisal;

/// How the keys of alarms about children begin; the child's name follows.
pub(super) const CHILD_ALARM: &str = "alarm/child-contraindicated/";
/// A child is challenged so long before its result ends, seconds; a quarter of its time when that is less.
const NEAR_END_S: u64 = 900;

/// What is known of a direct child.
#[derive(Debug, Default)]
struct Child {
    results: Results,
    /// The nonce that its last evidence for the hub answered, and the session key that this was bound to.
    answered: Option<(Vec<u8>, KeyId)>,
}

/// The gateway as a verifier.
#[derive(Debug)]
pub(super) struct Verifier {
    after_ms: u64,
    appraiser: Appraiser,
    references: References,
    /// The version of the document that they are from, and its key.
    references_of: Option<(u64, KeyId)>,
    children: BTreeMap<NodeId, Child>,
    /// Since when the hub is out of reach, monotonic milliseconds.
    away_since: Option<u64>,
    /// Whether child gateways were told that it is.
    told_away: bool,
    /// Why it does not appraise, or nothing when it does; as last said.
    said: Option<String>,
    is_acting: bool,
    /// When it may begin to, monotonic milliseconds.
    begin_at: Option<u64>,
}

/// How far a direct child is trusted, by the newest result that its gateway knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildStanding {
    /// The child.
    pub child: NodeId,
    /// What was found.
    pub status: Status,
    /// Who judged: `the hub`, or this gateway's name.
    pub by: String,
    /// When, seconds since 1970 by the verifier's clock.
    pub judged_s: u64,
    /// Until when it may be relied on.
    pub expires_s: u64,
}

impl Verifier {
    pub(super) fn new(config: &Config, verdicts: BTreeMap<NodeId, Verdict>, now: Now) -> Self {
        let Appraisal {
            after_ms,
            rhythm,
            launch_pcr,
            seed,
        } = config.appraisal;
        let rhythm = Rhythm {
            valid_s: rhythm.valid_s.min(DELEGATED_RESULT_S),
            ..rhythm
        };
        Self {
            after_ms,
            appraiser: Appraiser::new(rhythm, launch_pcr, seed, verdicts).named(config.node.clone()),
            references: References::default(),
            references_of: None,
            children: BTreeMap::new(),
            // Nothing has been heard of it in this start.
            away_since: Some(now.mono_ms),
            told_away: false,
            said: None,
            is_acting: false,
            begin_at: None,
        }
    }
}

impl Gateway {
    /// How far each direct child is trusted, by the newest result that this gateway knows; those that nobody judged are left
    /// out.
    #[must_use]
    pub fn children(&self, now: Now) -> Vec<ChildStanding> {
        let now_s = self.now_s(now);
        let standing = |(child, c): (&NodeId, &Child)| {
            let result = c.results.in_force(now_s)?;
            Some(ChildStanding {
                child: child.clone(),
                status: result.ear().status,
                by: result.by().to_string(),
                judged_s: result.ear().iat,
                expires_s: result.ear().exp,
            })
        };
        self.verifier.children.iter().filter_map(standing).collect()
    }

    /// What the store held of results. What does not verify any more is left out.
    pub(super) fn reopen_results(
        &mut self,
        own: [Option<Vec<u8>>; 2],
        above: [Option<Vec<u8>>; 2],
        of_children: BTreeMap<(NodeId, bool), Vec<u8>>,
        now: Now,
    ) {
        for bytes in own.iter().flatten() {
            if let Ok(opened) = self.open_own(bytes, When::Before) {
                self.own.take(opened);
            }
        }
        for bytes in above.iter().flatten() {
            if let Ok(opened) = self.open_of_parent(bytes, When::Before) {
                self.above.take(opened);
            }
        }
        for ((child, _), bytes) in of_children {
            if let Ok(opened) = self.open_of_child(&child, &bytes, When::Before) {
                self.verifier
                    .children
                    .entry(child.clone())
                    .or_default()
                    .results
                    .take(opened);
                self.watch_child(&child, now);
            }
        }
        // What an earlier start raised about children of which nothing is known any more is over.
        for key in self.reporter.alarms() {
            let child = key.strip_prefix(CHILD_ALARM).map(NodeId::new);
            if let Some(Ok(child)) = child {
                self.watch_child(&child, now);
            }
        }
        self.look_at_references(now);
    }

    /// Trust has changed: results by a key that has left the bundle, or under a delegation that is no more, count no longer.
    pub(super) fn drop_void_results(&mut self, now: Now) {
        let mut own = std::mem::take(&mut self.own);
        own.retain(|r| self.open_own(r.bytes(), When::Before).is_ok());
        self.own = own;
        let mut above = std::mem::take(&mut self.above);
        above.retain(|r| self.open_of_parent(r.bytes(), When::Before).is_ok());
        self.above = above;
        let children: Vec<NodeId> = self.verifier.children.keys().cloned().collect();
        for child in children {
            let Some(mut results) = self.verifier.children.get(&child).map(|c| c.results.clone()) else {
                continue;
            };
            results.retain(|r| self.open_of_child(&child, r.bytes(), When::Before).is_ok());
            self.verifier.children.entry(child.clone()).or_default().results = results;
            self.watch_child(&child, now);
        }
    }

    /// The references in force, decoded; nobody is appraised by those that a key signed that has left the bundle.
    pub(super) fn look_at_references(&mut self, now: Now) {
        let kept = self.trust.kept(TrustItemKind::References);
        let which = kept.map(|k| (k.version(), k.kid()));
        if which == self.verifier.references_of {
            return;
        }
        let decoded = kept.and_then(|k| k.decode::<References>().ok());
        let references = decoded
            .map(cnova_shared::envelope::Verified::into_value)
            .unwrap_or_default();
        let is_new = references != self.verifier.references;
        (self.verifier.references, self.verifier.references_of) = (references, which);
        if is_new {
            self.verifier.appraiser.references_changed(now);
        }
    }

    /// The place of a direct child, as its certificate says it.
    fn site_of_child(&self, child: &NodeId) -> Option<&SitePath> {
        let is_direct = self.tree.via(child) == Some(child);
        self.tree.certificate(child).filter(|_| is_direct)?.site.as_ref()
    }

    fn open_of_child(&self, child: &NodeId, bytes: &[u8], when: When) -> Result<Opened, String> {
        let site = self.site_of_child(child).ok_or("it is no child of this gateway")?;
        let expected = Expected {
            subject: child,
            site,
            gateway: Some(&self.config.node),
        };
        result::open(bytes, &expected, &self.trust, when).map_err(|e| e.to_string())
    }

    /// A result on its way to a descendant.
    pub(super) fn on_result_of_child(&mut self, child: &NodeId, bytes: &[u8], now: Now) {
        if self.site_of_child(child).is_some()
            && let Err(why) = self.keep_result(child, bytes, now)
        {
            self.note(format!(
                "the result about {child} that is on its way is not believed here: {why}"
            ));
        }
    }

    fn keep_result(&mut self, child: &NodeId, bytes: &[u8], now: Now) -> Result<(), String> {
        let now_s = self.now_s(now);
        let opened = self.open_of_child(child, bytes, When::Now(now_s))?;
        let is_own = opened.is_delegated();
        let (nonce, iat, exp) = (opened.ear().nonce.clone(), opened.ear().iat, opened.ear().exp);
        let known = self.verifier.children.entry(child.clone()).or_default();
        if !known.results.take(opened) {
            return Ok(());
        }
        let answered = known.answered.as_ref().filter(|(n, _)| *n == nonce);
        let session = self.tree.session_key(child).map(|k| k.id());
        if let Some((_, key)) = answered.filter(|(_, key)| !is_own && Some(*key) == session) {
            // The hub has judged this very start of the child.
            let near_s = NEAR_END_S.min(exp.saturating_sub(iat) / 4);
            let left_s = exp.saturating_sub(near_s).saturating_sub(now_s);
            let due = now.mono_ms.saturating_add(left_s.saturating_mul(1000));
            self.verifier.appraiser.credit(child, *key, due);
        }
        let (child, bytes) = (child.clone(), bytes.to_vec());
        self.watch_child(&child, now);
        self.ops.push(Op::PutResult { child, is_own, bytes });
        Ok(())
    }

    /// The alarm about a child that is not what it should be.
    fn watch_child(&mut self, child: &NodeId, now: Now) {
        let now_s = self.now_s(now);
        let known = self.verifier.children.get(child);
        let result = known.and_then(|c| c.results.in_force(now_s));
        let bad = result.filter(|r| r.ear().status == Status::Contraindicated);
        let key = format!("{CHILD_ALARM}{child}");
        match bad.map(|r| (r.by().clone(), r.ear().findings.first().map(|f| f.detail.clone()))) {
            Some((by, found)) => {
                let found = found.unwrap_or_else(|| "no reason given".into());
                let text = format!("{child} is not what it should be, by {by}: {found}");
                self.raise(&key, &text, now);
            }
            None => self.end(&key, now),
        }
    }

    /// The way up is gone.
    pub(super) fn hub_is_away(&mut self, now: Now) {
        self.verifier.away_since.get_or_insert(now.mono_ms);
    }

    /// The parent has spoken: the hub is within its reach, or has not been for so long.
    pub(super) fn hub_was_reached(&mut self, away_s: u64, now: Now) {
        let since = now.mono_ms.saturating_sub(away_s.saturating_mul(1000));
        self.verifier.away_since = (away_s > 0).then_some(since);
    }

    /// What an acknowledgement tells a child of the way to the hub; agents have no use for it.
    pub(super) fn away_s_for(&self, child: &NodeId, now: Now) -> u64 {
        let since = self.verifier.away_since;
        let role = self.tree.holder(child).map(|h| h.role);
        since
            .filter(|_| role == Some(v1::NodeRole::Gateway))
            .map_or(0, |since| (now.mono_ms.saturating_sub(since) / 1000).max(1))
    }

    /// Tells child gateways when the hub went out of reach or came back, and says whether this gateway appraises.
    pub(super) fn watch_hub(&mut self, now: Now) {
        let is_away = self.verifier.away_since.is_some();
        if std::mem::replace(&mut self.verifier.told_away, is_away) != is_away {
            let gateways: Vec<NodeId> = self.tree.child_gateways().cloned().collect();
            for child in gateways {
                self.tree.acknowledge_again(&child);
            }
        }
        let begin_at = self
            .verifier
            .away_since
            .map(|since| since.saturating_add(self.verifier.after_ms));
        let is_time = begin_at.is_some_and(|at| at <= now.mono_ms);
        self.verifier.begin_at = begin_at.filter(|_| !is_time);
        let may = if is_time { Some(self.may_appraise(now)) } else { None };
        self.verifier.is_acting = matches!(may, Some(Ok(_)));
        let said = match &may {
            None => None,
            Some(Ok(not_after)) => {
                self.verifier.appraiser.ends_at(*not_after);
                Some("the hub is out of reach: this gateway appraises its children under its delegation".to_owned())
            }
            Some(Err(why)) => Some(format!(
                "the hub is out of reach, and this gateway does not appraise: {why}"
            )),
        };
        if said != self.verifier.said {
            let text = said.clone();
            self.note(text.unwrap_or_else(|| "the hub is within reach: it appraises".into()));
            self.verifier.said = said;
        }
    }

    /// Until when this gateway may appraise its children, or why it may not. Whether the hub is away is not asked here.
    fn may_appraise(&self, now: Now) -> Result<u64, String> {
        let Some(held) = self.delegated(Right::Appraise, now) else {
            return Err("it has no delegation for that which is in force".into());
        };
        if self.verifier.references.version == 0 {
            return Err("no reference values have come".into());
        }
        let now_s = self.now_s(now);
        let Some(own) = self.own.in_force(now_s) else {
            return Err("nobody has attested this gateway itself".into());
        };
        match ear::check_ear(own.ear(), &self.config.node, &self.config.key, now_s) {
            Ok(Status::Affirming) => {}
            Ok(other) => return Err(format!("this gateway itself is {other}")),
            // The hub is away: nobody could have attested it since.
            Err(EarError::Expired {
                exp,
                was: Status::Affirming,
                ..
            }) if now_s < exp.saturating_add(VERIFIER_GRACE_S) => {}
            Err(why) => return Err(why.to_string()),
        }
        Ok(held.value().not_after)
    }

    /// A child as its certificate and hello describe it, where this gateway could appraise it.
    fn known_child(&self, child: &NodeId) -> Option<Known> {
        self.site_of_child(child)?;
        let certificate = self.tree.certificate(child)?;
        Some(Known {
            tier: certificate.tier,
            ak: certificate.ak,
            key: certificate.key.clone(),
            session: self.tree.session_key(child)?.clone(),
        })
    }

    /// A direct child said hello: it may have begun anew, and it may not have this gateway's result.
    pub(super) fn greet(&mut self, child: &NodeId, now: Now) {
        let Some(known) = self.known_child(child).filter(|k| k.tier == Tier::Tpm) else {
            return;
        };
        self.verifier.appraiser.greet(child, &known, now);
        let now_s = self.now_s(now);
        let held = self
            .verifier
            .children
            .get(child)
            .and_then(|c| c.results.in_force(now_s));
        if let Some(own) = held.filter(|r| r.is_delegated()) {
            let (child, kind, bytes) = (child.clone(), Kind::Ear, own.bytes().to_vec());
            self.effects.push_back(Action::Forward { child, kind, bytes });
        }
    }

    /// Somebody wants all children to be appraised now.
    pub(super) fn demand(&mut self, now: Now) {
        if !self.verifier.is_acting {
            return self
                .note("children are not appraised on demand: the hub is within reach, or this gateway may not".into());
        }
        for child in self.judged_here() {
            self.verifier.appraiser.demand(&child, now);
        }
    }

    /// Whether a direct child can be reached and this gateway's delegation covers it. Whether that is in force is asked
    /// before anything is done ([`Gateway::watch_hub`]).
    fn is_judged_here(&self, child: &NodeId) -> bool {
        let held = self.trust.delegation(&self.config.node);
        let is_covered = |site: &SitePath| held.is_some_and(|d| d.value().covers(site));
        let is_here = self.tree.is_connected(child) && !self.tree.is_revoked(child);
        is_here && self.site_of_child(child).is_some_and(is_covered)
    }

    fn judged_here(&self) -> BTreeSet<NodeId> {
        let here = self.tree.descendants().filter(|c| self.is_judged_here(c));
        here.cloned().collect()
    }

    /// Challenges what is due.
    pub(super) fn challenge(&mut self, now: Now) {
        if !self.verifier.is_acting {
            return;
        }
        let here = self.judged_here();
        for (child, challenge) in self.verifier.appraiser.poll(|n| here.contains(n), now) {
            self.effects.push_back(Action::Challenge { child, challenge });
        }
    }

    /// When the verifier has something to do, monotonic milliseconds.
    pub(super) fn verifier_timeout(&self) -> Option<u64> {
        let appraiser = &self.verifier.appraiser;
        let due = self
            .verifier
            .is_acting
            .then(|| appraiser.timeout(|n| self.is_judged_here(n)));
        due.flatten().into_iter().chain(self.verifier.begin_at).min()
    }

    /// Evidence of a descendant. True when it is for this gateway, and so not for anybody above.
    pub(super) fn on_evidence(&mut self, child: &NodeId, evidence: &VerifiedBytes, now: Now) -> bool {
        let is_mine = evidence.claims().aud == self.config.node;
        if self.known_child(child).is_none_or(|k| k.tier != Tier::Tpm) {
            return is_mine;
        }
        if !is_mine {
            if let Ok(shown) = evidence.clone().decode::<Evidence>() {
                let shown = shown.into_value();
                let known = self.verifier.children.entry(child.clone()).or_default();
                known.answered = Some((shown.nonce, shown.session_key.id()));
            }
            return false;
        }
        if let Err(why) = self.judge(child, evidence.clone(), now) {
            self.note(format!("evidence of {child} says nothing: {why}"));
        }
        true
    }

    fn judge(&mut self, child: &NodeId, evidence: VerifiedBytes, now: Now) -> Result<(), String> {
        if !self.verifier.is_acting || !self.is_judged_here(child) {
            return Err("this gateway does not appraise it, or does not any more".into());
        }
        let known = self.known_child(child).ok_or("it is no child of this gateway")?;
        let site = self
            .site_of_child(child)
            .ok_or("its certificate names no site")?
            .clone();
        let hello = self.tree.hello_said(child).ok_or("its hello is not here")?;
        let about = About {
            node: child,
            site: &site,
            labels: &hello.labels,
            known: &known,
            launches: hello.role == v1::NodeRole::Agent,
        };
        let now_s = self.now_s(now);
        let Verifier {
            appraiser, references, ..
        } = &mut self.verifier;
        let judged = appraiser.judge(&about, evidence, references, now_s, now)?;
        self.ops.push(Op::PutVerdict {
            child: child.clone(),
            verdict: Box::new(judged.verdict),
        });
        if let Some(ear) = judged.ear {
            self.note(format!("this gateway says of {child}: {}", ear.status));
            self.effects.push_back(Action::SignEar(Box::new(ear)));
        }
        Ok(())
    }

    /// A result of this gateway: kept, told to the child, and reported as soon as the hub is back.
    pub(super) fn on_ear_signed(&mut self, child: &NodeId, bytes: &[u8], now: Now) {
        if let Err(why) = self.keep_result(child, bytes, now) {
            return self.note(format!("the result about {child} is not used: {why}"));
        }
        let body = Body::Appraised {
            node: child.clone(),
            ear: ByteBuf::from(bytes.to_vec()),
        };
        self.say(&format!("appraised/{child}"), body, now);
        if self.tree.is_connected(child) {
            let (child, kind, bytes) = (child.clone(), Kind::Ear, bytes.to_vec());
            self.effects.push_back(Action::Forward { child, kind, bytes });
        }
    }
}
