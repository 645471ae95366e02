//! What the node proves, what it is told of that, and what it thinks of its own disk.

use cnova_attestation::ear::{self, Ear, EarError, Status};
use cnova_shared::bundle::Role;
use cnova_shared::envelope::{Untrusted, Verified};
use cnova_shared::ids::HUB_AUDIENCE;

use super::*;
use crate::intake::Refusal;
use crate::standing::{CounterState, Rollback};

/// A parent that was affirming is listened to for so long after its result has ended, seconds.
pub(super) const PARENT_GRACE_S: u64 = 7 * 86_400;

impl Agent {
    /// Looks at what the TPM says of the ledger, once at boot.
    pub(super) fn judge_disk(&mut self, now: Now) {
        match Rollback::judge(self.counter, self.config.root.counter) {
            Rollback::None => {}
            Rollback::Begin(value) => {
                self.counter = value;
                self.ops.push(Op::Counter(value));
            }
            Rollback::Finish => self.count_up(),
            Rollback::Found(why) => {
                let detail = format!(
                    "{why}. No twin is taken, and what asks for trust waits, until the hub has answered; the rest runs on"
                );
                self.alarm("quarantine", detail.clone(), now);
                // The hello says it, too: the hub's answer is for this very start.
                let code = "quarantine".to_owned();
                self.config.alarms.push(v1::Alarm { code, detail });
                self.standing.quarantine = Some(why);
            }
        }
    }

    /// A twin is about to be committed: the ledger counts up with it, and the TPM follows after the commit. While the TPM
    /// has not followed, the ledger does not run further ahead: one step is all that a power cut may leave between them.
    pub(super) fn count(&mut self) {
        if matches!(self.config.root.counter, CounterState::Value(_)) && !self.counting {
            self.counter += 1;
            self.ops.push(Op::Counter(self.counter));
            self.count_up();
        }
    }

    fn count_up(&mut self) {
        self.counting = true;
        self.effects.push_back(Action::CountUp);
    }

    pub(super) fn on_counted(&mut self, result: Result<u64, String>, now: Now) {
        match result {
            Ok(value) if value == self.counter => self.counting = false,
            // Somebody else counts with it. What is on disk must not look rolled back at the next start.
            Ok(value) => {
                self.counting = false;
                self.counter = value;
                self.ops.push(Op::Counter(value));
                self.stage(Stage::Note(format!("the TPM's counter jumped to {value}")));
            }
            Err(why) => {
                let detail = format!("the TPM's counter could not be increased, and will be at the next start: {why}");
                self.alarm("tpm", detail, now);
            }
        }
    }

    pub(super) fn on_unmeasured(&mut self, why: Option<String>, now: Now) {
        match &why {
            Some(why) => {
                let detail = format!("launches cannot be measured, and what asks for attestation waits: {why}");
                self.alarm("unmeasured", detail, now);
            }
            None if self.standing.unmeasured.is_some() => self.say("alarm/unmeasured", now, Body::Over),
            None => {}
        }
        self.standing.unmeasured = why;
    }

    /// In quarantine no twin is taken, whoever signed it: it may be an old one, and the ledger cannot tell.
    pub(super) fn quarantined(&self, verdict: Verdict) -> Verdict {
        match (&self.standing.quarantine, verdict) {
            (Some(why), Verdict::Take(twin)) => Verdict::Refuse(Refusal {
                code: "quarantine",
                detail: format!("this node is in quarantine until the hub lets it out: {why}"),
                version: twin.version(),
            }),
            (_, verdict) => verdict,
        }
    }

    /// The hub has seen that the disk was rolled back and says what is newest.
    pub(super) fn on_release(&mut self, id: u64, boot: &str, floor: Version, now: Now) {
        let (ok, text) = if boot != self.config.boot {
            (false, "this release is for another start of this node".to_owned())
        } else if self.standing.quarantine.take().is_none() {
            (true, "this node is not in quarantine".to_owned())
        } else {
            self.floor = floor;
            let Version { epoch, generation } = floor;
            self.ops.push(Op::Floor { epoch, generation });
            if let CounterState::Value(counter) = self.config.root.counter {
                self.counter = counter.value;
                self.ops.push(Op::Counter(counter.value));
            }
            self.say("alarm/quarantine", now, Body::Over);
            self.config.alarms.retain(|a| a.code != "quarantine");
            self.parent.changed(now.mono_ms);
            (true, format!("out of quarantine; nothing below {floor} is taken"))
        };
        let v = v1::VERSION;
        let reply = v1::Reply { v, id, ok, text };
        self.effects.push_back(Action::Send(Message::Reply(reply)));
    }

    /// A verifier wants to know what runs here: the hub, or the parent.
    pub(super) fn on_challenge(&mut self, bytes: &[u8], now: Now) {
        let (me, now_s) = (self.config.node.clone(), self.now_s(now));
        let trust = self.trust.bundle();
        let by_hub = Untrusted::read(bytes).is_ok_and(|u| trust.key(u.kid, Role::Attestation, now_s).is_some());
        let opened = if by_hub {
            Parent::open_hub(Kind::Challenge, bytes, &me, trust, now_s)
        } else {
            self.parent.open(Kind::Challenge, bytes, &me, &self.trust, now_s)
        };
        match opened.and_then(|v| Ok(v.decode::<v1::Challenge>()?)) {
            Ok(challenge) if challenge.value().nonce.len() == limits::NONCE_BYTES => {
                // Gateways on the way take what is for the hub, whatever its name.
                let asker = challenge.claims().iss.clone();
                let hub = NodeId::new(HUB_AUDIENCE).ok().filter(|_| by_hub);
                let verifier = hub.unwrap_or(asker);
                let challenge = challenge.into_value();
                self.effects.push_back(Action::Attest { verifier, challenge });
            }
            Ok(_) => self.stage(Stage::Note(
                "a challenge was not taken: its nonce has another length".into(),
            )),
            Err(e) => self.stage(Stage::Note(format!("a challenge was not taken: {e}"))),
        }
    }

    /// A result about this node, or about its parent.
    pub(super) fn on_ear(&mut self, bytes: &[u8], now: Now) {
        let ear = match self.open_ear(bytes, Some(self.now_s(now))) {
            Ok(ear) => ear,
            Err(why) => return self.stage(Stage::Note(format!("an attestation result was not taken: {why}"))),
        };
        let iat = ear.claims().iat;
        let (bytes, ear) = (ear.bytes().to_vec(), ear.into_value());
        let is_newer = |held: &Option<Ear>| held.as_ref().is_none_or(|h| h.iat <= ear.iat);
        if ear.subject == self.config.node {
            if is_newer(&self.standing.ear) {
                self.raise_floor(iat);
                self.stage(Stage::Note(format!("the verifier says of this node: {}", ear.status)));
                self.standing.ear = Some(ear);
                self.ops.push(Op::PutEar(bytes));
            }
        } else if ear.subject == self.config.parent && is_newer(&self.standing.parent) {
            self.stage(Stage::Note(format!("the hub says of the parent: {}", ear.status)));
            self.standing.parent = Some(ear);
            self.ops.push(Op::PutParentEar(bytes));
        }
    }

    /// `now_s` is nothing for a result that was taken before: its key may have run out since.
    fn open_ear(&self, bytes: &[u8], now_s: Option<u64>) -> Result<Verified<Ear>, String> {
        let untrusted = Untrusted::read(bytes).map_err(|e| e.to_string())?;
        let trust = self.trust.bundle();
        let key = match now_s {
            Some(now_s) => trust.key(untrusted.kid, Role::Attestation, now_s),
            None => trust.key_at_any_time(untrusted.kid, Role::Attestation),
        };
        let key = key.ok_or_else(|| format!("key {} may not sign attestation results here", untrusted.kid))?;
        let verified = untrusted.verify(Kind::Ear, key).map_err(|e| e.to_string())?;
        verified.decode::<Ear>().map_err(|e| e.to_string())
    }

    pub(super) fn reopen_results(&mut self, own: Option<Vec<u8>>, parent: Option<Vec<u8>>) {
        let open = |bytes: Option<Vec<u8>>| {
            bytes
                .and_then(|b| self.open_ear(&b, None).ok())
                .map(Verified::into_value)
        };
        let (own, parent) = (open(own), open(parent));
        self.standing.ear = own.filter(|e| e.subject == self.config.node);
        self.standing.parent = parent.filter(|e| e.subject == self.config.parent);
    }

    /// Where only an attested parent is listened to: why it is not one now. What shows that it is one always comes through,
    /// and what the hub or the roots signed needs nobody's word.
    pub(super) fn parent_is_doubtful(&self, kind: Kind, now: Now) -> Option<String> {
        let stands_alone = matches!(
            kind,
            Kind::Ear | Kind::Challenge | Kind::Command | Kind::Trust | Kind::Enrolled
        );
        if !self.config.root.attested_parent || stands_alone {
            return None;
        }
        // Who has not introduced itself yet is about to, with its acknowledgement; the hub never does.
        let key = self.parent.certified_key()?;
        let Some(ear) = &self.standing.parent else {
            return Some("no attestation result about it has come".into());
        };
        // Its session key signs; its certified key, to which the result is bound, vouched for that one.
        let now_s = self.now_s(now);
        match ear::check_ear(ear, &self.config.parent, key, now_s) {
            Ok(Status::Affirming) => None,
            Ok(other) => Some(format!("it is {other}")),
            // Unreachable is not untrusted: its last result may have ended because the hub is away.
            Err(EarError::Expired {
                exp,
                was: Status::Affirming,
                ..
            }) if now_s < exp + PARENT_GRACE_S => None,
            Err(why) => Some(why.to_string()),
        }
    }
}
