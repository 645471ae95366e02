//! Appraisal: what verified evidence means against reference values. The outcome becomes an [`Ear`].

use std::collections::{BTreeMap, BTreeSet};

use cnova_shared::certificate::Tier;
use cnova_shared::ids::{Digest, NodeId, SitePath};
use cnova_shared::keys::PublicKey;

pub use crate::launch_log::{Launched, LogState};

use crate::ear::{Ear, Finding, Status, TrustVector, VerifierId};
use crate::event_log::Event;
use crate::firmware_log::FirmwareLog;
use crate::launch_log::{self, Judged, Replay};
use crate::quote::{VerifiedEvidence, VerifiedQuote};
use crate::reference::{PcrReference, ReferenceSet, References};
use crate::{Pcr, limits};

/// The node that evidence is about, as the verifier knows it. None of this comes from the evidence.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Its name.
    pub node: &'a NodeId,
    /// Its place, from its certificate.
    pub site: &'a SitePath,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
    /// What it holds its keys in, as pinned at enrolment.
    pub tier: Tier,
    /// The register of the launch log, [`crate::DEFAULT_LAUNCH_PCR`] unless configured; nothing for a node that launches
    /// nothing, such as a gateway.
    pub launch_pcr: Option<u8>,
}

/// What evidence means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appraisal {
    /// The judgement.
    pub status: Status,
    /// What it rests on.
    pub vector: TrustVector,
    /// What the node holds its keys in, as pinned.
    pub tier: Tier,
    /// The reference set that fits, or fits best, and the version of the document.
    pub policy: String,
    /// What was found, the weightiest first.
    pub findings: Vec<Finding>,
    /// Whether the firmware measured the boot at all (one of PCR 0 to 7 is not zero).
    pub boot_measured: bool,
    /// What to keep of the launch log for the next appraisal, and what provably was launched since boot. Nothing when the
    /// log proves nothing: keep what there was.
    pub log: Option<LogState>,
    /// The entry that was logged and not yet extended.
    pub pending: Option<Event>,
    /// The launch log is longer than one message: challenge again now, with [`LogState::prefix`] of `log`, and issue a
    /// result only for the last part.
    pub incomplete: bool,
    found: Vec<(Status, Finding)>,
    nonce: Vec<u8>,
    node: NodeId,
}

/// What an attestation result needs beside the appraisal.
#[derive(Clone, Debug)]
pub struct Issue {
    /// The subject's device key, from its certificate.
    pub key: PublicKey,
    /// Who judged.
    pub verifier: VerifierId,
    /// Now, seconds since 1970.
    pub iat: u64,
    /// Until when it may be relied on, seconds since 1970.
    pub exp: u64,
}

impl Appraisal {
    /// The attestation result.
    #[must_use]
    pub fn ear(&self, issue: Issue) -> Ear {
        Ear {
            subject: self.node.clone(),
            key: issue.key,
            nonce: self.nonce.clone(),
            iat: issue.iat,
            exp: issue.exp,
            verifier: issue.verifier,
            status: self.status,
            vector: self.vector,
            policy: self.policy.clone(),
            tier: self.tier,
            boot_measured: self.boot_measured,
            findings: self.findings.clone(),
        }
    }

    fn add(&mut self, status: Status, finding: Finding) {
        self.status = self.status.max(status);
        self.found.push((status, finding));
    }

    /// Puts the weightiest findings first, and keeps as many as a result carries.
    fn finish(mut self) -> Self {
        self.found.sort_by_key(|(status, _)| std::cmp::Reverse(*status));
        let found = std::mem::take(&mut self.found);
        self.findings = found.into_iter().map(|(_, f)| f).take(limits::FINDINGS).collect();
        self
    }
}

/// Appraises evidence that answered its challenge. `retained` is what the last appraisal of this node left in
/// [`Appraisal::log`].
#[must_use]
pub fn appraise(
    subject: &Subject<'_>,
    evidence: &VerifiedEvidence,
    references: &References,
    retained: Option<&LogState>,
) -> Appraisal {
    let mut appraisal = Appraisal {
        status: Status::Affirming,
        vector: TrustVector::default(),
        tier: subject.tier,
        policy: String::new(),
        findings: Vec::new(),
        boot_measured: false,
        log: None,
        pending: None,
        incomplete: false,
        found: Vec::new(),
        nonce: evidence.nonce().to_vec(),
        node: evidence.node().clone(),
    };
    match evidence {
        VerifiedEvidence::Soft(_) => appraise_soft(&mut appraisal),
        VerifiedEvidence::Tpm(quote) => appraise_quote(&mut appraisal, subject, quote, references, retained),
    }
    appraisal.finish()
}

fn finding(code: &str, detail: String) -> Finding {
    Finding {
        code: code.into(),
        detail,
        ..Finding::default()
    }
}

fn appraise_soft(appraisal: &mut Appraisal) {
    if appraisal.tier == Tier::Soft {
        appraisal.status = Status::None;
        return;
    }
    appraisal.vector.instance_identity = 97;
    let detail = "downgrade: it was admitted with a TPM and shows evidence without one; look at the machine, and enrol it \
                  anew if its TPM was taken out on purpose";
    appraisal.add(Status::Contraindicated, finding("downgrade", detail.into()));
}

fn appraise_quote(
    appraisal: &mut Appraisal,
    subject: &Subject<'_>,
    quote: &VerifiedQuote,
    references: &References,
    retained: Option<&LogState>,
) {
    appraisal.vector.instance_identity = 2;
    appraisal.vector.hardware = 2;
    let measured = |(pcr, value): (&u8, &Pcr)| *pcr < 8 && *value != crate::event_log::ZERO;
    appraisal.boot_measured = quote.pcrs().iter().any(measured);
    let selects = |s: &&ReferenceSet| s.nodes.selects(subject.node, subject.site, subject.labels);
    let candidates: Vec<&ReferenceSet> = references.sets.iter().filter(selects).collect();
    let judged = candidates
        .iter()
        .map(|s| (wrong_registers(s, quote.pcrs(), subject.launch_pcr), *s));
    let judged: Vec<(Vec<u8>, &ReferenceSet)> = judged.collect();
    let Some((wrong, set)) = judged.iter().min_by_key(|(wrong, _)| wrong.len()) else {
        let detail = format!(
            "there are no reference values for {}: make them with `cnova reference add`",
            subject.node
        );
        appraisal.add(Status::Warning, finding("no-references", detail));
        if let Some(pcr) = subject.launch_pcr {
            appraise_log(appraisal, pcr, quote, &[], retained);
        }
        return;
    };
    appraisal.policy = format!("{} (references {})", set.name, references.version);
    appraisal.vector.configuration = if wrong.is_empty() { 2 } else { 96 };
    if wrong.is_empty() && appraisal.boot_measured {
        appraisal.vector.executables = 3;
    }
    appraise_registers(appraisal, quote, wrong, set, &candidates);
    // What may run is the union of all sets that fit the boot as well as the best: an agent that was updated without a
    // reboot has entries of both versions in its log.
    let best = judged.iter().filter(|(w, _)| w.len() == wrong.len()).map(|(_, s)| *s);
    if let Some(pcr) = subject.launch_pcr {
        appraise_log(appraisal, pcr, quote, &best.collect::<Vec<_>>(), retained);
    }
}

fn appraise_registers(
    appraisal: &mut Appraisal,
    quote: &VerifiedQuote,
    wrong: &[u8],
    set: &ReferenceSet,
    candidates: &[&ReferenceSet],
) {
    let names = candidates.iter().take(limits::FINDING_NAMES).map(|s| s.name.clone());
    let names: Vec<String> = names.collect();
    // Read only when something is wrong: most appraisals never look at it.
    let firmware = (!wrong.is_empty())
        .then(|| quote.firmware_log().map(FirmwareLog::read))
        .flatten();
    for pcr in wrong {
        let got = quote.pcrs().get(pcr).copied();
        let (detail, event) = explain(*pcr, got, set.pcrs.get(pcr), firmware.as_ref());
        let mismatch = Finding {
            code: "pcr-mismatch".into(),
            detail,
            pcr: Some(*pcr),
            got,
            expected: names.clone(),
            event,
        };
        appraisal.add(Status::Contraindicated, mismatch);
    }
}

/// The registers that do not hold what this set allows. The launch register is judged by its log.
fn wrong_registers(set: &ReferenceSet, pcrs: &BTreeMap<u8, Pcr>, launch_pcr: Option<u8>) -> Vec<u8> {
    let wrong = |(pcr, reference): &(&u8, &PcrReference)| {
        Some(**pcr) != launch_pcr && !pcrs.get(*pcr).is_some_and(|v| reference.values.contains(v))
    };
    set.pcrs.iter().filter(wrong).map(|(pcr, _)| *pcr).collect()
}

/// What is wrong with a register, and which event of the firmware differs, if its log is there and can tell.
fn explain(
    pcr: u8,
    got: Option<Pcr>,
    reference: Option<&PcrReference>,
    firmware: Option<&Result<FirmwareLog, crate::firmware_log::FirmwareLogError>>,
) -> (String, Option<String>) {
    let Some(got) = got else {
        return (
            format!("PCR {pcr} was not quoted: configure the node to quote it"),
            None,
        );
    };
    let holds = format!("PCR {pcr} holds {}, which no reference allows", got.short());
    let log = match firmware {
        None => {
            return (
                format!("{holds}; the node sent no firmware log that could say why"),
                None,
            );
        }
        Some(Err(e)) => return (format!("{holds}; its firmware log cannot be read: {e}"), None),
        Some(Ok(log)) => log,
    };
    if log.replay(pcr) != got {
        return (format!("{holds}, and its firmware log does not replay to it"), None);
    }
    let events = reference.map(|r| &r.events).filter(|e| !e.is_empty());
    let Some(events) = events else {
        return (format!("{holds}; the references list no events for it"), None);
    };
    match log.first_unknown(pcr, events) {
        Some(e) => {
            let event = format!("event {} ({}, {})", e.index, e.kind_name(), e.digest.short());
            (
                format!("{holds}: {event} is not among the reference's events"),
                Some(event),
            )
        }
        None => (
            format!("{holds}: all its events are known, but their order or number is another"),
            None,
        ),
    }
}

fn appraise_log(
    appraisal: &mut Appraisal,
    pcr: u8,
    quote: &VerifiedQuote,
    sets: &[&ReferenceSet],
    retained: Option<&LogState>,
) {
    let Some(register) = quote.pcrs().get(&pcr) else {
        let detail = format!("PCR {pcr}, the launch register, was not quoted: configure the node to quote it");
        let missing = Finding {
            pcr: Some(pcr),
            ..finding("launch-register-missing", detail)
        };
        return appraisal.add(Status::Contraindicated, missing);
    };
    let starts = sets.iter().filter_map(|s| s.pcrs.get(&pcr)).flat_map(|r| &r.values);
    let starts: BTreeSet<Pcr> = starts.copied().collect();
    let reset_count = quote.clock().reset_count;
    let Judged { replay, state } = launch_log::judge(quote.log(), retained, register, reset_count, &starts);
    appraisal.log = state;
    match replay {
        Replay::Proven { pending } => {
            appraisal.pending = pending;
            appraise_launches(appraisal, sets);
        }
        Replay::Incomplete { have, total } => {
            appraisal.incomplete = true;
            let detail = format!("the launch log has {total} entries and {have} of them are here: ask for the rest");
            appraisal.add(Status::Warning, finding("log-incomplete", detail));
        }
        Replay::Absent => {
            let detail = "there is no launch log, and the launch register was not used: what runs is not measured";
            appraisal.add(Status::Warning, finding("no-launch-log", detail.into()));
        }
        Replay::Refuted { detail, event } => {
            appraisal.vector.executables = 96;
            let mismatch = Finding {
                code: "launch-log".into(),
                detail: format!("PCR {pcr}: {detail}"),
                pcr: Some(pcr),
                got: Some(*register),
                expected: Vec::new(),
                event,
            };
            appraisal.add(Status::Contraindicated, mismatch);
        }
    }
}

/// What was launched since boot, against the lists of the sets, where they have any. Judged anew each time, all of it: a
/// list may have become shorter since.
fn appraise_launches(appraisal: &mut Appraisal, sets: &[&ReferenceSet]) {
    let Some(log) = &appraisal.log else { return };
    let mut refused = Vec::new();
    for agent in log.agents.iter().filter(|a| !allowed(sets, |s| &s.agents, a)) {
        let event = format!("agent {}", agent.short());
        refused.push((
            "agent-refused",
            "wrote the launch log, and the references do not allow it",
            event,
        ));
    }
    for Launched { seq, launch } in &log.launched {
        let event = format!("entry {seq} (launch of {})", launch.workload);
        if !allowed(sets, |s| &s.runtimes, &launch.runtime) {
            let event = format!("{event} by runtime {}", launch.runtime.short());
            refused.push((
                "runtime-refused",
                "was launched, and the references do not allow its runtime",
                event,
            ));
        } else if !allowed(sets, |s| &s.artifacts, &launch.artifact) {
            let event = format!("{event} of artifact {}", launch.artifact.short());
            refused.push((
                "artifact-refused",
                "was launched, and the references do not allow its artifact",
                event,
            ));
        }
    }
    let lists = |s: &&ReferenceSet| !s.runtimes.is_empty() && !s.artifacts.is_empty() && !s.agents.is_empty();
    if !refused.is_empty() {
        appraisal.vector.executables = 96;
    } else if sets.iter().all(lists) && appraisal.vector.executables == 3 {
        appraisal.vector.executables = 2;
    }
    for (code, what, event) in refused.into_iter().take(limits::FINDINGS) {
        let refusal = Finding {
            event: Some(event.clone()),
            ..finding(code, format!("{event} {what}"))
        };
        appraisal.add(Status::Contraindicated, refusal);
    }
}

/// Whether one of the sets allows it; a set with an empty list allows any, and so does no set.
fn allowed(sets: &[&ReferenceSet], list: fn(&ReferenceSet) -> &BTreeSet<Digest>, digest: &Digest) -> bool {
    sets.is_empty() || sets.iter().map(|s| list(s)).any(|l| l.is_empty() || l.contains(digest))
}
