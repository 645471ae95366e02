//! Who is challenged when, and what came of it: one state machine for all nodes of a verifier, without I/O.
//!
//! The hub has one for the tree; a gateway has one for its children, which it uses while the hub is away and a delegation
//! allows it. Challenges go out when a node introduces another session key (it was started anew), when its period is
//! over and on demand; an unanswered one is repeated with a pause that grows. Unreachable is not untrusted: a result that
//! is not renewed becomes stale, and only evidence makes it worse than that.

use std::collections::BTreeMap;

use cnova_shared::certificate::Tier;
use cnova_shared::envelope::VerifiedBytes;
use cnova_shared::ids::{Digest, NodeId};
use cnova_shared::keys::{KeyId, PublicKey};
use cnova_shared::limits::{NONCE_BYTES, RESEND_MAX_MS};
use cnova_shared::time::Now;
use cnova_shared::wire::v1::{self, Challenge, TrustRequirement};
use serde::{Deserialize, Serialize};

use crate::Pcr;
use crate::appraise::{Appraisal, LogState, Subject, appraise};
use crate::ear::{Ear, Finding, Status, VerifierId};
use crate::evidence::Evidence;
use crate::firmware_log::FirmwareLog;
use crate::limits;
use crate::quote::{VerifiedEvidence, VerifiedQuote, verify_evidence};
use crate::reference::References;

/// How often, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rhythm {
    /// Between two attestations of a node, milliseconds.
    pub period_ms: u64,
    /// How long a result may be relied on, seconds.
    pub valid_s: u64,
    /// For how long a node that was started anew keeps what it had, seconds: it has to attest in that time.
    pub grace_s: u64,
}

impl Default for Rhythm {
    fn default() -> Self {
        Self {
            period_ms: 3_600_000,
            valid_s: 86_400,
            grace_s: 600,
        }
    }
}

/// What a verifier keeps of a node across its own restarts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The judgement.
    pub status: StatusWord,
    /// What was found, for people: the weightiest first.
    pub findings: Vec<String>,
    /// By which references.
    pub policy: String,
    /// When, seconds since 1970 by the verifier's clock.
    pub at_s: u64,
    /// Until when it may be relied on.
    pub exp_s: u64,
    /// The session key that the evidence was bound to.
    pub session: KeyId,
    /// Whether the firmware measured the boot.
    pub boot_measured: bool,
    /// The registers, as quoted.
    pub pcrs: BTreeMap<u8, Pcr>,
    /// What the firmware measured into register 4, where its log says so truly: the programs that it started, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loads: Vec<Digest>,
    /// The launch log as far as it was replayed.
    pub log: Option<LogState>,
}

/// [`Status`] as a word, for stores and people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StatusWord {
    /// [`Status::Affirming`].
    Affirming,
    /// [`Status::None`].
    Unattested,
    /// [`Status::Warning`].
    Warning,
    /// [`Status::Contraindicated`].
    Contraindicated,
}

impl From<Status> for StatusWord {
    fn from(status: Status) -> Self {
        match status {
            Status::Affirming => Self::Affirming,
            Status::None => Self::Unattested,
            Status::Warning => Self::Warning,
            Status::Contraindicated => Self::Contraindicated,
        }
    }
}

/// How far a node is trusted now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its key lies in a file.
    Unattested,
    /// It has a TPM and was not appraised yet.
    Pending,
    /// It is what it should be.
    Affirming,
    /// It was, and has not shown it for too long. What runs runs on; why, for a person.
    Stale(String),
    /// Not all was there to judge by; what is missing.
    Warning(String),
    /// It is not what it should be; what was found.
    Contraindicated(String),
}

impl Standing {
    /// What it meets: for what is new, and for what runs already.
    #[must_use]
    pub fn meets(&self) -> (TrustRequirement, TrustRequirement) {
        use TrustRequirement::{Attested, None, Tpm};
        match self {
            Self::Unattested => (None, None),
            Self::Pending | Self::Warning(_) | Self::Contraindicated(_) => (Tpm, Tpm),
            Self::Stale(_) => (Tpm, Attested),
            Self::Affirming => (Attested, Attested),
        }
    }

    /// In one word.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Unattested => "UNATTESTED",
            Self::Pending => "pending",
            Self::Affirming => "affirming",
            Self::Stale(_) => "stale",
            Self::Warning(_) => "warning",
            Self::Contraindicated(_) => "CONTRAINDICATED",
        }
    }

    /// Why it is not more, for a person.
    #[must_use]
    pub fn why(&self) -> String {
        match self {
            Self::Unattested => "its key lies in a file".into(),
            Self::Pending => "it has not been appraised yet".into(),
            Self::Affirming => String::new(),
            Self::Stale(why) | Self::Warning(why) | Self::Contraindicated(why) => why.clone(),
        }
    }
}

/// A node as its certificate and hello describe it.
#[derive(Clone, Debug)]
pub struct Known {
    /// What it holds its key in.
    pub tier: Tier,
    /// SHA-256 of its attestation key (`TPMT_PUBLIC`), as its certificate pins it.
    pub ak: Option<Digest>,
    /// The key of its certificate.
    pub key: PublicKey,
    /// The key that it signs with now.
    pub session: PublicKey,
}

#[derive(Clone, Debug, Default)]
struct Node {
    tier: Tier,
    ak: Option<Digest>,
    session: Option<KeyId>,
    /// When the present session key was first seen, seconds since 1970.
    session_since_s: u64,
    verdict: Option<Verdict>,
    /// The session under which the log of the verdict was shown. A node that began anew shows all of it: it may have booted,
    /// and a log of two boots may begin alike.
    log_of: Option<KeyId>,
    /// The session key for which another verifier has judged it ([`Appraiser::credit`]).
    credited: Option<KeyId>,
    pending: Option<Vec<u8>>,
    due: Option<u64>,
    pause_ms: u64,
}

/// All nodes of one verifier.
#[derive(Debug)]
pub struct Appraiser {
    rhythm: Rhythm,
    launch_pcr: u8,
    /// Random, new at every start: what makes nonces unpredictable.
    seed: [u8; 32],
    asked: u64,
    /// Whose name results carry, beside the program's.
    name: Option<NodeId>,
    /// No result holds longer than until then, seconds since 1970.
    ends_s: u64,
    nodes: BTreeMap<NodeId, Node>,
}

/// What evidence came to.
#[derive(Clone, Debug)]
pub struct Judged {
    /// What is to be kept.
    pub verdict: Verdict,
    /// The result, to be signed and sent; nothing while a long log is told in parts.
    pub ear: Option<Ear>,
}

const FIRST_PAUSE_MS: u64 = 5_000;

impl Appraiser {
    /// With what the store holds. `seed` must be random and never be used twice.
    #[must_use]
    pub fn new(rhythm: Rhythm, launch_pcr: u8, seed: [u8; 32], stored: BTreeMap<NodeId, Verdict>) -> Self {
        let node = |verdict: Verdict| Node {
            tier: Tier::Tpm,
            session: Some(verdict.session),
            verdict: Some(verdict),
            ..Node::default()
        };
        Self {
            rhythm,
            launch_pcr,
            seed,
            asked: 0,
            name: None,
            ends_s: u64::MAX,
            nodes: stored.into_iter().map(|(id, v)| (id, node(v))).collect(),
        }
    }

    /// Results say that this node judged.
    #[must_use]
    pub fn named(self, name: NodeId) -> Self {
        let name = Some(name);
        Self { name, ..self }
    }

    /// No result holds longer than until then, seconds since 1970: the right to judge ends there.
    pub fn ends_at(&mut self, ends_s: u64) {
        self.ends_s = ends_s;
    }

    /// Another verifier has judged the node under this session key: it is asked at `due_ms` (monotonic) and not before,
    /// unless it begins anew.
    pub fn credit(&mut self, id: &NodeId, session: KeyId, due_ms: u64) {
        if let Some(node) = self.nodes.get_mut(id).filter(|n| n.session == Some(session)) {
            node.credited = Some(session);
            node.pending = None;
            node.due = Some(due_ms);
            node.pause_ms = FIRST_PAUSE_MS;
        }
    }

    /// A node said hello: who has a TPM and began anew is challenged.
    pub fn greet(&mut self, id: &NodeId, known: &Known, now: Now) {
        let period_ms = self.rhythm.period_ms;
        let node = self.nodes.entry(id.clone()).or_default();
        (node.tier, node.ak) = (known.tier, known.ak);
        let session = known.session.id();
        if node.session.replace(session) != Some(session) {
            node.session_since_s = now.wall_ms / 1000;
        }
        let is_judged = node.verdict.as_ref().is_some_and(|v| v.session == session) || node.credited == Some(session);
        let judged_s = node.verdict.as_ref().map_or(0, |v| v.at_s);
        match node.due {
            _ if known.tier != Tier::Tpm => node.due = None,
            Some(_) if is_judged => {}
            // This verifier began anew: it goes on where it was.
            None if is_judged => {
                let next_ms = (judged_s * 1000 + period_ms).saturating_sub(now.wall_ms);
                node.due = Some(now.mono_ms + next_ms.min(period_ms));
            }
            _ => node.ask(now.mono_ms),
        }
    }

    /// Somebody wants to know now.
    pub fn demand(&mut self, id: &NodeId, now: Now) -> bool {
        let node = self.nodes.get_mut(id).filter(|n| n.tier == Tier::Tpm);
        node.map(|n| n.ask(now.mono_ms)).is_some()
    }

    /// The references changed: everybody is judged anew, spread over a while.
    pub fn references_changed(&mut self, now: Now) {
        for (at, node) in self.nodes.values_mut().filter(|n| n.tier == Tier::Tpm).enumerate() {
            let at = now.mono_ms + 10 * at as u64;
            node.due = Some(node.due.map_or(at, |due| due.min(at)));
        }
    }

    /// When [`Appraiser::poll`] has something, monotonic milliseconds.
    #[must_use]
    pub fn timeout(&self, reachable: impl Fn(&NodeId) -> bool) -> Option<u64> {
        let due = self.nodes.iter().filter(|(id, _)| reachable(id));
        due.filter_map(|(_, n)| n.due).min()
    }

    /// The challenges that are due, for nodes that can be reached.
    pub fn poll(&mut self, reachable: impl Fn(&NodeId) -> bool, now: Now) -> Vec<(NodeId, Challenge)> {
        let (seed, asked) = (self.seed, &mut self.asked);
        let is_due = |n: &Node| n.due.is_some_and(|due| due <= now.mono_ms);
        let due = self.nodes.iter_mut().filter(|(id, n)| is_due(n) && reachable(id));
        due.map(|(id, node)| {
            *asked += 1;
            let nonce = Digest::of(&[seed.as_slice(), &asked.to_be_bytes(), id.as_str().as_bytes()].concat()).0;
            node.pending = Some(nonce[..NONCE_BYTES].to_vec());
            // A node that was only ever waited for has no pause yet.
            let pause_ms = node.pause_ms.max(FIRST_PAUSE_MS);
            node.due = Some(now.mono_ms + pause_ms);
            node.pause_ms = (pause_ms * 2).min(RESEND_MAX_MS * 10);
            let log = node.verdict.as_ref().and_then(|v| v.log.as_ref());
            let log = log.filter(|_| node.log_of == node.session).map(LogState::prefix);
            let challenge = Challenge {
                v: v1::VERSION,
                nonce: nonce[..NONCE_BYTES].to_vec(),
                log,
            };
            (id.clone(), challenge)
        })
        .collect()
    }

    /// Judges evidence whose envelope held. What does not answer the challenge at hand says nothing, and the node's
    /// standing stays what it was.
    ///
    /// # Errors
    /// Why it says nothing, for a person.
    pub fn judge(
        &mut self,
        subject: &About<'_>,
        evidence: VerifiedBytes,
        references: &References,
        now_s: u64,
        now: Now,
    ) -> Result<Judged, String> {
        let (rhythm, launch_pcr) = (self.rhythm, self.launch_pcr);
        let exp = (now_s + rhythm.valid_s).min(self.ends_s);
        let verifier = self.verifier();
        let id = subject.node;
        let node = self.nodes.get_mut(id).ok_or("nobody challenged it")?;
        let nonce = node.pending.as_ref().ok_or("nobody challenged it")?;
        let evidence = evidence.decode::<Evidence>().map_err(|e| e.to_string())?.into_value();
        let shown = evidence.tpm.as_ref().map(|t| t.ak_public.clone());
        let pinned = shown.filter(|ak| node.ak == Some(Digest::of(ak)));
        if evidence.tpm.is_some() && node.ak.is_some() && pinned.is_none() {
            return Err("the quote is of another TPM: its attestation key is not the one in the certificate".into());
        }
        if evidence.session_key != subject.known.session {
            return Err("the evidence binds another session key than the one that the node signs with".into());
        }
        let verified = verify_evidence(&evidence, id, nonce, pinned.as_deref()).map_err(|e| e.to_string())?;
        node.pending = None;
        let about = Subject {
            node: id,
            site: subject.site,
            labels: subject.labels,
            tier: node.tier,
            launch_pcr: subject.launches.then_some(launch_pcr),
        };
        let retained = node.verdict.as_ref().and_then(|v| v.log.as_ref());
        let mut appraisal = appraise(&about, &verified, references, retained);
        let key = verified.session_key().id();
        if appraisal.log.is_none() {
            // What was proven before stays proven.
            appraisal.log = retained.cloned();
        }
        node.log_of = Some(key);
        node.pause_ms = FIRST_PAUSE_MS;
        node.due = Some(now.mono_ms + if appraisal.incomplete { 0 } else { rhythm.period_ms });
        let mut verdict = verdict_of(&appraisal, &verified, key, now_s, exp);
        if let (true, Some(before)) = (appraisal.incomplete, &node.verdict) {
            // A part of a long log says nothing new about the node: what was said of it stands until all of it is here.
            let log = verdict.log.take();
            verdict = Verdict { log, ..before.clone() };
        }
        node.verdict = Some(verdict.clone());
        let ear = (!appraisal.incomplete).then(|| {
            appraisal.ear(crate::appraise::Issue {
                key: subject.known.key.clone(),
                verifier,
                iat: now_s,
                exp,
            })
        });
        Ok(Judged { verdict, ear })
    }

    fn verifier(&self) -> VerifierId {
        let build = concat!("cnova ", env!("CARGO_PKG_VERSION"));
        VerifierId {
            developer: "Cloudnova".into(),
            build: match &self.name {
                Some(name) => format!("{build} at {name}"),
                None => build.into(),
            },
        }
    }

    /// How far a node is trusted now.
    #[must_use]
    pub fn standing(&self, id: &NodeId, now_s: u64) -> Standing {
        let Some(node) = self.nodes.get(id) else {
            return Standing::Unattested;
        };
        if node.tier != Tier::Tpm {
            return Standing::Unattested;
        }
        let Some(verdict) = &node.verdict else {
            return Standing::Pending;
        };
        let first = || verdict.findings.first().cloned().unwrap_or_default();
        match verdict.status {
            StatusWord::Contraindicated => return Standing::Contraindicated(first()),
            StatusWord::Warning | StatusWord::Unattested => return Standing::Warning(first()),
            StatusWord::Affirming => {}
        }
        if verdict.exp_s <= now_s {
            return Standing::Stale(format!(
                "it has not attested since {} (seconds since 1970)",
                verdict.at_s
            ));
        }
        let is_restarted = node.session.is_some_and(|s| s != verdict.session);
        if is_restarted && node.session_since_s + self.rhythm.grace_s <= now_s {
            return Standing::Stale("it was started anew and has not attested since".into());
        }
        Standing::Affirming
    }

    /// What is known of a node.
    #[must_use]
    pub fn verdict(&self, id: &NodeId) -> Option<&Verdict> {
        self.nodes.get(id)?.verdict.as_ref()
    }

    /// Forgets a node.
    pub fn forget(&mut self, id: &NodeId) {
        self.nodes.remove(id);
    }
}

/// Whom evidence should be about.
#[derive(Clone, Debug)]
pub struct About<'a> {
    /// Its name.
    pub node: &'a NodeId,
    /// Its place, from its certificate.
    pub site: &'a cnova_shared::ids::SitePath,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
    /// Its keys.
    pub known: &'a Known,
    /// Whether it launches workloads.
    pub launches: bool,
}

impl Node {
    fn ask(&mut self, mono_ms: u64) {
        self.due = Some(mono_ms);
        self.pause_ms = FIRST_PAUSE_MS;
    }
}

fn verdict_of(appraisal: &Appraisal, verified: &VerifiedEvidence, session: KeyId, now_s: u64, exp_s: u64) -> Verdict {
    let pcrs = match verified {
        VerifiedEvidence::Tpm(quote) => quote.pcrs().clone(),
        VerifiedEvidence::Soft(_) => BTreeMap::new(),
    };
    let loads = match verified {
        VerifiedEvidence::Tpm(quote) => loads_of(quote),
        VerifiedEvidence::Soft(_) => Vec::new(),
    };
    Verdict {
        status: appraisal.status.into(),
        findings: appraisal.findings.iter().map(|f: &Finding| f.detail.clone()).collect(),
        policy: appraisal.policy.clone(),
        at_s: now_s,
        exp_s,
        session,
        boot_measured: appraisal.boot_measured,
        pcrs,
        loads,
        log: appraisal.log.clone(),
    }
}

/// The register into which firmware measures the programs that it starts (PC Client Platform Firmware Profile, section 3.3.4.5).
pub const LOADS_PCR: u8 = 4;

fn loads_of(quote: &VerifiedQuote) -> Vec<Digest> {
    let log = quote.firmware_log().and_then(|l| FirmwareLog::read(l).ok());
    let is_true = |l: &FirmwareLog| quote.pcrs().get(&LOADS_PCR) == Some(&l.replay(LOADS_PCR));
    let events = log.filter(is_true).map(|l| l.events_of(LOADS_PCR)).unwrap_or_default();
    // A list that would be cut could only mislead.
    if events.len() > limits::EVENTS_PER_PCR {
        Vec::new()
    } else {
        events
    }
}
