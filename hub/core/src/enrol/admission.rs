//! What admits a newcomer, and as whom.

use cnova_shared::certificate::Tier;
use cnova_shared::ids::{Digest, NodeId, SitePath};
use cnova_shared::keys::PublicKey;
use cnova_shared::limits;
use cnova_shared::wire::v1::EnrolBegin;

use super::tpm::Endorsement;
use super::{Gate, Refused, StoredEnrolment};

/// As whom a newcomer is admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Admitted {
    pub(super) node: NodeId,
    pub(super) site: SitePath,
    /// The token that does it; nothing for a TPM that is known.
    pub(super) token: Option<Digest>,
    /// Whether the token loses a use by it.
    pub(super) spends: bool,
}

/// Says whether a node or a key was revoked.
pub(crate) type IsRevoked<'a> = &'a dyn Fn(&NodeId, &PublicKey) -> bool;

/// Everything that decides, for one newcomer. It is asked at the beginning and again at the end: a token may have been
/// used meanwhile.
pub(super) struct Case<'a> {
    pub(super) stored: &'a StoredEnrolment,
    pub(super) begin: &'a EnrolBegin,
    pub(super) endorsement: Option<&'a Endorsement>,
    pub(super) now_s: u64,
    pub(super) is_revoked: IsRevoked<'a>,
}

impl Case<'_> {
    pub(super) fn decide(&self) -> Result<Admitted, Refused> {
        let admitted = self.admit()?;
        if let Some(wanted) = self.begin.name.as_ref().filter(|n| **n != admitted.node) {
            let message = format!("this is {}, and it wants to be {wanted}", admitted.node);
            let advice = "correct node in its configuration, or the token or EK that admits it";
            return Err(Refused::new(Gate::Name, message, advice));
        }
        self.check_bonds(&admitted.node)?;
        if (self.is_revoked)(&admitted.node, &self.begin.key) {
            let message = format!("{} was revoked", admitted.node);
            return Err(Refused::new(Gate::Revoked, message, "only an admin can let it back in"));
        }
        Ok(admitted)
    }

    fn admit(&self) -> Result<Admitted, Refused> {
        if let Some(e) = self.endorsement {
            let is_its = |ek: Option<Digest>| ek == Some(e.ek);
            if let Some((node, pinned)) = self.stored.pinned.iter().find(|(_, p)| is_its(p.ek)) {
                return Ok(Admitted {
                    node: node.clone(),
                    site: pinned.site.clone(),
                    token: None,
                    spends: false,
                });
            }
            let known = self.stored.known.get(&e.ek);
            if let Some(known) = known.or_else(|| self.stored.known.get(&e.ek_certificate)) {
                return Ok(Admitted {
                    node: known.node.clone(),
                    site: known.site.clone(),
                    token: None,
                    spends: false,
                });
            }
        }
        self.by_token()
    }

    fn by_token(&self) -> Result<Admitted, Refused> {
        let Some(text) = &self.begin.token else {
            let (message, advice) = match self.endorsement {
                Some(e) => (
                    format!("nothing admits this TPM (EK {}) and no token came", e.ek.hex()),
                    "make a token with: cnova enroll token; or make the TPM known with: cnova enroll ek",
                ),
                None => (
                    "no token came, and a key in a file is admitted by a token only".to_owned(),
                    "make a token with: cnova enroll token",
                ),
            };
            return Err(Refused::new(Gate::Unknown, message, advice));
        };
        let refuse = |message: &str| Refused::new(Gate::Token, message, "make another with: cnova enroll token");
        if text.len() > limits::ENROL_TOKEN_LEN {
            return Err(refuse("this is no token"));
        }
        let hash = Digest::of(text.as_bytes());
        let token = self.stored.tokens.get(&hash);
        let token = token.ok_or_else(|| refuse("the token is not known to this hub, or was taken back"))?;
        if token.expires_s <= self.now_s {
            return Err(refuse("the token has expired"));
        }
        let node = self.named_by(
            token
                .name
                .as_ref()
                .and_then(|n| n.one())
                .or_else(|| token.site.suggested()),
        )?;
        if let Some(pattern) = token.name.as_ref().filter(|p| !p.matches(&node)) {
            let message = format!("the token is for {pattern}, not for {node}");
            return Err(Refused::new(
                Gate::Name,
                message,
                "correct node in the configuration, or use another token",
            ));
        }
        let site = token.site.place_of(&node).ok_or_else(|| {
            let message = format!("{}: no place for {node} can be made of it", token.site);
            Refused::new(Gate::Name, message, "use a token for one place")
        })?;
        // Its answer may have been lost: who was admitted by this token may ask again, and spends nothing.
        let again = |p: &super::Pinned| p.token == Some(hash) && p.key == self.begin.key;
        let is_again = self.stored.pinned.get(&node).is_some_and(again);
        if token.uses_left == 0 && !is_again {
            return Err(refuse("the token was used already"));
        }
        Ok(Admitted {
            node,
            site,
            token: Some(hash),
            spends: !is_again,
        })
    }

    fn named_by(&self, suggested: Option<NodeId>) -> Result<NodeId, Refused> {
        self.begin.name.clone().or(suggested).ok_or_else(|| {
            let message = "the token leaves the name open, and the newcomer names none";
            Refused::new(
                Gate::Name,
                message,
                "set node in its configuration, or make a token with --name",
            )
        })
    }

    /// A name stays with its TPM or key, and those with the name.
    fn check_bonds(&self, node: &NodeId) -> Result<(), Refused> {
        let advice = format!("if the device was replaced, an admin frees the name with: cnova enroll forget {node}");
        let bound = |message: String| Err(Refused::new(Gate::Bound, message, advice.clone()));
        if let Some(pinned) = self.stored.pinned.get(node) {
            if pinned.tier == Tier::Tpm && self.begin.tier == Tier::Soft {
                let message = format!("{node} was admitted with a TPM, and now comes with a key in a file");
                let advice = "set root = \"tpm\" in its [identity]; if its TPM is broken, an admin frees the name with: \
                              cnova enroll forget";
                return Err(Refused::new(Gate::Downgrade, message, advice));
            }
            match (pinned.ek, self.endorsement) {
                (Some(ek), Some(e)) if ek == e.ek => {}
                (Some(_), _) => return bound(format!("{node} belongs to another TPM")),
                (None, _) if pinned.key != self.begin.key => return bound(format!("{node} belongs to another key")),
                (None, _) => {}
            }
        }
        let other = |(name, p): &(&NodeId, &super::Pinned)| *name != node && p.key == self.begin.key;
        match self.stored.pinned.iter().find(other) {
            Some((name, _)) => bound(format!("this key belongs to {name}")),
            None => Ok(()),
        }
    }
}
