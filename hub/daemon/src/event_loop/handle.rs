//! How the API speaks with the loop.

use std::collections::BTreeSet;

use cnova_hub_core::enrol::EnrolChange;
use cnova_hub_core::policy::{AdmittedManifest, AdmittedSystem};
use cnova_hub_core::secrets::SecretChange;
use cnova_hub_core::{AttestChange, Hub, Outcome};
use cnova_shared::ids::{Digest, Name, NodeId};
use cnova_shared::wire::v1;
use tokio::sync::{mpsc, oneshot};

use crate::store::audit::Draft;

/// Requests that wait for the loop; one more is turned away.
pub const REQUESTS_WAITING: usize = 256;

/// Something to be decided by the core.
#[derive(Debug)]
pub enum Change {
    /// Store and place an application.
    Apply(Box<AdmittedManifest>),
    /// Delete an application.
    Delete(Name),
    /// Store a system, and ask nodes for it.
    ApplySystem(Box<AdmittedSystem>),
    /// Take a system away.
    DeleteSystem(Name),
    /// Change who may enrol.
    Enrolment(EnrolChange),
    /// Take a newer trust bundle.
    PushBundle(Vec<u8>),
    /// Trust a node no longer.
    Revoke {
        /// Which.
        node: NodeId,
        /// Whether only the keys that are known of it are refused.
        keys_only: bool,
        /// Why.
        reason: String,
    },
    /// Let a revoked node in again.
    Readmit {
        /// Which.
        node: NodeId,
        /// Whether the keys that it had stay refused.
        new_key: bool,
    },
    /// Set, grant or remove a secret.
    Secret(SecretChange),
    /// Something of attestation.
    Attest(AttestChange),
    /// Ask a node.
    Ask {
        /// Which.
        node: NodeId,
        /// What.
        op: v1::Operation,
    },
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// Too many wait already.
    #[error("the hub is busy: {REQUESTS_WAITING} requests wait already; try again")]
    Busy,
    /// It ends.
    #[error("the hub is stopping")]
    Stopping,
    /// Nothing can be written.
    #[error(
        "the hub cannot write its store: {0}. Nothing was changed and nothing is lost; free disk space on the hub and \
         try again"
    )]
    Store(String),
}

type Reply<T> = oneshot::Sender<Result<T, Unavailable>>;
pub(super) type Question = Box<dyn FnOnce(&Hub) + Send>;

pub(super) enum Request {
    Change {
        change: Change,
        audit: Option<Draft>,
        reply: Reply<Outcome>,
    },
    Uploaded {
        digest: Digest,
        size: u64,
        audit: Draft,
        reply: Reply<()>,
    },
    Provenance {
        subject: Digest,
        artifact: v1::Artifact,
        envelope: Vec<u8>,
        audit: Draft,
        reply: Reply<()>,
    },
    Audit {
        draft: Draft,
        reply: Reply<()>,
    },
    Collect(BTreeSet<Digest>),
    Query(Question),
}

/// Speaks with the loop. Cheap to clone.
#[derive(Clone)]
pub struct HubHandle {
    requests: mpsc::Sender<Request>,
}

/// The loop's end of it.
pub struct Requests(pub(super) mpsc::Receiver<Request>);

/// Both ends.
#[must_use]
pub fn channel() -> (HubHandle, Requests) {
    let (requests, receiver) = mpsc::channel(REQUESTS_WAITING);
    (HubHandle { requests }, Requests(receiver))
}

impl HubHandle {
    /// Has something decided, and waits until what was decided is on the disk. `audit` says who asked; the loop
    /// completes it with the outcome.
    ///
    /// # Errors
    /// [`Unavailable`]; nothing was changed.
    pub async fn change(&self, change: Change, audit: Option<Draft>) -> Result<Outcome, Unavailable> {
        self.ask(|reply| Request::Change { change, audit, reply }).await
    }

    /// Tells of an artifact that is on the disk.
    ///
    /// # Errors
    /// [`Unavailable`]; the core does not know it.
    pub async fn uploaded(&self, digest: Digest, size: u64, audit: Draft) -> Result<(), Unavailable> {
        self.ask(|reply| Request::Uploaded {
            digest,
            size,
            audit,
            reply,
        })
        .await
    }

    /// Tells of provenance that is on the disk as an artifact.
    ///
    /// # Errors
    /// [`Unavailable`]; the core does not know it.
    pub async fn provenance(
        &self,
        subject: Digest,
        artifact: v1::Artifact,
        envelope: Vec<u8>,
        audit: Draft,
    ) -> Result<(), Unavailable> {
        self.ask(|reply| Request::Provenance {
            subject,
            artifact,
            envelope,
            audit,
            reply,
        })
        .await
    }

    /// Writes to the audit log alone.
    ///
    /// # Errors
    /// [`Unavailable`]; it is not written.
    pub async fn audit(&self, draft: Draft) -> Result<(), Unavailable> {
        self.ask(|reply| Request::Audit { draft, reply }).await
    }

    /// Lets go of artifacts that nothing uses.
    ///
    /// # Errors
    /// [`Unavailable`]; nothing was removed.
    pub fn collect(&self, digests: BTreeSet<Digest>) -> Result<(), Unavailable> {
        self.send(Request::Collect(digests))
    }

    /// Looks at the core, whose changes are all on the disk then.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn query<R: Send + 'static>(
        &self,
        look: impl FnOnce(&Hub) -> R + Send + 'static,
    ) -> Result<R, Unavailable> {
        let (reply, answer) = oneshot::channel();
        let question: Question = Box::new(move |hub| {
            // Whoever asked may have gone.
            let _ = reply.send(look(hub));
        });
        self.send(Request::Query(question))?;
        answer.await.map_err(|_| Unavailable::Stopping)
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Unavailable> {
        let (reply, answer) = oneshot::channel();
        self.send(request(reply))?;
        answer.await.map_err(|_| Unavailable::Stopping)?
    }

    fn send(&self, request: Request) -> Result<(), Unavailable> {
        self.requests.try_send(request).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Unavailable::Busy,
            mpsc::error::TrySendError::Closed(_) => Unavailable::Stopping,
        })
    }
}
