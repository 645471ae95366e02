//! Documents about trust: taken from the parent, kept, and in force.

use cnova_attestation::parent::{self, DOUBTFUL_ALARM};

use super::*;
use cnova_shared::bundle::Role;

/// The key of the alarm about documents in the ledger that do not verify.
pub(super) const STORED_ALARM: &str = "alarm/stored-trust";
/// The key of the alarm about a document that was not taken.
const REFUSED_ALARM: &str = "alarm/trust-refused";
/// The key of the alarm about a bundle under which nothing new is taken any more.
const OLD_ALARM: &str = "alarm/trust-old";
/// The key of the alarm about a parent that was revoked.
const PARENT_ALARM: &str = "alarm/parent-revoked";

/// Whether an alarm follows from what is trusted now, and not from what happened in an earlier start.
pub(super) fn is_watched(key: &str) -> bool {
    matches!(key, OLD_ALARM | PARENT_ALARM | DOUBTFUL_ALARM)
}

impl Agent {
    /// What this agent trusts.
    #[must_use]
    pub fn trust(&self) -> &TrustState {
        &self.trust
    }

    /// Whether the key that signed this twin has left the trust bundle. It runs on; it is replaced by whatever a key of the
    /// bundle signed.
    pub(super) fn is_void(&self, twin: &VerifiedTwin) -> bool {
        !self.trust.names(twin.kid(), Role::Twin)
    }

    /// Conditions of trust, for a person in front of the node.
    pub(crate) fn trust_alarms(&self) -> Vec<String> {
        let all = [
            STORED_ALARM,
            REFUSED_ALARM,
            OLD_ALARM,
            PARENT_ALARM,
            DOUBTFUL_ALARM,
            own_boot::ALARM,
            "alarm/unmeasured",
        ];
        let all = all.into_iter();
        let said = all.filter_map(|key| match &self.reporter.entry(key)?.body {
            Body::Alarm(a) => Some(format!("{}: {}", a.code, a.detail)),
            _ => None,
        });
        said.collect()
    }

    /// What the daemon must know before anything else, and what the ledger held that does not verify.
    pub(super) fn begin_trust(&mut self, faults: &[String], now: Now) {
        self.effects.push_back(Action::TrustChanged(self.trust.view()));
        if !faults.is_empty() {
            self.raise(STORED_ALARM, &faults.join("; "), now);
        }
        self.watch_trust(now);
    }

    pub(super) fn on_trust(&mut self, bytes: &[u8], now: Now) {
        let Some(message) = self.open_from_parent::<v1::Trust>(Kind::Trust, bytes, now) else {
            return;
        };
        let was_revoked = self.parent.revoked(&self.trust).is_some();
        let role = v1::NodeRole::Agent;
        let taken = self.trust.take_all(&message.items, role, self.now_s(now));
        if !taken.refused.is_empty() {
            self.raise(REFUSED_ALARM, &taken.refused.join("; "), now);
        }
        if taken.is_known() {
            self.parent.greet_again(now.mono_ms);
        }
        if taken.ops.is_empty() {
            return;
        }
        if taken.refused.is_empty() {
            self.end(REFUSED_ALARM, now);
        }
        self.ops.extend(taken.ops.into_iter().map(Op::Trust));
        self.drop_void_results();
        self.floor_s = self.floor_s.max(self.trust.bundle().contents().issued_at);
        self.effects.push_back(Action::TrustChanged(self.trust.view()));
        let text = format!("trust bundle version {} is in force", self.trust.version());
        self.stage(Stage::Note(text));
        self.look_at_own_boot();
        if self.parent.revoked(&self.trust).is_some() == was_revoked {
            self.parent.changed(now.mono_ms);
        } else {
            self.reporter.set_connected(false);
            self.parent.greet_anew(now.mono_ms);
        }
    }

    /// Conditions that come with time, and with what the parent turns out to be.
    pub(super) fn watch_trust(&mut self, now: Now) {
        let ends = self.trust.bundle().ends_s();
        if self.now_s(now) >= ends {
            let version = self.trust.version();
            let text = format!(
                "all keys of trust bundle version {version} ran out at {ends} (seconds since 1970): what runs runs on, \
                 and nothing new is taken until a newer bundle comes"
            );
            self.raise(OLD_ALARM, &text, now);
        } else {
            self.end(OLD_ALARM, now);
        }
        match self.parent.revoked(&self.trust) {
            Some(why) => self.raise(PARENT_ALARM, &why, now),
            None => self.end(PARENT_ALARM, now),
        }
        match self.doubt_about_parent(now) {
            Some(why) => self.raise(DOUBTFUL_ALARM, &parent::not_listened_to(&why), now),
            None => self.end(DOUBTFUL_ALARM, now),
        }
    }

    fn raise(&mut self, key: &'static str, detail: &str, now: Now) {
        let code = key.trim_start_matches("alarm/");
        let detail = limits::clip_to(detail, 1000);
        let stands = self.reporter.entry(key).is_some_and(|e| match &e.body {
            Body::Alarm(a) => a.detail == detail,
            _ => false,
        });
        if !stands {
            self.alarm(code, detail, now);
        }
    }

    fn end(&mut self, key: &'static str, now: Now) {
        let stands = self
            .reporter
            .entry(key)
            .is_some_and(|e| matches!(e.body, Body::Alarm(_)));
        if stands {
            self.say(key, now, Body::Over);
        }
    }
}
