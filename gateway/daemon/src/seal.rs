//! Signing what the gateway itself says: upwards to the hub or the parent, downwards to a child.

use std::sync::Arc;

use cnova_attestation::ear::Ear;
use cnova_gateway_core::UpMessage;
use cnova_link::Identity;
use cnova_shared::envelope::{self, Claims, SealError};
use cnova_shared::ids::{HUB_AUDIENCE, InvalidName, NodeId};
use cnova_shared::topics::Kind;
use cnova_shared::wire::v1;

/// How long a child may answer a challenge, seconds.
pub const CHALLENGE_SECONDS: u64 = 60;

/// The gateway's voice. Cheap to clone, so that chunks can be signed beside the event loop.
#[derive(Clone, Debug)]
pub struct Sealer {
    identity: Arc<Identity>,
    parent: NodeId,
    hub: NodeId,
}

impl Sealer {
    /// A voice that speaks as `identity` to `parent`.
    ///
    /// # Errors
    /// Never in practice: [`HUB_AUDIENCE`] is a node id.
    pub fn new(identity: Arc<Identity>, parent: NodeId) -> Result<Self, InvalidName> {
        Ok(Self {
            identity,
            parent,
            hub: NodeId::new(HUB_AUDIENCE)?,
        })
    }

    /// Signs what goes up: for the hub what every gateway on the way carries unchanged, for the parent the rest.
    ///
    /// # Errors
    /// [`SealError`] when it is too large or the key did not sign.
    pub fn up(&self, message: &UpMessage, now_s: u64) -> Result<(Kind, Vec<u8>), SealError> {
        let sealed = match message {
            UpMessage::Hello(hello) => (
                Kind::Hello,
                self.identity.seal(Kind::Hello, &self.hub, now_s, None, hello, true)?,
            ),
            UpMessage::Report(report) => (
                Kind::Report,
                self.identity
                    .seal(Kind::Report, &self.hub, now_s, None, report, false)?,
            ),
            UpMessage::Enrol(enrol) => (
                Kind::Enrol,
                self.identity.seal(Kind::Enrol, &self.hub, now_s, None, enrol, false)?,
            ),
            UpMessage::Relay(relay) => (
                Kind::Relay,
                self.identity
                    .seal(Kind::Relay, &self.parent, now_s, None, relay, false)?,
            ),
            UpMessage::ChunkRequest(request) => {
                let bytes = self
                    .identity
                    .seal(Kind::ChunkRequest, &self.parent, now_s, None, request, false)?;
                (Kind::ChunkRequest, bytes)
            }
        };
        Ok(sealed)
    }

    /// Signs an acknowledgement; one that answers a hello introduces the gateway with its certificate.
    ///
    /// # Errors
    /// [`SealError`] when the key did not sign.
    pub fn ack(&self, child: &NodeId, ack: &v1::Ack, introduce: bool, now_s: u64) -> Result<Vec<u8>, SealError> {
        self.identity.seal(Kind::Ack, child, now_s, None, ack, introduce)
    }

    /// Signs a challenge, which the child answers for [`CHALLENGE_SECONDS`].
    ///
    /// # Errors
    /// [`SealError`] when the key did not sign.
    pub fn challenge(&self, child: &NodeId, challenge: &v1::Challenge, now_s: u64) -> Result<Vec<u8>, SealError> {
        let exp = Some(now_s + CHALLENGE_SECONDS);
        self.identity.seal(Kind::Challenge, child, now_s, exp, challenge, false)
    }

    /// Signs an attestation result with the key of the gateway's certificate, which its delegation names. Blocks for as long
    /// as a TPM takes.
    ///
    /// # Errors
    /// [`SealError`] when the key did not sign.
    pub fn ear(&self, ear: &Ear) -> Result<Vec<u8>, SealError> {
        let claims = Claims {
            iss: self.identity.node().clone(),
            aud: ear.subject.clone(),
            iat: ear.iat,
            exp: Some(ear.exp),
        };
        envelope::seal(Kind::Ear, &claims, ear, &[], &*self.identity.signer())
    }

    /// Signs documents about trust, introduced by the gateway's certificate.
    ///
    /// # Errors
    /// [`SealError`] when it is too large or the key did not sign.
    pub fn trust(&self, child: &NodeId, trust: &v1::Trust, now_s: u64) -> Result<Vec<u8>, SealError> {
        self.identity.seal(Kind::Trust, child, now_s, None, trust, true)
    }

    /// Signs a chunk.
    ///
    /// # Errors
    /// [`SealError`] when it is too large or the key did not sign.
    pub fn chunk(&self, child: &NodeId, chunk: &v1::Chunk, now_s: u64) -> Result<Vec<u8>, SealError> {
        self.identity.seal(Kind::Chunk, child, now_s, None, chunk, false)
    }
}
