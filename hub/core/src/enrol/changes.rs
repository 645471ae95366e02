//! What admins change and look at.

use cnova_shared::certificate::Tier;
use cnova_shared::ids::{Digest, NodeId};
use serde::{Deserialize, Serialize};

use super::{EnrolOp, KNOWN_MAX, KnownTpm, Pinned, StoredEnrolment, StoredToken, TOKENS_MAX};

/// What an admin wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnrolChange {
    /// A new token.
    AddToken {
        /// SHA-256 of its text.
        hash: Digest,
        /// It.
        token: StoredToken,
    },
    /// A token is taken back, by its id.
    RevokeToken(String),
    /// A TPM is made known.
    AddKnown {
        /// Its fingerprint.
        fingerprint: Digest,
        /// It.
        known: KnownTpm,
    },
    /// A TPM is no longer known beforehand.
    DropKnown(Digest),
    /// A node's name is to be free again.
    Forget(NodeId),
}

/// Hexadecimal digits of a token's id: the beginning of its hash.
const TOKEN_ID_LEN: usize = 12;

/// How people name a token.
#[must_use]
pub fn token_id(hash: &Digest) -> String {
    hash.hex()[..TOKEN_ID_LEN].to_owned()
}

/// Why a change was not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    NotFound(String),
    Refused(String),
}

impl EnrolChange {
    /// What it comes to.
    pub(crate) fn ops(self, stored: &StoredEnrolment, now_s: u64) -> Result<Vec<EnrolOp>, Denied> {
        match self {
            EnrolChange::AddToken { hash, token } => {
                let expired = stored.tokens.iter().filter(|(_, t)| t.expires_s <= now_s);
                let mut ops: Vec<EnrolOp> = expired.map(|(hash, _)| EnrolOp::DropToken(*hash)).collect();
                if stored.tokens.len() - ops.len() >= TOKENS_MAX {
                    return Err(Denied::Refused(format!(
                        "{TOKENS_MAX} tokens are the most; take some back with: cnova enroll revoke-token"
                    )));
                }
                ops.push(EnrolOp::PutToken { hash, token });
                Ok(ops)
            }
            EnrolChange::RevokeToken(id) => {
                let found = stored.tokens.keys().find(|hash| token_id(hash) == id);
                let hash = found.ok_or_else(|| Denied::NotFound(format!("token {id}")))?;
                Ok(vec![EnrolOp::DropToken(*hash)])
            }
            EnrolChange::AddKnown { fingerprint, known } => {
                let other = |(f, k): &(&Digest, &KnownTpm)| k.node == known.node && **f != fingerprint;
                if stored.known.iter().any(|x| other(&x)) {
                    return Err(Denied::Refused(format!(
                        "another TPM is known as {}: take that one out first with: cnova enroll remove-ek",
                        known.node
                    )));
                }
                if stored.known.len() >= KNOWN_MAX {
                    return Err(Denied::Refused(format!("{KNOWN_MAX} known TPMs are the most")));
                }
                Ok(vec![EnrolOp::PutKnown { fingerprint, known }])
            }
            EnrolChange::DropKnown(fingerprint) => {
                let missing = || Denied::NotFound(format!("known TPM {}", fingerprint.hex()));
                stored.known.get(&fingerprint).ok_or_else(missing)?;
                Ok(vec![EnrolOp::DropKnown(fingerprint)])
            }
            EnrolChange::Forget(node) => {
                let pinned = stored.pinned.get(&node);
                let pinned = pinned.ok_or_else(|| Denied::NotFound(format!("enrolled node {node}")))?;
                // Known beforehand, its old TPM would be admitted under the name again.
                let mut ops = vec![EnrolOp::DropPinned(node.clone())];
                let of_it = |(f, k): &(&Digest, &KnownTpm)| k.node == node || Some(**f) == pinned.ek;
                let known = stored.known.iter().filter(of_it);
                ops.extend(known.map(|(f, _)| EnrolOp::DropKnown(*f)));
                Ok(ops)
            }
        }
    }
}

/// A token, as people see it: never its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenInfo {
    /// Its id.
    pub id: String,
    /// Where whom it admits hangs.
    pub site: String,
    /// Which names it admits, empty for any.
    pub name: String,
    /// Seconds since 1970.
    pub expires_s: u64,
    /// How many it still admits.
    pub uses_left: u32,
    /// Who made it.
    pub by: String,
    /// When, seconds since 1970.
    pub made_s: u64,
}

/// A known TPM, as people see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownInfo {
    /// Its fingerprint, hexadecimal.
    pub fingerprint: String,
    /// As whom it is admitted, and by whom.
    #[serde(flatten)]
    pub known: KnownTpm,
}

/// An enrolled node, as people see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedInfo {
    /// Its name.
    pub node: NodeId,
    /// Where it hangs.
    pub site: String,
    /// `tpm`, or `UNATTESTED` for a key in a file.
    pub tier: String,
    /// SHA-256 of its endorsement key, hexadecimal; empty without a TPM.
    pub ek: String,
    /// Its device key's id.
    pub key: String,
    /// When it was admitted first, seconds since 1970.
    pub first_s: u64,
    /// When it was certified last, seconds since 1970.
    pub last_s: u64,
    /// When its certificate ends, seconds since 1970.
    pub not_after_s: u64,
}

/// Everything about enrolment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolmentInfo {
    /// Tokens.
    pub tokens: Vec<TokenInfo>,
    /// TPMs made known beforehand.
    pub known: Vec<KnownInfo>,
    /// Enrolled nodes.
    pub nodes: Vec<PinnedInfo>,
}

/// What a tier is called before people. A key in a file is never shown as more than it is.
#[must_use]
pub fn tier_word(tier: Tier) -> &'static str {
    match tier {
        Tier::Soft => "UNATTESTED",
        Tier::Tpm => "tpm",
    }
}

impl EnrolmentInfo {
    pub(crate) fn of(stored: &StoredEnrolment) -> Self {
        let token = |(hash, t): (&Digest, &StoredToken)| TokenInfo {
            id: token_id(hash),
            site: t.site.to_string(),
            name: t.name.as_ref().map(ToString::to_string).unwrap_or_default(),
            expires_s: t.expires_s,
            uses_left: t.uses_left,
            by: t.by.clone(),
            made_s: t.made_s,
        };
        let known = |(fingerprint, k): (&Digest, &KnownTpm)| KnownInfo {
            fingerprint: fingerprint.hex(),
            known: k.clone(),
        };
        let node = |(node, p): (&NodeId, &Pinned)| PinnedInfo {
            node: node.clone(),
            site: p.site.to_string(),
            tier: tier_word(p.tier).to_owned(),
            ek: p.ek.map(|ek| ek.hex()).unwrap_or_default(),
            key: p.key.id().to_string(),
            first_s: p.first_s,
            last_s: p.last_s,
            not_after_s: p.not_after_s,
        };
        Self {
            tokens: stored.tokens.iter().map(token).collect(),
            known: stored.known.iter().map(known).collect(),
            nodes: stored.pinned.iter().map(node).collect(),
        }
    }
}
