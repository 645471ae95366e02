//! The loop: it owns the core, takes what happened, commits, and then does what the core decided.
//!
//! Several events are taken at once and committed in one transaction, in their order, before any of their effects, in
//! their order: whatever left this process is on its disk. A twin is signed while the actions are gathered, because a
//! signature that nobody has seen is no effect; so the twins of a change are in the same transaction as the change.

mod handle;
mod newcomers;
mod outage;
mod pending;
mod signing;
mod trust;
mod work;

use std::collections::{BTreeSet, VecDeque};
use std::mem;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cnova_broker::{AnyEndpoint, EndpointEvent, Publisher};
use cnova_hub_core::systems::BundleFacts;
use cnova_hub_core::{Action, CompileKey, Event, Hub, InspectKey, Inspection, Op};
use cnova_shared::ids::{Digest, NodeId};
use cnova_shared::topics::Kind;
use cnova_store::CallError;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use self::handle::{Question, Request};
use self::newcomers::Doorway;
use self::pending::Pending;
use crate::chunks::{Chunks, Piece};
use crate::clock::Clock;
use crate::compile::{Compiled, Compiler};
use crate::downstream::Downstream;
use crate::library::Library;
use crate::outgoing::send;
use crate::signer::Signer;
use crate::stop::stopped;
use crate::store::audit::Draft;
use crate::store::{Store, StoreError};
use crate::traffic::Traffic;
use crate::vault::Vault;

pub use self::handle::{Change, HubHandle, REQUESTS_WAITING, Requests, Unavailable, channel};
pub use self::newcomers::Enrolling;

/// Most events taken into the core before their actions are performed.
const EVENTS_AT_ONCE: usize = 64;
/// Shortest pause before a tick, so that a timer that is late does not take the whole processor.
const TICK_MIN: Duration = Duration::from_millis(1);
/// Artifacts that are looked into at once; each takes a thread that reads the disk.
const INSPECTIONS_AT_ONCE: usize = 4;
/// Results of compilations and inspections that wait for the loop.
const COMPLETIONS_WAITING: usize = 64;

/// What the loop works with.
pub struct Parts {
    /// What the core is told about itself.
    pub config: cnova_hub_core::Config,
    /// Where the newest trust bundle is kept beside the store.
    pub newest_bundle: PathBuf,
    /// The truth.
    pub store: Store,
    /// The artifacts.
    pub library: Arc<Library>,
    /// The voice.
    pub signer: Arc<Signer>,
    /// The key for secrets.
    pub vault: Arc<Vault>,
    /// The compiler.
    pub compiler: Arc<Compiler>,
    /// How children are reached.
    pub downstream: Downstream,
    /// How nodes become nodes, where they do.
    pub enrolment: Option<Enrolling>,
    /// Counters.
    pub traffic: Arc<Traffic>,
    /// The clocks.
    pub clock: Clock,
}

/// Why the loop ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// The router in this process no longer works; only a new process has a new one.
    #[error("the message router no longer works ({0}); the hub must be started again")]
    Stalled(String),
    /// Children cannot be reached.
    #[error(transparent)]
    Endpoint(#[from] cnova_broker::EndpointError),
    /// Newcomers cannot be served.
    #[error(transparent)]
    Door(#[from] cnova_link::enrol::DoorError),
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store is damaged, or fails again and again.
    #[error("the hub ends because its store fails: {0}")]
    StoreFails(String),
    /// The artifacts cannot be read.
    #[error(transparent)]
    Artifacts(#[from] cnova_store::ArtifactError),
}

/// Why the core cannot go on as it is.
enum Fault {
    /// The store could not be written: what the core holds in memory is ahead of the disk.
    NotWritten(String),
    Fatal(LoopError),
}

impl From<LoopError> for Fault {
    fn from(error: LoopError) -> Self {
        Fault::Fatal(error)
    }
}

/// What is to be committed and done.
#[derive(Default)]
struct Batch {
    ops: Vec<Op>,
    drafts: Vec<Draft>,
    effects: VecDeque<Action>,
    committed: Vec<oneshot::Sender<Result<(), Unavailable>>>,
    queries: Vec<Question>,
}

/// What a worker is done with.
enum Completion {
    Compiled(CompileKey, Result<Compiled, String>),
    Inspected(InspectKey, Inspection),
    Bundle(Digest, Result<Box<BundleFacts>, String>),
}

/// The children's side, while it is there.
struct Link {
    endpoint: AnyEndpoint,
    publisher: Publisher,
    events: mpsc::Receiver<EndpointEvent>,
}

/// The loop's state.
pub struct EventLoop {
    parts: Parts,
    hub: Hub,
    chunks: Arc<Chunks>,
    link: Option<Link>,
    doorway: Doorway,
    requests: mpsc::Receiver<Request>,
    completions: (mpsc::Sender<Completion>, mpsc::Receiver<Completion>),
    inspections: Arc<Semaphore>,
    pending: Pending,
    batch: Batch,
    children: BTreeSet<NodeId>,
    rebuilds: u32,
}

enum Happened {
    Endpoint(Option<EndpointEvent>),
    Newcomer(cnova_link::enrol::Asked),
    Request(Option<Request>),
    Completed(Option<Completion>),
    Tick,
    Stop,
}

impl EventLoop {
    /// Builds the core from the store.
    ///
    /// # Errors
    /// [`LoopError`] when the store or the artifacts cannot be read.
    pub async fn new(parts: Parts, requests: Requests) -> Result<Self, LoopError> {
        let hub = boot(&parts).await?;
        let chunks = Chunks::new(
            parts.library.clone(),
            parts.signer.clone(),
            parts.traffic.clone(),
            parts.clock,
        );
        let doorway = Doorway::open(&parts).await?;
        let first_request = parts.clock.now().wall_ms.saturating_mul(1000);
        Ok(Self {
            parts,
            hub,
            chunks: Arc::new(chunks),
            link: None,
            doorway,
            requests: requests.0,
            completions: mpsc::channel(COMPLETIONS_WAITING),
            inspections: Arc::new(Semaphore::new(INSPECTIONS_AT_ONCE)),
            pending: Pending::new(first_request),
            batch: Batch::default(),
            children: BTreeSet::new(),
            rebuilds: 0,
        })
    }

    /// Opens the children's port and works until `stop` says so.
    ///
    /// # Errors
    /// [`LoopError`] when it cannot go on.
    pub async fn run(mut self, ready: oneshot::Sender<()>, mut stop: watch::Receiver<bool>) -> Result<(), LoopError> {
        let mut ready = Some(ready);
        let ended = loop {
            let why = match self.work(&mut ready, &mut stop).await {
                Ok(()) => break Ok(()),
                Err(Fault::Fatal(error)) => break Err(error),
                Err(Fault::NotWritten(why)) => why,
            };
            match self.sit_out(why, &mut stop).await {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.pending.fail(&Unavailable::Stopping);
        if let Some(link) = self.link.take() {
            link.endpoint.shutdown().await;
        }
        ended
    }

    async fn work(
        &mut self,
        ready: &mut Option<oneshot::Sender<()>>,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), Fault> {
        self.settle().await?;
        if self.link.is_none() {
            let authorities = self.hub.trust().bundle().authorities();
            let started = self.parts.downstream.start(&authorities).await;
            let (endpoint, events) = started.map_err(LoopError::from)?;
            let publisher = endpoint.publisher();
            trust::enforce(&endpoint.door(), self.hub.trust().view());
            self.link = Some(Link {
                endpoint,
                publisher,
                events,
            });
        }
        if let Some(ready) = ready.take() {
            // Whoever waited for it may have been told to stop.
            let _ = ready.send(());
        }
        loop {
            match self.next(stop).await {
                Happened::Stop => return Ok(()),
                happened => self.take(happened)?,
            }
            self.take_more()?;
            self.settle().await?;
        }
    }

    async fn next(&mut self, stop: &mut watch::Receiver<bool>) -> Happened {
        let soonest = tokio::time::Instant::now() + TICK_MIN;
        let due = self
            .hub
            .poll_timeout()
            .map(|at| self.parts.clock.instant(at).max(soonest));
        let tick = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        let events = async {
            match &mut self.link {
                Some(link) => link.events.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stopped(stop) => Happened::Stop,
            event = events => Happened::Endpoint(event),
            asked = self.doorway.next() => Happened::Newcomer(asked),
            request = self.requests.recv() => Happened::Request(request),
            completion = self.completions.1.recv() => Happened::Completed(completion),
            () = tick => Happened::Tick,
        }
    }

    /// Takes what else is there already, from all sides in turn, so that one commit serves all of it.
    fn take_more(&mut self) -> Result<(), Fault> {
        for _ in 0..EVENTS_AT_ONCE {
            let event = self.link.as_mut().and_then(|l| l.events.try_recv().ok());
            let request = self.requests.try_recv().ok();
            if event.is_none() && request.is_none() {
                break;
            }
            if let Some(event) = event {
                self.take(Happened::Endpoint(Some(event)))?;
            }
            if let Some(request) = request {
                self.take(Happened::Request(Some(request)))?;
            }
        }
        Ok(())
    }

    fn take(&mut self, happened: Happened) -> Result<(), Fault> {
        match happened {
            Happened::Endpoint(Some(event)) => self.on_endpoint(event)?,
            Happened::Endpoint(None) => {
                return Err(LoopError::Stalled("its events ended".into()).into());
            }
            Happened::Newcomer(asked) => self.on_newcomer(asked),
            Happened::Request(Some(request)) => self.on_request(request),
            Happened::Completed(Some(Completion::Compiled(key, result))) => {
                self.on_compiled(key, result);
            }
            Happened::Completed(Some(Completion::Bundle(bundle, result))) => {
                self.handle(Event::BundleInspected { bundle, result });
            }
            Happened::Completed(Some(Completion::Inspected(key, result))) => {
                self.handle(Event::Inspected { key, result });
            }
            Happened::Tick => self.handle(Event::Tick),
            // Every handle is gone: nobody can ask, children still can. The loop itself holds a sender of completions.
            Happened::Request(None) | Happened::Completed(None) | Happened::Stop => {}
        }
        Ok(())
    }

    fn handle(&mut self, event: Event) {
        let now = self.parts.clock.now();
        self.hub.handle(event, now);
        self.gather();
    }

    fn on_endpoint(&mut self, event: EndpointEvent) -> Result<(), Fault> {
        match event {
            EndpointEvent::Connected { node } => {
                if let Ok(child) = NodeId::new(node) {
                    tracing::info!(%child, "connected");
                    self.children.insert(child.clone());
                    self.handle(Event::ChildConnected(child));
                }
            }
            EndpointEvent::Disconnected { node, reason } => {
                if let Ok(child) = NodeId::new(node) {
                    self.children.remove(&child);
                    self.handle(Event::ChildDisconnected { child, reason });
                }
            }
            EndpointEvent::Message { node, kind, payload } => self.on_message(&node, &kind, &payload),
            EndpointEvent::Refused { peer, reason } => {
                self.parts.traffic.peers_refused.one();
                tracing::warn!(peer, reason, "turned away");
            }
            EndpointEvent::Stalled { reason } => return Err(LoopError::Stalled(reason).into()),
            EndpointEvent::BrokerUp => tracing::info!("the external broker is reached"),
            EndpointEvent::BrokerDown { reason } => {
                tracing::warn!(reason, "the external broker is not reached");
                let reason = format!("the external broker is not reached: {reason}");
                for child in mem::take(&mut self.children) {
                    self.handle(Event::ChildDisconnected {
                        child,
                        reason: reason.clone(),
                    });
                }
            }
        }
        Ok(())
    }

    fn on_message(&mut self, node: &str, kind: &str, payload: &[u8]) {
        self.parts.traffic.messages_in.one();
        self.parts.traffic.bytes_in.add(payload.len() as u64);
        let (Ok(child), Some(kind)) = (NodeId::new(node), Kind::parse(kind)) else {
            return tracing::warn!(node, kind, "a message of a kind that this hub does not know");
        };
        self.children.insert(child.clone());
        self.handle(Event::FromChild {
            child,
            kind,
            bytes: payload.to_vec(),
        });
    }

    fn on_request(&mut self, request: Request) {
        match request {
            Request::Change { change, audit, reply } => {
                let request = self.pending.add(reply, audit);
                self.handle(match change {
                    Change::PushBundle(bytes) => return self.on_bundle(request, bytes),
                    Change::Revoke {
                        node,
                        keys_only,
                        reason,
                    } => Event::Revoke {
                        request,
                        node,
                        keys_only,
                        reason,
                    },
                    Change::Readmit { node, new_key } => Event::Readmit { request, node, new_key },
                    Change::Apply(manifest) => Event::Apply { request, manifest },
                    Change::Delete(name) => Event::Delete { request, name },
                    Change::ApplySystem(manifest) => Event::ApplySystem { request, manifest },
                    Change::DeleteSystem(name) => Event::DeleteSystem { request, name },
                    Change::Ask { node, op } => Event::Ask { request, node, op },
                    Change::Secret(change) => Event::Secret { request, change },
                    Change::Attest(change) => Event::Attest { request, change },
                    Change::Enrolment(change) => Event::EnrolChange { request, change },
                });
            }
            Request::Uploaded {
                digest,
                size,
                audit,
                reply,
            } => {
                let ops_before = self.batch.ops.len();
                self.handle(Event::Uploaded { digest, size });
                if self.batch.ops.len() > ops_before {
                    self.batch.drafts.push(audit);
                }
                self.batch.committed.push(reply);
            }
            Request::Provenance {
                subject,
                artifact,
                envelope,
                audit,
                reply,
            } => {
                let ops_before = self.batch.ops.len();
                self.handle(Event::ProvenanceAdded {
                    subject,
                    artifact,
                    envelope,
                });
                if self.batch.ops.len() > ops_before {
                    self.batch.drafts.push(audit);
                }
                self.batch.committed.push(reply);
            }
            Request::Audit { draft, reply } => {
                self.batch.drafts.push(draft);
                self.batch.committed.push(reply);
            }
            Request::Collect(digests) => self.handle(Event::Collect(digests)),
            Request::Query(question) => self.batch.queries.push(question),
        }
    }

    /// Takes all that the core has to say.
    fn gather(&mut self) {
        while let Some(action) = self.hub.poll_action() {
            match action {
                Action::Persist(ops) => self.batch.ops.extend(ops),
                Action::SignTwin(twin) => self.sign(&twin),
                Action::SignEar(ear) => self.sign_ear(&ear),
                Action::SealSecret(order) => self.seal_secret(&order),
                Action::Enrol { author, ticket, step } => self.draw(author, ticket, step),
                Action::Certify(certify) => self.certify(certify),
                Action::Audit {
                    action,
                    object,
                    outcome,
                    detail,
                } => self.batch.drafts.push(self.draft(action, object, outcome, &detail)),
                Action::SignDocument(draft) => self.sign_document(draft),
                Action::Answer { request, outcome } => {
                    self.batch.drafts.extend(self.pending.audit_of(request, &outcome));
                    self.batch.effects.push_back(Action::Answer { request, outcome });
                }
                effect => self.batch.effects.push_back(effect),
            }
        }
    }

    /// Commits, then does, then lets those look who wanted to.
    async fn settle(&mut self) -> Result<(), Fault> {
        self.gather();
        let (ops, drafts) = (mem::take(&mut self.batch.ops), mem::take(&mut self.batch.drafts));
        if !ops.is_empty() || !drafts.is_empty() {
            self.parts.store.commit(ops, drafts).await.map_err(fault)?;
        }
        for effect in mem::take(&mut self.batch.effects) {
            self.perform(effect);
        }
        for reply in mem::take(&mut self.batch.committed) {
            // Whoever asked may have gone.
            let _ = reply.send(Ok(()));
        }
        for question in mem::take(&mut self.batch.queries) {
            question(&self.hub);
        }
        Ok(())
    }

    fn perform(&mut self, effect: Action) {
        let now_s = self.parts.clock.now_s();
        let signer = &self.parts.signer;
        match effect {
            Action::Answer { request, outcome } => self.pending.answer(request, outcome),
            Action::Compile(key) => self.compile(key),
            Action::Inspect(key) => self.inspect(key),
            Action::InspectBundle(bundle) => self.inspect_bundle(bundle),
            // Here and now: whoever uploads the same bytes next must not be told that they are there.
            Action::RemoveArtifacts(digests) => self.parts.library.remove(&digests),
            Action::Command { child, node, command } => {
                self.say(&child, Kind::Command, signer.command(&node, &command, now_s));
            }
            Action::Challenge { child, node, challenge } => {
                self.say(&child, Kind::Challenge, signer.challenge(&node, &challenge, now_s));
            }
            Action::Enrolled {
                child,
                author,
                enrolled,
            } => self.answer_enrolment(child, &author, enrolled),
            Action::Ack { child, ack } => self.say(&child, Kind::Ack, signer.to_child(Kind::Ack, &child, &ack, now_s)),
            Action::Trust { child, trust } => self.say_trust(&child, &trust, now_s),
            Action::TrustChanged(view) => self.trust_changed(view),
            Action::Forward { child, kind, bytes } => self.say(&child, kind, Ok(bytes)),
            Action::ServeChunk {
                child,
                digest,
                offset,
                length,
            } => {
                if let Some(link) = &self.link {
                    self.chunks.serve(
                        Piece {
                            child,
                            digest,
                            offset,
                            length,
                        },
                        link.publisher.clone(),
                    );
                }
            }
            Action::RefuseChunk { child, chunk } => {
                self.say(&child, Kind::Chunk, signer.to_child(Kind::Chunk, &child, &chunk, now_s));
            }
            Action::Note(text) => tracing::info!("{text}"),
            // Gathered, never queued.
            Action::Persist(_)
            | Action::SignTwin(_)
            | Action::SignDocument(_)
            | Action::SignEar(_)
            | Action::SealSecret(_)
            | Action::Enrol { .. }
            | Action::Certify(_)
            | Action::Audit { .. } => {}
        }
    }

    fn say(&self, child: &NodeId, kind: Kind, sealed: Result<Vec<u8>, cnova_shared::envelope::SealError>) {
        match (sealed, &self.link) {
            (Ok(bytes), Some(link)) => send(&link.publisher, &self.parts.traffic, child, kind, bytes),
            // At the start nobody is connected yet.
            (Ok(_), None) => {}
            (Err(error), _) => tracing::error!(%child, kind = kind.as_str(), %error, "not signed"),
        }
    }
}

async fn boot(parts: &Parts) -> Result<Hub, LoopError> {
    let mut stored = parts.store.load().await?;
    parts.library.leave_out_missing(&mut stored)?;
    let mut hub = Hub::boot(parts.config.clone(), stored, parts.clock.now());
    trust::choose_key(parts, &mut hub);
    Ok(hub)
}

fn fault(error: CallError) -> Fault {
    match error {
        CallError::Corrupt(_) | CallError::Gone => Fault::Fatal(LoopError::StoreFails(error.to_string())),
        CallError::Full(_) | CallError::Sql(_) => Fault::NotWritten(error.to_string()),
    }
}
