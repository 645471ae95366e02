//! The link to a node's parent: whose messages are believed, and the hello that is repeated until it is answered.

use crate::bundle::{Role, TrustBundle};
use crate::certificate;
use crate::envelope::{EnvelopeError, Untrusted, VerifiedBytes};
use crate::ids::NodeId;
use crate::keys::PublicKey;
use crate::limits;
use crate::time::Backoff;
use crate::topics::Kind;
use crate::trust::{TrustState, revoked_text};
use thiserror::Error;

/// Why the parent's words were not believed.
#[derive(Debug, Error)]
pub enum ParentError {
    /// The envelope did not hold.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// The certificate that introduced it did not hold.
    #[error("the parent's certificate: {0}")]
    Certificate(#[from] certificate::CertificateError),
    /// It is signed by somebody who is not the parent.
    #[error("{0} signed it, which is not this node's parent")]
    NotTheParent(NodeId),
    /// The hub has revoked the parent: only documents about trust are taken from it.
    #[error("{0}; nothing is taken from this node's parent but documents about trust")]
    Revoked(String),
}

/// The link's state.
#[derive(Debug)]
pub struct Parent {
    id: NodeId,
    /// The key that it signs with.
    key: Option<PublicKey>,
    /// The key of its certificate.
    certified: Option<PublicKey>,
    connected: bool,
    welcomed: bool,
    hello_at: Option<u64>,
    greeted_at: u64,
    is_changed: bool,
    backoff: Backoff,
}

impl Parent {
    /// A link that is not connected yet.
    #[must_use]
    pub fn new(id: NodeId) -> Self {
        Self {
            id,
            key: None,
            certified: None,
            connected: false,
            welcomed: false,
            hello_at: None,
            greeted_at: 0,
            is_changed: false,
            backoff: Backoff::default(),
        }
    }

    /// Whether the transport is up.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// The key of the parent's certificate, once it has introduced itself. The hub signs with a key of the trust bundle and
    /// never introduces itself.
    #[must_use]
    pub fn certified_key(&self) -> Option<&PublicKey> {
        self.certified.as_ref()
    }

    /// The transport is up: a hello is due.
    pub fn connected(&mut self, mono_ms: u64) {
        self.connected = true;
        self.welcomed = false;
        self.backoff.reset();
        self.hello_at = Some(mono_ms);
    }

    /// The transport is down.
    pub fn disconnected(&mut self) {
        self.connected = false;
        self.welcomed = false;
        self.hello_at = None;
    }

    /// What the hello tells may be unknown above: say it again, though not more often than every
    /// [`limits::GREET_AGAIN_MS`].
    pub fn greet_again(&mut self, mono_ms: u64) {
        if self.connected && self.hello_at.is_none() && mono_ms >= self.greeted_at + limits::GREET_AGAIN_MS {
            self.hello_at = Some(mono_ms);
        }
    }

    /// What the hello tells has changed: it is said again, as soon as [`limits::GREET_AGAIN_MS`] allows.
    pub fn changed(&mut self, mono_ms: u64) {
        match self.hello_at {
            _ if !self.connected => {}
            // The one that is under way may tell the old; whether it does is known when the next one is sent.
            Some(_) => self.is_changed = true,
            None => self.hello_at = Some(mono_ms.max(self.greeted_at + limits::GREET_AGAIN_MS)),
        }
    }

    /// What the parent may do here has changed: a hello is due, and its answer counts as the first of the connection.
    pub fn greet_anew(&mut self, mono_ms: u64) {
        self.welcomed = false;
        if self.connected {
            self.backoff.reset();
            self.hello_at = Some(mono_ms);
        }
    }

    /// Why nothing but documents about trust is taken from this parent: the hub has revoked it.
    #[must_use]
    pub fn revoked(&self, trust: &TrustState) -> Option<String> {
        // A list names certified keys; the one that signs may be a session's.
        let key = self.certified.as_ref().map(PublicKey::id);
        trust.revoked(&self.id, key).map(revoked_text)
    }

    /// Whether it is connected and knows this node.
    #[must_use]
    pub const fn is_welcome(&self) -> bool {
        self.welcomed
    }

    /// Whether a hello is due; it is repeated with backoff until [`Parent::welcomed`].
    pub fn poll_hello(&mut self, mono_ms: u64) -> bool {
        let due = self.connected && self.hello_at.is_some_and(|t| t <= mono_ms);
        if due {
            self.hello_at = Some(mono_ms + self.backoff.next_pause());
            self.greeted_at = mono_ms;
            self.is_changed = false;
        }
        due
    }

    /// The hello was answered. True for the first answer on this connection.
    pub fn welcomed(&mut self) -> bool {
        let again = std::mem::take(&mut self.is_changed);
        self.hello_at = again.then_some(self.greeted_at + limits::GREET_AGAIN_MS);
        self.backoff.reset();
        !std::mem::replace(&mut self.welcomed, true)
    }

    /// When a hello is due, monotonic milliseconds.
    #[must_use]
    pub fn timeout(&self) -> Option<u64> {
        self.hello_at
    }

    /// Opens what the parent itself signed for this node: acknowledgements and chunks.
    ///
    /// # Errors
    /// [`ParentError`]; nothing of the payload was decoded.
    pub fn open(
        &mut self,
        kind: Kind,
        bytes: &[u8],
        me: &NodeId,
        trust: &TrustState,
        now_s: u64,
    ) -> Result<VerifiedBytes, ParentError> {
        let opened = self.open_of(kind, bytes, me, trust.bundle(), now_s)?;
        // A parent that the hub revoked may still bring the list that says that it is not any more.
        match self.revoked(trust).filter(|_| kind != Kind::Trust) {
            Some(why) => Err(ParentError::Revoked(why)),
            None => Ok(opened),
        }
    }

    fn open_of(
        &mut self,
        kind: Kind,
        bytes: &[u8],
        me: &NodeId,
        trust: &TrustBundle,
        now_s: u64,
    ) -> Result<VerifiedBytes, ParentError> {
        let untrusted = Untrusted::read(bytes)?;
        if untrusted.claims.iss != self.id {
            return Err(ParentError::NotTheParent(untrusted.claims.iss));
        }
        if let Some(hub_key) = trust.key(untrusted.kid, Role::Twin, now_s) {
            return Ok(untrusted.verify(kind, hub_key)?.meant_for(me, now_s)?);
        }
        if !untrusted.x5chain.is_empty() {
            let introduced = certificate::verify(&untrusted.x5chain, &trust.authorities(), now_s)?;
            if introduced.node != self.id {
                return Err(ParentError::NotTheParent(introduced.node));
            }
            let key = untrusted.speaker(&introduced)?;
            let verified = untrusted.verify(kind, &key)?.meant_for(me, now_s)?;
            self.key = Some(key);
            self.certified = Some(introduced.key);
            return Ok(verified);
        }
        let unknown = EnvelopeError::UnknownKey {
            iss: self.id.clone(),
            kid: untrusted.kid,
        };
        let key = self.key.as_ref().ok_or(unknown)?;
        Ok(untrusted.verify(kind, key)?.meant_for(me, now_s)?)
    }

    /// Opens what the hub signed for this node: commands.
    ///
    /// # Errors
    /// [`ParentError`]; nothing of the payload was decoded.
    pub fn open_hub(
        kind: Kind,
        bytes: &[u8],
        me: &NodeId,
        trust: &TrustBundle,
        now_s: u64,
    ) -> Result<VerifiedBytes, ParentError> {
        let untrusted = Untrusted::read(bytes)?;
        let unknown = EnvelopeError::UnknownKey {
            iss: untrusted.claims.iss.clone(),
            kid: untrusted.kid,
        };
        let key = trust.key(untrusted.kid, Role::Twin, now_s).ok_or(unknown)?;
        Ok(untrusted.verify(kind, key)?.meant_for(me, now_s)?)
    }
}
