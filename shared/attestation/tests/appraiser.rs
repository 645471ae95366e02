//! Who is challenged when.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;

use cnova_attestation::appraiser::{Appraiser, Known, Rhythm, Verdict};
use cnova_attestation::ear::Status;
use cnova_shared::certificate::Tier;
use cnova_shared::ids::NodeId;
use cnova_shared::time::Now;
use support::{NOW_S, node, session_key};

const RHYTHM: Rhythm = Rhythm {
    period_ms: 3_600_000,
    valid_s: 7200,
    grace_s: 600,
};

fn at(mono_ms: u64) -> Now {
    Now {
        mono_ms,
        wall_ms: NOW_S * 1000 + mono_ms,
    }
}

fn known() -> Known {
    Known {
        tier: Tier::Tpm,
        ak: None,
        key: session_key(),
        session: session_key(),
    }
}

/// Judged so many seconds ago, by a verifier that has been started anew since.
fn judged(seconds_ago: u64) -> Appraiser {
    let verdict = Verdict {
        status: Status::Affirming.into(),
        findings: Vec::new(),
        policy: String::new(),
        at_s: NOW_S - seconds_ago,
        exp_s: NOW_S + 100,
        session: session_key().id(),
        boot_measured: false,
        pcrs: BTreeMap::new(),
        loads: Vec::new(),
        log: None,
    };
    Appraiser::new(RHYTHM, 14, [1; 32], BTreeMap::from([(node("plc-1"), verdict)]))
}

fn asked(appraiser: &mut Appraiser, mono_ms: u64) -> usize {
    appraiser.poll(|_: &NodeId| true, at(mono_ms)).len()
}

#[test]
fn an_unanswered_challenge_is_repeated_with_a_pause_that_grows() {
    // By its period, and because the reference values are others now: nobody has asked for it in so many words.
    for change in [false, true] {
        let mut appraiser = judged(if change { 0 } else { 3600 });
        appraiser.greet(&node("plc-1"), &known(), at(0));
        if change {
            assert_eq!(asked(&mut appraiser, 0), 0, "it was judged just now");
            appraiser.references_changed(at(0));
        }
        assert_eq!(asked(&mut appraiser, 0), 1);
        assert_eq!(asked(&mut appraiser, 0), 0, "it is not asked again at once");
        let next = appraiser.timeout(|_| true).unwrap();
        assert!(next >= 1_000, "{next}");
        assert_eq!(asked(&mut appraiser, next), 1);
        let third = appraiser.timeout(|_| true).unwrap();
        assert!(third - next > next, "{next}, {third}");
    }
}
