//! What is made of the gateway above: a child checks its parent, too. The hub is no node, and nobody attests it here.

use cnova_attestation::parent::{self, DOUBTFUL_ALARM, ParentTrust};
use cnova_attestation::result::{self, Expected, Opened, When};

use super::*;

impl Gateway {
    /// A result about the parent, which shows it itself.
    pub(super) fn on_result_of_parent(&mut self, bytes: &[u8], now: Now) -> Result<(), String> {
        let opened = self.open_of_parent(bytes, When::Now(self.now_s(now)))?;
        let (by, status, is_delegated) = (opened.by().clone(), opened.ear().status, opened.is_delegated());
        // Shown with every greeting: what is held already is not written again.
        if self.above.holds(&opened) {
            return Ok(());
        }
        if !self.above.take(opened) {
            return Err("a newer one is held".into());
        }
        self.note(format!("{by} says of the parent: {status}"));
        let bytes = bytes.to_vec();
        self.ops.push(Op::PutParentEar { is_delegated, bytes });
        Ok(())
    }

    /// A result about the parent: by the hub, or by a gateway above it.
    pub(super) fn open_of_parent(&self, bytes: &[u8], when: When) -> Result<Opened, String> {
        let expected = Expected {
            subject: &self.config.parent,
            site: &self.config.site,
            gateway: None,
        };
        result::open(bytes, &expected, &self.trust, when).map_err(|e| e.to_string())
    }

    /// Where only an attested parent is listened to: why it is not one now.
    pub(super) fn doubt_about_parent(&self, now: Now) -> Option<String> {
        if self.config.parent_trust != ParentTrust::Attested {
            return None;
        }
        // Who has not introduced itself yet is about to, with its acknowledgement; the hub never does.
        let key = self.parent.certified_key()?;
        parent::doubt(&self.above, &self.config.parent, key, self.now_s(now))
    }

    /// Conditions that come with time, and with what the parent turns out to be.
    pub(super) fn watch_parent(&mut self, now: Now) {
        match self.parent.revoked(&self.trust) {
            Some(why) => self.raise(trust::PARENT_ALARM, &why, now),
            None => self.end(trust::PARENT_ALARM, now),
        }
        match self.doubt_about_parent(now) {
            Some(why) => self.raise(DOUBTFUL_ALARM, &parent::not_listened_to(&why), now),
            None => self.end(DOUBTFUL_ALARM, now),
        }
    }
}
