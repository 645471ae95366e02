//! Whose word about a node counts: the hub's, by a key of the trust bundle with the role `Attestation`, and a gateway's,
//! by the key that a delegation names, for what that delegation allows. Who relies on a result (RFC 9334) opens it here
//! and keeps it in [`Results`]; [`crate::ear::check_ear`] then says whether it is good now.

use std::fmt;

use cnova_shared::bundle::Role;
use cnova_shared::envelope::{EnvelopeError, Untrusted};
use cnova_shared::ids::{NodeId, SitePath};
use cnova_shared::keys::KeyId;
use cnova_shared::limits::DELEGATED_RESULT_S;
use cnova_shared::topics::Kind;
use cnova_shared::trust::{TrustState, revoked_text};
use cnova_shared::trust_documents::Right;
use thiserror::Error;

use crate::ear::{Ear, Status};

/// Who judged.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum By {
    /// The hub.
    Hub,
    /// A gateway under the hub's delegation.
    Gateway(NodeId),
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            By::Hub => f.write_str("the hub"),
            By::Gateway(gateway) => gateway.fmt(f),
        }
    }
}

/// When a result came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Now, seconds since 1970: whoever signed it must be allowed to at this time.
    Now(u64),
    /// Before: it was taken then, and is read back. Its key may have run out since; one that has left the trust bundle, or
    /// whose gateway was revoked or lost its right, counts no more.
    Before,
}

/// What a result should be about, and who asks.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// About whom.
    pub subject: &'a NodeId,
    /// The place that a gateway's delegation must cover.
    pub site: &'a SitePath,
    /// The one gateway that may have judged beside the hub; any with a delegation when nothing is said.
    pub gateway: Option<&'a NodeId>,
}

/// Why a result is not taken. None of these say anything about the node.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ResultError {
    /// The envelope did not hold.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// Neither the hub's key nor a gateway's with a delegation.
    #[error("key {kid} may not sign attestation results here: it is not the hub's, and {iss} has no delegation")]
    Nobody {
        /// The key.
        kid: KeyId,
        /// Who claims to have signed.
        iss: NodeId,
    },
    /// It is about somebody else.
    #[error("it is about {0}")]
    OtherSubject(NodeId),
    /// A gateway that does not judge this node.
    #[error("{0} judged, which is not the gateway of this node")]
    OtherGateway(NodeId),
    /// A gateway judged itself.
    #[error("{0} vouches for itself")]
    Itself(NodeId),
    /// The hub has revoked the gateway.
    #[error("{0}")]
    Revoked(String),
    /// The delegation does not allow it.
    #[error("the delegation of {gateway} does not let it appraise {what}")]
    NotAllowed {
        /// The gateway.
        gateway: NodeId,
        /// What it may not.
        what: String,
    },
    /// It is to be relied on for longer than a gateway may say.
    #[error("{gateway} says that it holds until {exp}; it may say so until {most} (seconds since 1970) at most")]
    TooLong {
        /// The gateway.
        gateway: NodeId,
        /// What it says.
        exp: u64,
        /// What it may say.
        most: u64,
    },
}

/// A result whose signature held, by somebody who may judge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    ear: Ear,
    by: By,
    bytes: Vec<u8>,
}

impl Opened {
    /// What it says.
    #[must_use]
    pub fn ear(&self) -> &Ear {
        &self.ear
    }
    /// Who judged.
    #[must_use]
    pub fn by(&self) -> &By {
        &self.by
    }
    /// Whether a gateway judged.
    #[must_use]
    pub fn is_delegated(&self) -> bool {
        self.by != By::Hub
    }
    /// The signed bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Opens a result.
///
/// # Errors
/// [`ResultError`]; nothing of the payload was decoded unless the signature held.
pub fn open(bytes: &[u8], expected: &Expected<'_>, trust: &TrustState, when: When) -> Result<Opened, ResultError> {
    let untrusted = Untrusted::read(bytes)?;
    let (iss, kid) = (untrusted.claims.iss.clone(), untrusted.kid);
    let of_hub = match when {
        When::Now(now_s) => trust.bundle().key(kid, Role::Attestation, now_s),
        When::Before => trust.bundle().key_at_any_time(kid, Role::Attestation),
    };
    let (key, by) = match (of_hub, trust.delegation(&iss)) {
        (Some(key), _) => (key, By::Hub),
        (None, Some(delegation)) => (&delegation.value().key, By::Gateway(iss.clone())),
        (None, None) => return Err(ResultError::Nobody { kid, iss }),
    };
    let verified = untrusted.verify(Kind::Ear, key)?;
    let verified = match by {
        By::Hub => verified,
        // Its end is in the result as well, and judged there.
        By::Gateway(_) => verified.meant_for(expected.subject, 0)?,
    };
    let ear = verified.decode::<Ear>()?.into_value();
    if ear.subject != *expected.subject {
        return Err(ResultError::OtherSubject(ear.subject));
    }
    if let By::Gateway(gateway) = &by {
        check_delegated(gateway, &ear, expected, trust, when)?;
    }
    let bytes = bytes.to_vec();
    Ok(Opened { ear, by, bytes })
}

/// Whether the gateway may say this. Its signature held, with the key of its delegation.
fn check_delegated(
    gateway: &NodeId,
    ear: &Ear,
    expected: &Expected<'_>,
    trust: &TrustState,
    when: When,
) -> Result<(), ResultError> {
    let not_allowed = |what: String| ResultError::NotAllowed {
        gateway: gateway.clone(),
        what,
    };
    let held = trust.delegation(gateway).ok_or_else(|| not_allowed("anybody".into()))?;
    let d = held.value();
    if *gateway == ear.subject {
        return Err(ResultError::Itself(gateway.clone()));
    }
    if expected.gateway.is_some_and(|g| g != gateway) {
        return Err(ResultError::OtherGateway(gateway.clone()));
    }
    if !trust.names(held.kid(), Role::Attestation) {
        return Err(not_allowed(
            "anybody: the key that signed it has left the trust bundle".into(),
        ));
    }
    if let Some(revoked) = trust.revoked(gateway, Some(d.key.id())) {
        return Err(ResultError::Revoked(revoked_text(revoked)));
    }
    if !d.rights.contains(&Right::Appraise) {
        return Err(not_allowed("anybody: it has no such right".into()));
    }
    if !d.covers(expected.site) {
        let what = format!("nodes at {}: it is for {}", expected.site, d.site);
        return Err(not_allowed(what));
    }
    if let When::Now(now_s) = when
        && now_s >= d.not_after
    {
        let what = format!(
            "anybody any more: it ended at {} and it is {now_s} (seconds since 1970)",
            d.not_after
        );
        return Err(not_allowed(what));
    }
    let most = d.not_after.min(ear.iat.saturating_add(DELEGATED_RESULT_S));
    if ear.exp > most {
        let (gateway, exp) = (gateway.clone(), ear.exp);
        return Err(ResultError::TooLong { gateway, exp, most });
    }
    Ok(())
}

/// What is known of one node: the newest word of the hub, and of a gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Results {
    hub: Option<Opened>,
    gateway: Option<Opened>,
}

impl Results {
    /// Takes a result unless a newer one by the same kind of verifier is held; says whether it was taken.
    pub fn take(&mut self, new: Opened) -> bool {
        let held = if new.is_delegated() {
            &mut self.gateway
        } else {
            &mut self.hub
        };
        let is_newer = held.as_ref().is_none_or(|h| h.ear.iat <= new.ear.iat);
        if is_newer {
            *held = Some(new);
        }
        is_newer
    }

    /// Whether this very result is held.
    #[must_use]
    pub fn holds(&self, shown: &Opened) -> bool {
        [&self.hub, &self.gateway].into_iter().flatten().any(|h| h == shown)
    }

    /// The one that counts. The newest does, but:
    ///
    /// - what the hub found against a node stands until the hub says otherwise: a gateway may judge by older references;
    /// - a gateway's result that is over says less than the hub's that is not.
    #[must_use]
    pub fn in_force(&self, now_s: u64) -> Option<&Opened> {
        let (Some(hub), Some(gateway)) = (&self.hub, &self.gateway) else {
            return self.hub.as_ref().or(self.gateway.as_ref());
        };
        let is_over = gateway.ear.status != Status::Contraindicated && gateway.ear.exp <= now_s && hub.ear.exp > now_s;
        let is_hubs = hub.ear.status == Status::Contraindicated || gateway.ear.iat <= hub.ear.iat || is_over;
        Some(if is_hubs { hub } else { gateway })
    }

    /// Drops what does not stand any more: the trust bundle, the delegations or the revocations have changed.
    pub fn retain(&mut self, stands: impl Fn(&Opened) -> bool) {
        self.hub = self.hub.take().filter(&stands);
        self.gateway = self.gateway.take().filter(&stands);
    }
}
