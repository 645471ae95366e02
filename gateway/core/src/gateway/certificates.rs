//! Certificates: those of newcomers at the door, those of descendants, and the gateway's own next one.

use super::*;
use crate::enrol::{DoorId, Due};

impl Gateway {
    pub(super) fn on_newcomer(&mut self, door: DoorId, step: v1::EnrolStep, now: Now) {
        let connected = self.parent.is_connected();
        if let Err(answer) = self.newcomers.ask(door, step, connected, now.mono_ms) {
            self.effects.push_back(Action::AnswerNewcomer { door, answer });
        }
    }

    pub(super) fn ask_for_newcomers(&mut self, now: Now) {
        let connected = self.parent.is_connected();
        while let Some(due) = self.newcomers.poll(connected, now.mono_ms) {
            self.effects.push_back(match due {
                Due::Ask(enrol) => Action::SendUp(UpMessage::Enrol(enrol)),
                Due::GiveUp(door, answer) => Action::AnswerNewcomer { door, answer },
            });
        }
    }

    /// What a descendant asks goes up at once or not at all; it asks again.
    pub(super) fn carry_enrol(&mut self, author: &NodeId, bytes: Vec<u8>) {
        if self.parent.is_connected() {
            let kind = Kind::Enrol;
            self.effects.push_back(Action::CarryUp { kind, bytes });
        } else {
            self.note(format!("{author} asks for a certificate, and the parent is away"));
        }
    }

    /// The hub's answer to a newcomer here, to this gateway, or to a descendant.
    pub(super) fn on_enrolled(&mut self, bytes: &[u8], now: Now) -> Result<(), String> {
        let aud = Untrusted::read(bytes).map_err(|e| e.to_string())?.claims.aud;
        if aud != self.config.node {
            return self.hand_down(Kind::Enrolled, bytes);
        }
        let now_s = self.now_s(now);
        let opened = Parent::open_hub(Kind::Enrolled, bytes, &self.config.node, self.trust.bundle(), now_s)
            .and_then(|v| Ok(v.decode::<v1::Enrolled>()?))
            .map_err(|e| e.to_string())?;
        self.raise_floor(opened.claims().iat);
        let enrolled = opened.into_value();
        if !self.renewal.is_mine(&enrolled) {
            let answered = self.newcomers.answered(enrolled);
            let answer = answered.map(|(door, answer)| Action::AnswerNewcomer { door, answer });
            self.effects.extend(answer);
            return Ok(());
        }
        match enrolled.answer {
            v1::EnrolAnswer::Issued(issued) => {
                let (me, site, now_s) = (&self.config.node, &self.config.site, self.now_s(now));
                self.renewal
                    .take(&issued, me, site, self.trust.bundle(), now_s)
                    .map_err(|e| e.to_string())?;
                self.effects.push_back(Action::Install(Box::new(issued)));
            }
            v1::EnrolAnswer::Refused(no) => self.note(format!("the certificate was not renewed: {no}")),
            other => return Err(format!("{other:?} is no answer to a renewal")),
        }
        Ok(())
    }
}

/// Tickets of one life of the gateway are not those of another.
pub(super) fn first_ticket(boot: &str) -> u64 {
    let d = Digest::of(boot.as_bytes()).0;
    u64::from_le_bytes([d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]])
}
