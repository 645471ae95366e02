//! Documents about trust: taken from the parent, kept, in force here, and then handed on.

use super::*;
use cnova_attestation::parent::DOUBTFUL_ALARM;
use cnova_shared::bundle::Role;
use cnova_shared::limits;
use cnova_shared::trust_documents::{Delegation, Right, Signed};

/// The key of the alarm about documents in the store that do not verify.
pub(super) const STORED_ALARM: &str = "alarm/stored-trust";
/// The key of the alarm about a document that was not taken.
const REFUSED_ALARM: &str = "alarm/trust-refused";
/// The key of the alarm about a bundle under which nothing new is taken any more.
const OLD_ALARM: &str = "alarm/trust-old";
/// The key of the alarm about a parent that was revoked.
pub(super) const PARENT_ALARM: &str = "alarm/parent-revoked";

/// Whether an alarm follows from what is trusted now, and not from what happened in an earlier start.
pub(super) fn is_watched(key: &str) -> bool {
    matches!(key, OLD_ALARM | PARENT_ALARM | DOUBTFUL_ALARM) || key.starts_with(super::verifier::CHILD_ALARM)
}

impl Gateway {
    /// What this gateway trusts.
    #[must_use]
    pub fn trust(&self) -> &TrustState {
        &self.trust
    }

    /// The delegation under which this gateway may use `right` now, with the bytes that its children need to believe it.
    #[must_use]
    pub fn delegated(&self, right: Right, now: Now) -> Option<&Signed<Delegation>> {
        let held = self.trust.delegation(&self.config.node)?;
        let is_named = self.trust.names(held.kid(), Role::Attestation);
        let d = held.value();
        let is_mine = d.key == self.config.key && self.trust.revoked(&d.gateway, Some(d.key.id())).is_none();
        (is_named && is_mine && d.not_after > self.now_s(now) && d.rights.contains(&right)).then_some(held)
    }

    /// What the daemon must know before anything else, and what the store held that does not verify.
    pub(super) fn begin_trust(&mut self, faults: &[String], now: Now) {
        self.effects.push_back(Action::TrustChanged(self.trust.view()));
        if !faults.is_empty() {
            self.raise(STORED_ALARM, &faults.join("; "), now);
        }
        self.watch_trust(now);
    }

    pub(super) fn on_trust(&mut self, bytes: &[u8], now: Now) -> Result<(), String> {
        let message = self.open::<v1::Trust>(Kind::Trust, bytes, now)?;
        let was_revoked = self.parent.revoked(&self.trust).is_some();
        let role = v1::NodeRole::Gateway;
        let taken = self.trust.take_all(&message.items, role, self.now_s(now));
        if !taken.refused.is_empty() {
            self.raise(REFUSED_ALARM, &taken.refused.join("; "), now);
        }
        if taken.is_known() {
            self.parent.greet_again(now.mono_ms);
        }
        if taken.ops.is_empty() {
            return Ok(());
        }
        if taken.refused.is_empty() {
            self.end(REFUSED_ALARM, now);
        }
        self.ops.extend(taken.ops.into_iter().map(Op::Trust));
        self.look_at_references(now);
        self.drop_void_results(now);
        self.trust_taken(was_revoked, now);
        Ok(())
    }

    fn trust_taken(&mut self, was_revoked: bool, now: Now) {
        self.floor_s = self.floor_s.max(self.trust.bundle().contents().issued_at);
        self.tree.trust_changed(&self.trust);
        self.effects.push_back(Action::TrustChanged(self.trust.view()));
        self.note(format!("trust bundle version {} is in force", self.trust.version()));
        let is_revoked = self.parent.revoked(&self.trust).is_some();
        if is_revoked == was_revoked {
            self.parent.changed(now.mono_ms);
        } else {
            self.reporter.set_connected(false);
            self.spool.set_connected(false);
            self.welcomed.clear();
            self.parent.greet_anew(now.mono_ms);
        }
    }

    /// Conditions that come with time, and with what the parent turns out to be.
    pub(super) fn watch_trust(&mut self, now: Now) {
        let ends = self.trust.bundle().ends_s();
        if self.now_s(now) >= ends {
            let version = self.trust.version();
            let text = format!(
                "all keys of trust bundle version {version} ran out at {ends} (seconds since 1970): nothing new is taken \
                 from the hub until a newer bundle comes"
            );
            self.raise(OLD_ALARM, &text, now);
        } else {
            self.end(OLD_ALARM, now);
        }
        self.watch_parent(now);
    }

    /// `key` is `alarm/`, a stable word and, for alarms of which there are several, `/` and what it is about.
    pub(super) fn raise(&mut self, key: &str, detail: &str, now: Now) {
        let alarm = v1::Alarm {
            code: key.split('/').nth(1).unwrap_or_default().to_owned(),
            detail: limits::clip_to(detail, 1000),
        };
        let stands = self
            .reporter
            .entry(key)
            .is_some_and(|e| e.body == Body::Alarm(alarm.clone()));
        if !stands {
            self.note(format!("{}: {}", alarm.code, alarm.detail));
            self.say(key, Body::Alarm(alarm), now);
        }
    }

    pub(super) fn end(&mut self, key: &str, now: Now) {
        let stands = self
            .reporter
            .entry(key)
            .is_some_and(|e| matches!(e.body, Body::Alarm(_)));
        if stands {
            self.say(key, Body::Over, now);
        }
    }
}
