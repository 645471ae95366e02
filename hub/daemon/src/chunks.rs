//! Pieces of artifacts for children, read and signed beside the event loop.

use std::sync::Arc;

use cnova_broker::Publisher;
use cnova_shared::ids::{Digest, NodeId};
use cnova_shared::limits;
use cnova_shared::topics::Kind;
use cnova_shared::wire::v1;
use tokio::sync::Semaphore;

use crate::clock::Clock;
use crate::library::Library;
use crate::outgoing::send;
use crate::signer::Signer;
use crate::traffic::Traffic;

/// Chunks read and signed at once.
const AT_ONCE: usize = 4;
/// Chunks that wait for their turn; children ask again for what was dropped.
const WAITING: usize = 1024;

/// Serves chunks.
#[derive(Debug)]
pub struct Chunks {
    library: Arc<Library>,
    signer: Arc<Signer>,
    traffic: Arc<Traffic>,
    clock: Clock,
    slots: Semaphore,
    waiting: Arc<Semaphore>,
}

/// What a child asked for.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Who.
    pub child: NodeId,
    /// Of which artifact.
    pub digest: Digest,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

impl Chunks {
    /// Serves from `library`.
    #[must_use]
    pub fn new(library: Arc<Library>, signer: Arc<Signer>, traffic: Arc<Traffic>, clock: Clock) -> Self {
        let (slots, waiting) = (Semaphore::new(AT_ONCE), Arc::new(Semaphore::new(WAITING)));
        Self {
            library,
            signer,
            traffic,
            clock,
            slots,
            waiting,
        }
    }

    /// Reads, signs and sends a piece in a task of its own.
    pub fn serve(self: &Arc<Self>, piece: Piece, publisher: Publisher) {
        let Ok(place) = self.waiting.clone().try_acquire_owned() else {
            tracing::debug!(child = %piece.child, "too many chunks wait already; this one is dropped");
            return;
        };
        let this = self.clone();
        tokio::spawn(async move {
            let _place = place;
            let Ok(_slot) = this.slots.acquire().await else { return };
            let worker = this.clone();
            let child = piece.child.clone();
            let sealed = tokio::task::spawn_blocking(move || worker.seal(&piece)).await;
            if let Ok(Some(bytes)) = sealed {
                send(&publisher, &this.traffic, &child, Kind::Chunk, bytes);
            }
        });
    }

    fn seal(&self, piece: &Piece) -> Option<Vec<u8>> {
        let Piece {
            child,
            digest,
            offset,
            length,
        } = piece;
        let read = self
            .library
            .artifacts()
            .read(digest, *offset, (*length).min(limits::CHUNK_BYTES));
        let (data, total, missing) = match read {
            Ok((data, total)) => (data, total, None),
            Err(error) => {
                tracing::error!(artifact = %digest, %error, "an artifact cannot be read");
                // The child needs no path of this machine.
                (
                    Vec::new(),
                    0,
                    Some("the hub cannot read it; its log says why".to_owned()),
                )
            }
        };
        let chunk = v1::Chunk {
            v: v1::VERSION,
            digest: *digest,
            offset: *offset,
            total,
            data,
            missing,
        };
        match self.signer.to_child(Kind::Chunk, child, &chunk, self.clock.now_s()) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                tracing::error!(%child, %error, "a chunk was not signed");
                None
            }
        }
    }
}
