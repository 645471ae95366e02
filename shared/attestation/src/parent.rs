//! What a child makes of the results about its parent, which that shows it itself: it cannot forge them, only keep them back.
//! One rule for agents and for gateways below gateways.

use cnova_shared::ids::NodeId;
use cnova_shared::keys::PublicKey;
use cnova_shared::topics::Kind;
use serde::{Deserialize, Serialize};

use crate::ear::{EarError, Status, check_ear};
use crate::result::Results;

/// A parent that was affirming is listened to for so long after its result has ended, seconds: who cannot be reached for a
/// new one is not untrusted.
pub const PARENT_GRACE_S: u64 = 7 * 86_400;
/// The key of the alarm about a parent that is not listened to.
pub const DOUBTFUL_ALARM: &str = "alarm/parent-doubtful";

/// What a node asks of its parent before it takes anything on the parent's own word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ParentTrust {
    /// Its certificate.
    #[default]
    Certified,
    /// An attestation result about it that is affirming, too.
    Attested,
}

/// Whether what comes is worth the same whoever carries it: the hub or the roots signed it, or it shows what the parent is.
#[must_use]
pub fn stands_alone(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Ear | Kind::Challenge | Kind::Command | Kind::Trust | Kind::Enrolled
    )
}

/// Why a parent with this certified key is not listened to where only an attested one is.
#[must_use]
pub fn doubt(results: &Results, parent: &NodeId, key: &PublicKey, now_s: u64) -> Option<String> {
    let Some(result) = results.in_force(now_s) else {
        return Some("no attestation result about it has come".into());
    };
    // Its session key signs; its certified key, to which the result is bound, vouched for that one.
    match check_ear(result.ear(), parent, key, now_s) {
        Ok(Status::Affirming) => None,
        Ok(other) => Some(format!("it is {other}")),
        Err(EarError::Expired {
            exp,
            was: Status::Affirming,
            ..
        }) if now_s < exp.saturating_add(PARENT_GRACE_S) => None,
        Err(why) => Some(why.to_string()),
    }
}

/// What the alarm about a parent says that is not listened to.
#[must_use]
pub fn not_listened_to(why: &str) -> String {
    format!("nothing is taken on the parent's own word, because only an attested parent is listened to here: {why}")
}

/// Why the parent may not judge this node, whatever its delegation says: it was judged itself.
#[must_use]
pub fn doubt_about_verifier(results: &Results, now_s: u64) -> Option<String> {
    let parent = results.in_force(now_s)?;
    let is_bad = parent.ear().status == Status::Contraindicated;
    is_bad.then(|| format!("it was found not to be what it should be by {}", parent.by()))
}
