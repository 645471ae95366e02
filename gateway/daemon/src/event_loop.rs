//! The one place that sees both sides: what happened goes into the core, what the core decided is performed in order.

use std::future::{Future, pending};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cnova_attestation::ear::Ear;
use cnova_broker::{EndpointEvent, Publisher};
use cnova_gateway_core::{Action, Config, Event, Gateway, Stored};
use cnova_link::enrol::Asked;
use cnova_link::{FloorClock, Identity, UplinkEvent, Witness};
use cnova_shared::ids::NodeId;
use cnova_shared::time::Now;
use cnova_shared::topics::Kind;
use cnova_shared::wire::v1::{Alarm, Challenge, EnrolIssued};
use cnova_store::CallError;
use tokio::signal::unix::Signal;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::batch::{Batch, EVENTS_MAX};
use crate::cache::{Cache, Piece, send_chunk};
use crate::clock::Clock;
use crate::doorway::Doorway;
use crate::downstream::{Roll, Stalled};
use crate::notes::Notes;
use crate::seal::Sealer;
use crate::store::Store;
use crate::trust::Trust;
use crate::upstream::Upstream;

/// First pause before a store that failed is tried again; doubles up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// A store that worked this long has recovered: the next pause is short again.
const RECOVERED: Duration = Duration::from_secs(60);

/// Everything that the loop holds.
pub struct Parts {
    /// What the core is told about itself.
    pub config: Config,
    /// Who the gateway is.
    pub identity: Arc<Identity>,
    /// Where its certificate lies.
    pub certificate: PathBuf,
    /// The door for newcomers.
    pub doorway: Doorway,
    /// The gateway's voice.
    pub sealer: Sealer,
    /// The clock that TLS believes.
    pub floor: Arc<FloorClock>,
    /// The store.
    pub store: Store,
    /// The artifacts.
    pub cache: Cache,
    /// The parent.
    pub upstream: Upstream,
    /// The way to the children.
    pub publisher: Publisher,
    /// Who is let in, and whom the gateway believes to be its parent.
    pub trust: Trust,
    /// With a TPM.
    pub witness: Option<Arc<Witness>>,
}

/// Where events come from.
pub struct Sources {
    /// The parent.
    pub up: mpsc::Receiver<UplinkEvent>,
    /// Renewal times of certificates that an enrolment brought.
    pub installed: mpsc::Receiver<u64>,
    /// Newcomers.
    pub asked: mpsc::Receiver<Asked>,
    /// The children.
    pub down: mpsc::Receiver<EndpointEvent>,
    /// The artifact cache.
    pub cache: mpsc::UnboundedReceiver<Event>,
    /// SIGUSR1: a person wants all children to be appraised now.
    pub demand: Signal,
}

/// Why the loop ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// It was asked to.
    Asked,
    /// The children's router no longer works; a fresh process is needed.
    Stalled(String),
    /// The store is damaged; a fresh process sets it aside.
    Damaged(String),
}

enum Input {
    Up(UplinkEvent),
    Down(EndpointEvent),
    Core(Event),
    Newcomer(Asked),
    Installed(u64),
}

/// What the store did to the core.
enum Failure {
    Store(CallError),
    Damaged(CallError),
}

/// The loop.
pub struct EventLoop {
    parts: Parts,
    clock: Clock,
    /// Absent while the store refuses writes.
    core: Option<Gateway>,
    batch: Batch,
    roll: Roll,
    /// Renewal times of certificates that are on disk and in use.
    renewed: (mpsc::Sender<u64>, mpsc::Receiver<u64>),
    evidence: (mpsc::Sender<Vec<u8>>, mpsc::Receiver<Vec<u8>>),
    /// Results that are signed.
    results: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    notes: Notes,
    retry_at: Instant,
    retry_pause: Duration,
}

impl EventLoop {
    /// A loop whose core begins from what the store held.
    ///
    /// # Errors
    /// When the artifacts cannot be listed.
    pub fn new(parts: Parts, stored: Stored) -> Result<Self, cnova_store::ArtifactError> {
        let mut this = Self {
            clock: Clock::new(parts.floor.clone()),
            parts,
            core: None,
            batch: Batch::default(),
            roll: Roll::default(),
            renewed: mpsc::channel(1),
            evidence: mpsc::channel(1),
            results: mpsc::channel(1),
            notes: Notes::default(),
            retry_at: Instant::now(),
            retry_pause: RETRY_FIRST,
        };
        this.boot(stored)?;
        Ok(this)
    }

    /// Runs until `stop` or until only a fresh process helps.
    pub async fn run(&mut self, mut sources: Sources, stop: impl Future<Output = ()>) -> End {
        let mut stop = pin!(stop);
        loop {
            if let Err(failure) = self.perform_all().await
                && let Some(end) = self.lose_core(failure)
            {
                return end;
            }
            let timer = self.timer();
            let first = tokio::select! {
                () = &mut stop => return End::Asked,
                Some(event) = sources.up.recv() => Input::Up(event),
                Some(event) = sources.down.recv() => Input::Down(event),
                Some(event) = sources.cache.recv() => Input::Core(event),
                Some(asked) = sources.asked.recv() => Input::Newcomer(asked),
                Some(renew_s) = sources.installed.recv() => Input::Installed(renew_s),
                Some(renew_s) = self.renewed.1.recv() => Input::Core(self.on_installed(renew_s)),
                Some(bytes) = self.evidence.1.recv() => {
                    self.parts.upstream.carry(Kind::Evidence, bytes);
                    continue;
                }
                Some(signed) = self.results.1.recv() => Input::Core(signed),
                Some(()) = sources.demand.recv() => Input::Core(Event::Demand),
                () = wait_until(timer) => Input::Core(Event::Tick),
            };
            if let Err(Stalled { reason }) = self.take_queued(first, &mut sources) {
                return End::Stalled(reason);
            }
            if self.core.is_none() && Instant::now() >= self.retry_at {
                self.revive().await;
            }
        }
    }

    /// Says goodbye to the parent.
    pub async fn shutdown(self) {
        let (commits, bytes) = self.parts.store.written();
        tracing::debug!(commits, bytes, "written to the store in this run");
        self.parts.upstream.shutdown().await;
    }

    fn timer(&self) -> Option<Instant> {
        match &self.core {
            None => Some(self.retry_at),
            Some(core) => core.poll_timeout().map(|mono_ms| self.clock.instant(mono_ms)),
        }
    }

    /// Takes `first` and what is queued behind it, so that their commits can be one.
    fn take_queued(&mut self, first: Input, sources: &mut Sources) -> Result<(), Stalled> {
        self.take(first)?;
        let mut taken = 1;
        while taken < EVENTS_MAX {
            let before = taken;
            if let Ok(event) = sources.up.try_recv() {
                self.take(Input::Up(event))?;
                taken += 1;
            }
            if let Ok(event) = sources.down.try_recv() {
                self.take(Input::Down(event))?;
                taken += 1;
            }
            if let Ok(event) = sources.cache.try_recv() {
                self.take(Input::Core(event))?;
                taken += 1;
            }
            if taken == before {
                break;
            }
        }
        Ok(())
    }

    fn take(&mut self, input: Input) -> Result<(), Stalled> {
        let events = match input {
            Input::Up(event) => vec![self.parts.upstream.take(event)],
            Input::Down(event) => self.roll.take(event)?.into_iter().collect(),
            Input::Core(event) => vec![event],
            Input::Newcomer(asked) => self.parts.doorway.take(asked),
            Input::Installed(renew_s) => {
                self.parts.upstream.try_now();
                vec![self.on_installed(renew_s)]
            }
        };
        // Without a core, what is said is lost as on a bad line: whoever said it says it again.
        if let Some(core) = &mut self.core {
            for event in events {
                if matches!(event, Event::Demand) {
                    say_standings(core, self.clock.now());
                }
                core.handle(event, self.clock.now());
                self.batch.take(core);
            }
        }
        Ok(())
    }

    /// Kept as well, for a core that is made anew.
    fn on_installed(&mut self, renew_s: u64) -> Event {
        self.parts.config.renew_s = Some(renew_s);
        Event::Installed { renew_s }
    }

    /// The next certificate goes onto the disk before it is used. What fails is asked for again.
    fn install(&self, issued: EnrolIssued) {
        let (identity, path) = (self.parts.identity.clone(), self.parts.certificate.clone());
        let renewed = self.renewed.0.clone();
        tokio::task::spawn_blocking(move || {
            let stored = cnova_link::store_issued(&path, &issued).map_err(|e| e.to_string());
            match stored.and_then(|()| identity.install(&issued).map_err(|e| e.to_string())) {
                Ok(()) => {
                    tracing::info!(until = identity.not_after_s(), "the certificate was renewed");
                    // The loop may have ended.
                    let _ = renewed.blocking_send(issued.renew_s);
                }
                Err(error) => {
                    tracing::error!(path = %path.display(), error, "the renewed certificate is not used");
                }
            }
        });
    }

    /// Asks the TPM beside the loop: it may take seconds, or never answer.
    fn attest(&self, verifier: NodeId, challenge: Challenge, now_s: u64) {
        let Some(witness) = self.parts.witness.clone() else {
            tracing::info!(%verifier, "asked to attest, and this gateway has no TPM");
            return;
        };
        let (identity, sender) = (self.parts.identity.clone(), self.evidence.0.clone());
        tokio::task::spawn_blocking(move || match witness.answer(&identity, &verifier, &challenge, now_s) {
            // The loop may have ended.
            Ok(bytes) => drop(sender.blocking_send(bytes)),
            Err(error) => tracing::warn!(%verifier, %error, "cannot attest; the verifier asks again"),
        });
    }

    /// Signs beside the loop: the key may lie in a TPM. What is not signed is asked for again.
    fn sign_ear(&self, ear: Box<Ear>) {
        let (sealer, sender) = (self.parts.sealer.clone(), self.results.0.clone());
        tokio::task::spawn_blocking(move || match sealer.ear(&ear) {
            Ok(bytes) => {
                let node = ear.subject;
                // The loop may have ended.
                drop(sender.blocking_send(Event::EarSigned { node, bytes }));
            }
            Err(error) => tracing::error!(child = %ear.subject, %error, "its attestation result was not signed"),
        });
    }

    async fn perform_all(&mut self) -> Result<(), Failure> {
        while let Some(action) = self.batch.pop() {
            self.perform(action).await?;
        }
        Ok(())
    }

    async fn perform(&mut self, action: Action) -> Result<(), Failure> {
        let now_s = self.now_s();
        match action {
            Action::Persist(ops) => {
                self.parts.store.persist(ops).await.map_err(|error| match error {
                    CallError::Corrupt(_) | CallError::Gone => Failure::Damaged(error),
                    CallError::Full(_) | CallError::Sql(_) => Failure::Store(error),
                })?;
            }
            Action::SendUp(message) => self.parts.upstream.send(&message, now_s),
            Action::Ack { child, ack, introduce } => match self.parts.sealer.ack(&child, &ack, introduce, now_s) {
                Ok(bytes) => self.publish(&child, Kind::Ack, bytes),
                Err(error) => tracing::error!(%child, %error, "acknowledgement not signed"),
            },
            Action::Trust { child, trust } => match self.parts.sealer.trust(&child, &trust, now_s) {
                Ok(bytes) => self.publish(&child, Kind::Trust, bytes),
                Err(error) => tracing::error!(%child, %error, "documents about trust not signed"),
            },
            Action::TrustChanged(view) => {
                self.parts.floor.raise(view.issued_at);
                self.parts.trust.enforce(view);
            }
            Action::Forward { child, kind, bytes } => self.publish(&child, kind, bytes),
            Action::ServeChunk {
                child,
                digest,
                offset,
                length,
            } => {
                let piece = Piece {
                    child,
                    digest,
                    offset,
                    length,
                };
                self.parts
                    .cache
                    .serve(piece, self.parts.sealer.clone(), self.parts.publisher.clone(), now_s);
            }
            Action::RefuseChunk { child, chunk } => {
                send_chunk(&child, &chunk, &self.parts.sealer, &self.parts.publisher, now_s);
            }
            Action::AppendChunk {
                digest,
                offset,
                data,
                complete,
            } => {
                self.parts.cache.append(digest, offset, data, complete).await;
            }
            Action::CarryUp { kind, bytes } => self.parts.upstream.carry(kind, bytes),
            Action::AnswerNewcomer { door, answer } => self.parts.doorway.answer(door, answer),
            Action::Attest { verifier, challenge } => self.attest(verifier, challenge, now_s),
            Action::Challenge { child, challenge } => match self.parts.sealer.challenge(&child, &challenge, now_s) {
                Ok(bytes) => self.publish(&child, Kind::Challenge, bytes),
                Err(error) => tracing::error!(%child, %error, "challenge not signed"),
            },
            Action::SignEar(ear) => self.sign_ear(ear),
            Action::Install(issued) => self.install(*issued),
            Action::Note(text) => self.notes.log(&text),
        }
        Ok(())
    }

    fn publish(&self, child: &NodeId, kind: Kind, bytes: Vec<u8>) {
        let size = bytes.len();
        match self
            .parts
            .publisher
            .publish(child.as_str(), kind.as_str(), Bytes::from(bytes))
        {
            Ok(()) if kind == Kind::Twin => tracing::info!(%child, bytes = size, "twin relayed"),
            Ok(()) => tracing::debug!(%child, kind = kind.as_str(), bytes = size, "to a child"),
            // Said again by the core, or asked for again by the child.
            Err(error) => tracing::debug!(%child, kind = kind.as_str(), bytes = size, %error, "not sent to a child"),
        }
    }

    /// The time to sign with. TLS learns what time was verified, but not what the system's clock says: a clock that
    /// once ran ahead may be set right.
    fn now_s(&self) -> u64 {
        let now = self.clock.now();
        let Some(core) = &self.core else {
            return now.wall_ms / 1000;
        };
        self.parts.floor.raise(core.now_s(Now::default()));
        core.now_s(now)
    }

    /// What was not written was not done either: the core that believes it was is dropped.
    fn lose_core(&mut self, failure: Failure) -> Option<End> {
        let error = match failure {
            Failure::Damaged(error) => return Some(End::Damaged(error.to_string())),
            Failure::Store(error) => error,
        };
        if self.retry_at.elapsed() >= RECOVERED {
            self.retry_pause = RETRY_FIRST;
        }
        let retry_in_s = self.retry_pause.as_secs();
        tracing::error!(%error, retry_in_s, "nothing can be stored: children stay connected and wait");
        self.core = None;
        self.batch = Batch::default();
        self.retry_later();
        let detail = format!("{error}; the gateway takes nothing new until it can write. Free space or check the disk");
        self.parts.config.alarms.retain(|a| a.code != "store");
        self.parts.config.alarms.push(Alarm {
            code: "store".into(),
            detail,
        });
        None
    }

    fn retry_later(&mut self) {
        self.retry_at = Instant::now() + self.retry_pause;
        self.retry_pause = (self.retry_pause * 2).min(RETRY_MAX);
    }

    /// A new core from what is on the disk, told who is there.
    async fn revive(&mut self) {
        let revived = match self.parts.store.load().await {
            Ok(stored) => self.boot(stored).map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = revived {
            tracing::error!(
                error,
                retry_in_s = self.retry_pause.as_secs(),
                "the store cannot be read either"
            );
            return self.retry_later();
        }
        // The parent hears of the alarm even if the store refuses again.
        for hello in self.batch.take_hellos() {
            if let Action::SendUp(message) = hello {
                self.parts.upstream.send(&message, self.now_s());
            }
        }
    }

    fn boot(&mut self, stored: Stored) -> Result<(), cnova_store::ArtifactError> {
        let (whole, partial) = self.parts.cache.inventory()?;
        let now = self.clock.now();
        let mut core = Gateway::boot(self.parts.config.clone(), stored, whole, partial, now);
        self.batch.take(&mut core);
        for event in self.parts.upstream.event().into_iter().chain(self.roll.events()) {
            core.handle(event, now);
            self.batch.take(&mut core);
        }
        self.core = Some(core);
        Ok(())
    }
}

async fn wait_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => pending().await,
    }
}

/// For whoever sent the signal: how far each child is trusted before it is asked anew.
fn say_standings(core: &Gateway, now: Now) {
    for standing in core.children(now) {
        let (child, by) = (standing.child, standing.by);
        let (judged_s, expires_s) = (standing.judged_s, standing.expires_s);
        tracing::info!(%child, status = %standing.status, by, judged_s, expires_s, "a child's standing");
    }
}
