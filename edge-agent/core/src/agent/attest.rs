//! What the node proves, what it is told of that, and what it thinks of its own disk.

use cnova_attestation::parent::{self, ParentTrust};
use cnova_attestation::result::{self, By, Expected, Opened, When};
use cnova_shared::bundle::Role;
use cnova_shared::envelope::Untrusted;
use cnova_shared::ids::HUB_AUDIENCE;

use super::*;
use crate::intake::Refusal;
use crate::standing::{Counter, CounterState, Rollback, silent_tpm};

/// Pause before a counter that could not be increased is increased again.
const COUNT_AGAIN_MS: u64 = 30_000;

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
        match self.config.root.counter {
            CounterState::Value(_) if !self.counting => {
                self.counter += 1;
                self.ops.push(Op::Counter(self.counter));
                self.count_up();
            }
            // Made up for when it is known what the ledger is worth: counted before, a disk that was rolled back by one
            // step would look right.
            CounterState::Unknown => self.own_boot.is_uncounted = true,
            CounterState::Value(_) | CounterState::NoTpm => {}
        }
    }

    /// The TPM answers for the first time since the agent started, or still does not.
    pub(super) fn on_counter(&mut self, found: Result<Counter, String>, now: Now) {
        if self.config.root.counter != CounterState::Unknown {
            return;
        }
        let counter = match found {
            Ok(counter) => counter,
            Err(why) => {
                let (code, detail) = ("tpm".to_owned(), silent_tpm(&why));
                self.alarm(&code, detail.clone(), now);
                self.config.alarms.retain(|a| a.code != code);
                return self.config.alarms.push(v1::Alarm { code, detail });
            }
        };
        self.config.root.counter = CounterState::Value(counter);
        self.standing.root.counter = self.config.root.counter;
        self.config.alarms.retain(|a| a.code != "tpm");
        self.end_alarm("tpm", now);
        self.judge_disk(now);
        self.count_missed();
        // The hello says what was found.
        self.parent.changed(now.mono_ms);
        self.tpm_answers();
    }

    /// Twins that were taken while the TPM was silent count once, unless the disk turned out to be an older one.
    fn count_missed(&mut self) {
        if self.own_boot.is_uncounted && !self.counting && self.standing.quarantine.is_none() {
            self.own_boot.is_uncounted = false;
            self.count();
        }
    }

    fn end_alarm(&mut self, code: &str, now: Now) {
        let key = format!("alarm/{code}");
        if matches!(self.reporter.entry(&key).map(|e| &e.body), Some(Body::Alarm(_))) {
            self.say(&key, now, Body::Over);
        }
    }

    fn count_up(&mut self) {
        self.counting = true;
        self.own_boot.count_again_at = None;
        self.effects.push_back(Action::CountUp);
    }

    /// What the TPM did not count is tried again.
    pub(super) fn count_again(&mut self, now: Now) {
        if self.own_boot.count_again_at.is_some_and(|at| at <= now.mono_ms) {
            self.count_up();
        }
    }

    pub(super) fn on_counted(&mut self, result: Result<u64, String>, now: Now) {
        match result {
            Ok(value) if value == self.counter => {
                self.counting = false;
                self.end_alarm("tpm", now);
                self.count_missed();
            }
            // Somebody else counts with it. What is on disk must not look rolled back at the next start.
            Ok(value) => {
                self.counting = false;
                self.counter = value;
                self.ops.push(Op::Counter(value));
                self.end_alarm("tpm", now);
                self.stage(Stage::Note(format!("the TPM's counter jumped to {value}")));
            }
            Err(why) => {
                let detail = format!("the TPM's counter could not be increased, and is tried again: {why}");
                self.alarm("tpm", detail, now);
                self.own_boot.count_again_at = Some(now.mono_ms + COUNT_AGAIN_MS);
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

    /// A result about this node, or about its parent; by the hub, or by a gateway under the hub's delegation.
    pub(super) fn on_ear(&mut self, bytes: &[u8], now: Now) {
        let now_s = self.now_s(now);
        let of_parent = Untrusted::read(bytes).is_ok_and(|u| u.claims.aud == self.config.parent);
        let opened = match self.open_ear(bytes, of_parent, When::Now(now_s)) {
            Ok(opened) => opened,
            Err(why) => return self.stage(Stage::Note(format!("an attestation result was not taken: {why}"))),
        };
        let (status, by, iat) = (opened.ear().status, opened.by().clone(), opened.ear().iat);
        let doubt = parent::doubt_about_verifier(&self.standing.parent, now_s).filter(|_| !of_parent);
        if let (By::Gateway(gateway), Some(doubt)) = (&by, doubt) {
            let text = format!("a result of {gateway} was not taken: {doubt}");
            return self.stage(Stage::Note(text));
        }
        let bytes = opened.bytes().to_vec();
        let results = if of_parent {
            &mut self.standing.parent
        } else {
            &mut self.standing.own
        };
        if !results.take(opened) {
            return;
        }
        let about = if of_parent { "the parent" } else { "this node" };
        self.stage(Stage::Note(format!("{by} says of {about}: {status}")));
        self.ops.push(match (&by, of_parent) {
            (By::Gateway(_), _) => Op::PutDelegatedEar { of_parent, bytes },
            (By::Hub, true) => Op::PutParentEar(bytes),
            (By::Hub, false) => Op::PutEar(bytes),
        });
        // A gateway's clock may be decades off.
        if by == By::Hub && !of_parent {
            self.raise_floor(iat);
        }
    }

    fn open_ear(&self, bytes: &[u8], of_parent: bool, when: When) -> Result<Opened, String> {
        // Its own gateway judges this node; its parent is judged by whoever is above that.
        let (subject, gateway) = match of_parent {
            true => (&self.config.parent, None),
            false => (&self.config.node, Some(&self.config.parent)),
        };
        let site = &self.config.site;
        let expected = Expected { subject, site, gateway };
        result::open(bytes, &expected, &self.trust, when).map_err(|e| e.to_string())
    }

    pub(super) fn reopen_results(&mut self, own: [Option<Vec<u8>>; 2], parent: [Option<Vec<u8>>; 2]) {
        for bytes in own.iter().flatten() {
            if let Ok(opened) = self.open_ear(bytes, false, When::Before) {
                self.standing.own.take(opened);
            }
        }
        for bytes in parent.iter().flatten() {
            if let Ok(opened) = self.open_ear(bytes, true, When::Before) {
                self.standing.parent.take(opened);
            }
        }
    }

    /// What is trusted has changed: results by a key that has left the bundle, or by a gateway that may not judge any more,
    /// count no longer. What runs by them runs on.
    pub(super) fn drop_void_results(&mut self) {
        let (mut own, mut parent) = (self.standing.own.clone(), self.standing.parent.clone());
        own.retain(|r| self.open_ear(r.bytes(), false, When::Before).is_ok());
        parent.retain(|r| self.open_ear(r.bytes(), true, When::Before).is_ok());
        (self.standing.own, self.standing.parent) = (own, parent);
    }

    /// Where only an attested parent is listened to: why it is not one now.
    pub(super) fn doubt_about_parent(&self, now: Now) -> Option<String> {
        if self.config.root.parent != ParentTrust::Attested {
            return None;
        }
        // Who has not introduced itself yet is about to, with its acknowledgement; the hub never does.
        let key = self.parent.certified_key()?;
        parent::doubt(&self.standing.parent, &self.config.parent, key, self.now_s(now))
    }
}
