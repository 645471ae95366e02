//! Whether the node's own sealed key opens under what was booted: tried at the start, whenever other boots are approved,
//! and again while the TPM does not answer.

use cnova_shared::boot_policy::OwnBoots;
use cnova_shared::certificate::Tier;
use cnova_shared::trust_documents::BootPolicy;

use super::*;
use crate::standing::{OwnBoot, own_boots};

/// The key of the alarm.
pub(super) const ALARM: &str = "alarm/own-boot";
/// First pause before a TPM that did not answer is asked again; doubles up to [`AGAIN_MAX_MS`].
const AGAIN_MIN_MS: u64 = 5_000;
/// Longest such pause.
const AGAIN_MAX_MS: u64 = 300_000;

/// What was asked of the TPM.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// With these, and the answer has not come.
    open: Option<OwnBoots>,
    /// When it is asked again, monotonic milliseconds.
    again_at: Option<u64>,
    pause_ms: u64,
    /// When a counter that could not be increased is increased again.
    pub(super) count_again_at: Option<u64>,
    /// Whether a twin was taken while the counter was not known.
    pub(super) is_uncounted: bool,
}

impl Asked {
    pub(super) fn timeout(&self) -> Option<u64> {
        self.again_at.into_iter().chain(self.count_again_at).min()
    }
}

impl Agent {
    fn own_boots(&self) -> OwnBoots {
        let c = &self.config;
        own_boots(&self.trust, &c.node, &c.site, &c.labels)
    }

    pub(super) fn own_boot_is_doubtful(&self) -> bool {
        matches!(self.standing.root.own_boot, OwnBoot::Refused(_) | OwnBoot::Unknown(_))
    }

    /// Once at boot: what the daemon found out, and whether that was with what is trusted now.
    pub(super) fn judge_boot(&mut self, now: Now) {
        self.say_own_boot(now);
        if matches!(self.standing.root.own_boot, OwnBoot::Unknown(_)) {
            self.wait_for_tpm(now);
        }
        self.look_at_own_boot();
    }

    /// Other boots may be approved now.
    pub(super) fn look_at_own_boot(&mut self) {
        if self.standing.root.tier != Tier::Tpm {
            return;
        }
        let (c, trust) = (&self.config, &self.trust);
        let is_overtaken = |p: &BootPolicy| p.is_overtaken(&c.node, &c.site, &c.labels, trust.bundle());
        if trust.boot_policy().is_some_and(|p| is_overtaken(p.value())) {
            // Nothing is known under the new bundle yet: what was found out stands until the next document.
            return;
        }
        let boots = self.own_boots();
        let asked = self.own_boot.open.as_ref().unwrap_or(&self.standing.root.boots);
        if *asked != boots {
            self.ask_for_own_boot(boots);
        }
    }

    fn ask_for_own_boot(&mut self, boots: OwnBoots) {
        self.stage(Stage::Note(format!(
            "the ledger key is tried under {} approved boot(s)",
            boots.approved.len()
        )));
        self.own_boot.open = Some(boots.clone());
        self.own_boot.again_at = None;
        self.effects.push_back(Action::OpenLedgerKey(boots));
    }

    fn wait_for_tpm(&mut self, now: Now) {
        let asked = &mut self.own_boot;
        asked.pause_ms = (asked.pause_ms * 2).clamp(AGAIN_MIN_MS, AGAIN_MAX_MS);
        asked.again_at = Some(now.mono_ms + asked.pause_ms);
    }

    pub(super) fn ask_again_for_own_boot(&mut self, now: Now) {
        if self.own_boot.again_at.is_some_and(|at| at <= now.mono_ms) {
            self.ask_for_own_boot(self.own_boots());
        }
    }

    /// The TPM answers after all: what waited for it need not wait out its pause.
    pub(super) fn tpm_answers(&mut self) {
        if matches!(self.standing.root.own_boot, OwnBoot::Unknown(_)) && self.own_boot.open.is_none() {
            self.ask_for_own_boot(self.own_boots());
        }
    }

    pub(super) fn on_own_boot(&mut self, boots: &OwnBoots, own_boot: OwnBoot, lost: Option<String>, now: Now) {
        if let Some(why) = lost {
            let detail = format!("what was secret in the ledger is lost and comes anew: {why}");
            self.alarm("ledger-key", detail, now);
        }
        // The answer to what is no longer asked says nothing; the next one is under way.
        if self.own_boot.open.as_ref() != Some(boots) {
            return;
        }
        self.own_boot.open = None;
        let is_silent = matches!(own_boot, OwnBoot::Unknown(_));
        if is_silent {
            self.wait_for_tpm(now);
            // Unreachable is not untrusted: what was found out at this start stands until there is an answer.
            if matches!(self.standing.root.own_boot, OwnBoot::Approved | OwnBoot::Refused(_)) {
                return;
            }
        } else {
            self.own_boot.pause_ms = 0;
            self.standing.root.boots = boots.clone();
        }
        if self.standing.root.own_boot != own_boot {
            self.standing.root.own_boot = own_boot;
            self.say_own_boot(now);
        }
    }

    fn say_own_boot(&mut self, now: Now) {
        let text = match &self.standing.root.own_boot {
            OwnBoot::Refused(why) => {
                format!("this node booted something that is not approved, and what asks for trust waits: {why}")
            }
            OwnBoot::Unknown(why) => {
                format!("whether this boot is approved is not known, and what asks for trust is not started: {why}")
            }
            OwnBoot::Approved | OwnBoot::Unsealed => {
                if self
                    .reporter
                    .entry(ALARM)
                    .is_some_and(|e| matches!(e.body, Body::Alarm(_)))
                {
                    self.say(ALARM, now, Body::Over);
                }
                return;
            }
        };
        self.alarm("own-boot", limits::clip_to(&text, 1000), now);
    }
}
