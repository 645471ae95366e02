//! Signing what the gateway itself says: upwards to the hub or the parent, downwards to a child.

use std::sync::Arc;

use cnova_gateway_core::UpMessage;
use cnova_shared::envelope::{Claims, SealError, seal};
use cnova_shared::ids::{HUB_AUDIENCE, InvalidName, NodeId};
use cnova_shared::keys::Signer;
use cnova_shared::topics::Kind;
use cnova_shared::wire::v1;

/// The gateway's voice. Cheap to clone, so that chunks can be signed beside the event loop.
#[derive(Clone)]
pub struct Sealer {
    node: NodeId,
    parent: NodeId,
    hub: NodeId,
    signer: Arc<dyn Signer>,
    chain: Arc<[Vec<u8>]>,
}

impl Sealer {
    /// A voice with the key of the node certificate; `chain` is that certificate and its intermediates, DER.
    ///
    /// # Errors
    /// Never in practice: [`HUB_AUDIENCE`] is a node id.
    pub fn new(
        node: NodeId,
        parent: NodeId,
        signer: Arc<dyn Signer>,
        chain: &[Vec<u8>],
    ) -> Result<Self, InvalidName> {
        Ok(Self { node, parent, hub: NodeId::new(HUB_AUDIENCE)?, signer, chain: chain.into() })
    }

    /// Signs what goes up: to the hub what every gateway on the way carries unchanged, to the parent the rest.
    ///
    /// # Errors
    /// [`SealError`] when it is too large or the key did not sign.
    pub fn up(&self, message: &UpMessage, now_s: u64) -> Result<(Kind, Vec<u8>), SealError> {
        let (kind, bytes) = match message {
            UpMessage::Hello(hello) => (Kind::Hello, self.seal(Kind::Hello, &self.hub, hello, &self.chain, now_s)),
            UpMessage::Report(report) => (Kind::Report, self.seal(Kind::Report, &self.hub, report, &[], now_s)),
            UpMessage::Relay(relay) => (Kind::Relay, self.seal(Kind::Relay, &self.parent, relay, &[], now_s)),
            UpMessage::ChunkRequest(request) => {
                (Kind::ChunkRequest, self.seal(Kind::ChunkRequest, &self.parent, request, &[], now_s))
            }
        };
        Ok((kind, bytes?))
    }

    /// Signs an acknowledgement; one that answers a hello introduces the gateway with its certificate.
    ///
    /// # Errors
    /// [`SealError`] when the key did not sign.
    pub fn ack(&self, child: &NodeId, ack: &v1::Ack, introduce: bool, now_s: u64) -> Result<Vec<u8>, SealError> {
        let chain: &[Vec<u8>] = if introduce { &self.chain } else { &[] };
        self.seal(Kind::Ack, child, ack, chain, now_s)
    }

    /// Signs a chunk.
    ///
    /// # Errors
    /// [`SealError`] when it is too large or the key did not sign.
    pub fn chunk(&self, child: &NodeId, chunk: &v1::Chunk, now_s: u64) -> Result<Vec<u8>, SealError> {
        self.seal(Kind::Chunk, child, chunk, &[], now_s)
    }

    fn seal<T: serde::Serialize>(
        &self,
        kind: Kind,
        aud: &NodeId,
        value: &T,
        chain: &[Vec<u8>],
        now_s: u64,
    ) -> Result<Vec<u8>, SealError> {
        let claims = Claims { iss: self.node.clone(), aud: aud.clone(), iat: now_s, exp: None };
        seal(kind, &claims, value, chain, &*self.signer)
    }
}
