//! The only place that sees both sides: waits for what happens, lets the core decide, performs what it decided.

mod certificates;
mod look;
mod outage;
mod proof;
mod system;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cnova_agent_core::ledger::{Op, Stored};
use cnova_agent_core::standing::Counter;
use cnova_agent_core::{Action, Agent, Config, Event, Message, Stage};
use cnova_link::{Authorities, FloorClock, Identity, Uplink, UplinkEvent, Witness};
use cnova_root_of_trust::LedgerKey;
use cnova_shared::boot_policy::OwnBoots;
use cnova_shared::ids::{Digest, HUB_AUDIENCE, InvalidName, NodeId, WorkloadId};
use cnova_shared::limits;
use cnova_shared::time::Now;
use cnova_shared::topics::Kind;
use cnova_shared::wire::v1::{self, Alarm};
use cnova_store::{Artifacts, CallError};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};

use crate::answers;
use crate::box_key::Chest;
use crate::instance::InstanceId;
use crate::key_keeper::{KeyKeeper, Tried};
use crate::ledger::Ledger;
use crate::observe;
use crate::run::{StartError, wall_ms};
use crate::status::Question;
use crate::supervisor::{Said, Supervisor};
use crate::system::Slots;

/// After a failed commit the core is made anew: after this pause, which doubles.
const OUTAGE_FIRST: Duration = Duration::from_secs(1);
const DONE_QUEUE: usize = 64;
/// The core is not asked more often than this for what time brings.
const TICK_MIN: Duration = Duration::from_millis(1);

/// What the loop works with.
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) identity: Arc<Identity>,
    pub(crate) certificate: PathBuf,
    pub(crate) clock: Arc<FloorClock>,
    pub(crate) authorities: Arc<Authorities>,
    pub(crate) ledger: Ledger,
    pub(crate) ledger_path: PathBuf,
    pub(crate) run_dir: PathBuf,
    pub(crate) artifacts: Arc<Artifacts>,
    pub(crate) supervisor: Supervisor,
    pub(crate) uplink: Uplink,
    /// With a TPM.
    pub(crate) witness: Option<Arc<Witness>>,
    /// The key under which the ledger keeps what is secret, while it may be used.
    pub(crate) ledger_key: Option<Arc<LedgerKey>>,
    /// The key for secrets, once it is open.
    pub(crate) chest: Arc<Chest>,
    /// What opens the ledger key.
    pub(crate) keeper: Option<Arc<KeyKeeper>>,
    /// The slots of the machine's system, where it has two.
    pub(crate) slots: Option<Arc<Slots>>,
}

/// What it waits for.
pub(crate) struct Inputs {
    pub(crate) uplink: mpsc::Receiver<UplinkEvent>,
    /// Renewal times of certificates that an enrolment brought.
    pub(crate) installed: mpsc::Receiver<u64>,
    pub(crate) said: mpsc::Receiver<Said>,
    pub(crate) sensed: mpsc::Receiver<Event>,
    pub(crate) questions: mpsc::Receiver<Question>,
    pub(crate) signals: Signals,
}

/// The signals that end the agent.
pub(crate) struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    pub(crate) fn new() -> Result<Self, std::io::Error> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
        })
    }

    async fn recv(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}

/// What was done beside the loop.
enum Done {
    /// For the core.
    Event(Event),
    /// The next certificate is on disk and in use.
    Installed(u64),
    Reply(v1::Reply),
    /// Evidence, signed.
    Evidence(Vec<u8>),
    /// The TPM's counter has this value now, or it could not be increased.
    Counted(Result<u64, String>),
    /// The TPM's counter, which was not known, is now; or why it still is not.
    Counter(Result<Counter, String>),
    /// Launches that waited were logged, or why they wait on.
    Measured(Option<String>),
    /// The ledger key was tried under these boots.
    OwnBoot(OwnBoots, Tried),
    /// Artifacts that are damaged, and were removed, or are missing.
    Damaged(Vec<Digest>),
}

/// Why a core is given up.
enum End {
    /// The agent is to end.
    Stop,
    /// The uplink's task is gone.
    LinkGone,
    /// The store failed; what it holds is the truth, so the core is made anew from it.
    Store(CallError),
    /// What is on the machine is not what the core believes.
    Again,
}

/// Something to hand to the core.
enum Input {
    Event(Event),
    Said(Said),
    Done(Done),
    Asked(Question),
    End(End),
}

/// Artifacts that are whole, those in part with their length, and the instances.
type Seen = (BTreeSet<Digest>, BTreeMap<Digest, u64>, observe::Found);

pub(crate) struct EventLoop {
    parts: Parts,
    hub: NodeId,
    started: Instant,
    connected: bool,
    pause: Duration,
    done: mpsc::Sender<Done>,
    done_receiver: mpsc::Receiver<Done>,
}

impl EventLoop {
    pub(crate) fn new(parts: Parts, hub: NodeId) -> Self {
        let (done, done_receiver) = mpsc::channel(DONE_QUEUE);
        let started = Instant::now();
        Self {
            parts,
            hub,
            started,
            connected: false,
            pause: OUTAGE_FIRST,
            done,
            done_receiver,
        }
    }

    /// Runs until a signal comes.
    pub(crate) async fn run(mut self, mut inputs: Inputs) -> Result<(), StartError> {
        self.attend_tpm();
        let result = loop {
            let end = match self.make_core().await {
                Ok(core) => self.serve(core, &mut inputs).await,
                Err(error) => End::Store(error),
            };
            match end {
                End::Stop => break Ok(()),
                End::LinkGone => break Err(StartError::LinkGone),
                End::Again => {}
                End::Store(error) => {
                    if let Some(result) = self.outage(&error, &mut inputs).await {
                        break result;
                    }
                }
            }
        };
        let counters = self.parts.ledger.counters();
        let (commits, bytes) = (counters.commits(), counters.bytes());
        let artifact_bytes = self.parts.artifacts.bytes_written();
        tracing::info!(commits, ledger_bytes = bytes, artifact_bytes, "ends; workloads run on");
        self.parts.uplink.shutdown().await;
        result
    }

    fn now(&self) -> Now {
        let mono_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        Now {
            mono_ms,
            wall_ms: wall_ms(),
        }
    }

    async fn open_chest(&mut self) {
        let Parts {
            chest,
            ledger,
            ledger_key,
            config,
            ..
        } = &mut self.parts;
        config.box_key = chest.open(ledger, ledger_key.as_deref(), &config.node).await;
    }

    /// The ledger's key may have opened: with it, the one for secrets does.
    async fn on_ledger_key(&mut self) -> Option<Event> {
        if self.parts.config.box_key.is_ok() {
            return None;
        }
        self.open_chest().await;
        self.parts.config.box_key.clone().ok().map(Event::BoxKey)
    }

    /// From what the store holds and what is found on the machine.
    async fn make_core(&mut self) -> Result<Agent, CallError> {
        self.parts.supervisor.settle().await;
        let stored = self.parts.ledger.load().await?;
        // Tried again with each core: the ledger may not have been writable before, or its key not open.
        self.open_chest().await;
        let (whole, partial, found) = self.look(&stored).await?;
        for alive in found.alive {
            self.parts.supervisor.adopt(alive);
        }
        let supervisor = self.parts.supervisor.clone();
        let _ = spawn_blocking(move || supervisor.sweep()).await;
        let mut core = Agent::boot(
            self.parts.config.clone(),
            stored,
            whole,
            partial,
            found.observed,
            self.now(),
        );
        tracing::info!(node = %core.node(), twin = %core.version(), workloads = core.workloads().len(), "agent is up");
        if let Some(why) = self.parts.supervisor.unmeasured() {
            core.handle(Event::Unmeasured(Some(why)), self.now());
        }
        if self.connected {
            core.handle(Event::Connected, self.now());
        }
        Ok(core)
    }

    /// Which artifacts are here, whole and in part, and which instances run.
    async fn look(&self, stored: &Stored) -> Result<Seen, CallError> {
        let (artifacts, run_dir) = (self.parts.artifacts.clone(), self.parts.run_dir.clone());
        let rows = stored.instances.clone();
        let seen = spawn_blocking(move || {
            let (whole, partial) = artifacts.scan().unwrap_or_else(|error| {
                tracing::error!(%error, "cannot see which artifacts are here; they are fetched again");
                Default::default()
            });
            let found = observe::scan(&run_dir, &rows).unwrap_or_else(|error| {
                tracing::error!(run_dir = %run_dir.display(), %error, "cannot see which instances run");
                observe::Found::default()
            });
            (whole, partial, found)
        });
        seen.await.map_err(|_| CallError::Gone)
    }

    async fn serve(&mut self, mut core: Agent, inputs: &mut Inputs) -> End {
        loop {
            if let Err(error) = self.perform_all(&mut core).await {
                return End::Store(error);
            }
            let event = match self.next_input(core.poll_timeout(), inputs).await {
                Input::End(end) => return end,
                Input::Event(event) => Some(event),
                Input::Said(Said::Event { id, event }) => Some(Event::Runtime {
                    id: id.workload,
                    attempt: id.attempt,
                    event,
                }),
                Input::Said(Said::Measured(why)) => Some(Event::Unmeasured(why)),
                Input::Said(Said::Suspect { digests }) => {
                    self.look_at(digests);
                    None
                }
                Input::Asked(question) => {
                    // Who asked may have gone.
                    let _ = question.send(core.status());
                    None
                }
                Input::Done(Done::Event(event)) => Some(event),
                Input::Done(Done::Installed(renew_s)) => Some(self.on_installed(renew_s)),
                Input::Done(Done::Reply(reply)) => {
                    self.send(&Message::Reply(reply), core.now_s(self.now()));
                    None
                }
                Input::Done(Done::Evidence(bytes)) => {
                    if let Err(error) = self.parts.uplink.send(Kind::Evidence, bytes) {
                        tracing::debug!(%error, "evidence was not sent; the verifier asks again");
                    }
                    None
                }
                Input::Done(Done::Counted(result)) => Some(self.on_counted(result)),
                Input::Done(Done::Counter(found)) => Some(self.on_counter(found)),
                Input::Done(Done::Measured(why)) => {
                    // It comes back as what the supervisor says, if it is news.
                    let supervisor = self.parts.supervisor.clone();
                    tokio::spawn(async move { supervisor.measured(why).await });
                    None
                }
                Input::Done(Done::OwnBoot(boots, tried)) => {
                    let event = self.on_own_boot(boots, tried);
                    core.handle(event, self.now());
                    self.on_ledger_key().await
                }
                Input::Done(Done::Damaged(digests)) => {
                    self.raise_damaged(&digests);
                    return End::Again;
                }
            };
            if let Some(event) = event {
                let now = self.now();
                core.handle(event, now);
                // With a wall clock of zero only the floor is left: the newest time that was verified.
                self.parts.clock.raise(core.now_s(Now { wall_ms: 0, ..now }));
            }
        }
    }

    async fn next_input(&mut self, timeout: Option<u64>, inputs: &mut Inputs) -> Input {
        let earliest = Instant::now() + TICK_MIN;
        let due = timeout.map(|ms| (self.started + Duration::from_millis(ms)).max(earliest));
        let tick = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = inputs.uplink.recv() => match event {
                Some(event) => Input::Event(self.on_uplink(event)),
                None => Input::End(End::LinkGone),
            },
            Some(renew_s) = inputs.installed.recv() => {
                self.parts.uplink.try_now();
                Input::Event(self.on_installed(renew_s))
            }
            Some(said) = inputs.said.recv() => Input::Said(said),
            Some(event) = inputs.sensed.recv() => Input::Event(self.on_sensed(event)),
            Some(done) = self.done_receiver.recv() => Input::Done(done),
            Some(question) = inputs.questions.recv() => Input::Asked(question),
            () = tick => Input::Event(Event::Tick),
            name = inputs.signals.recv() => {
                tracing::info!(signal = name, "told to end");
                Input::End(End::Stop)
            }
        }
    }

    fn on_uplink(&mut self, event: UplinkEvent) -> Event {
        match event {
            UplinkEvent::Connected => {
                self.connected = true;
                Event::Connected
            }
            UplinkEvent::Disconnected { .. } => {
                self.connected = false;
                Event::Disconnected
            }
            UplinkEvent::Message { kind, bytes } => Event::Message { kind, bytes },
        }
    }

    /// Kept as well, for a core that is made anew.
    fn on_sensed(&mut self, event: Event) -> Event {
        match &event {
            Event::Power { level, why } => self.parts.config.power = (*level, why.clone()),
            Event::Inventory { accelerators, devices } => {
                let have = &mut self.parts.config.capabilities;
                have.accelerators.clone_from(accelerators);
                have.devices.clone_from(devices);
            }
            _ => {}
        }
        event
    }

    /// Performs everything that the core has decided, in order.
    async fn perform_all(&mut self, core: &mut Agent) -> Result<(), CallError> {
        while let Some(action) = core.poll_action() {
            match action {
                Action::Persist(ops) => self.persist(ops, core).await?,
                Action::Send(message) => self.send(&message, core.now_s(self.now())),
                Action::AppendChunk {
                    digest,
                    offset,
                    data,
                    complete,
                } => {
                    if let Some(event) = self.append(digest, offset, data, complete).await {
                        core.handle(event, self.now());
                    }
                }
                Action::CheckProvenance(check) => {
                    let trust = core.trust().bundle().clone();
                    self.check_provenance(*check, trust, core.now_s(self.now()));
                }
                Action::Start(launch) => self.parts.supervisor.start(launch),
                Action::Stop { id, attempt, grace_ms } => {
                    self.parts
                        .supervisor
                        .stop(InstanceId { workload: id, attempt }, grace_ms);
                }
                Action::Answer { id, op, attempt } => self.answer(id, op, attempt),
                Action::CountUp => self.count_up(),
                Action::OpenLedgerKey(boots) => self.open_ledger_key(boots),
                Action::Attest { verifier, challenge } => {
                    self.attest(verifier, challenge, core.now_s(self.now()));
                }
                Action::Install(issued) => self.install(*issued),
                Action::TrustChanged(view) => {
                    self.parts.clock.raise(view.issued_at);
                    if let Err(error) = self.parts.authorities.replace(&view.authorities) {
                        tracing::error!(%error, "the parent is judged by the authorities of before");
                    }
                }
                Action::KeepArtifacts(wanted) => self.keep(wanted).await,
                Action::System(action) => {
                    if let Some(event) = self.change_system(action).await {
                        core.handle(Event::System(event), self.now());
                    }
                }
                Action::Stage(stage) => log_stage(&stage),
            }
        }
        Ok(())
    }

    async fn persist(&mut self, ops: Vec<Op>, core: &mut Agent) -> Result<(), CallError> {
        let has_twin = ops.iter().any(|op| matches!(op, Op::PutTwin(_)));
        let gone: Vec<WorkloadId> = ops
            .iter()
            .filter_map(|op| match op {
                Op::DeleteInstance(id) => Some(id.clone()),
                _ => None,
            })
            .collect();
        self.parts.ledger.persist(ops).await?;
        self.pause = OUTAGE_FIRST;
        if has_twin {
            core.handle(Event::TwinCommitted, self.now());
        }
        if !gone.is_empty() {
            let supervisor = self.parts.supervisor.clone();
            // Waited for: the next action may start the same workload anew, in a folder of the same name.
            let _ = spawn_blocking(move || gone.iter().for_each(|id| supervisor.forget(id))).await;
        }
        Ok(())
    }

    /// Signs and sends; what cannot be sent is dropped, because the core says it again.
    fn send(&self, message: &Message, now_s: u64) {
        let me = &self.parts.identity;
        let parent = &self.parts.config.parent;
        let (kind, sealed) = match message {
            Message::Hello(hello) => (Kind::Hello, me.seal(Kind::Hello, &self.hub, now_s, None, hello, true)),
            Message::Report(report) => (
                Kind::Report,
                me.seal(Kind::Report, &self.hub, now_s, None, report, false),
            ),
            Message::Enrol(enrol) => (Kind::Enrol, me.seal(Kind::Enrol, &self.hub, now_s, None, enrol, false)),
            Message::Reply(reply) => (Kind::Reply, me.seal(Kind::Reply, &self.hub, now_s, None, reply, false)),
            Message::ChunkRequest(request) => (
                Kind::ChunkRequest,
                me.seal(Kind::ChunkRequest, parent, now_s, None, request, false),
            ),
        };
        match sealed {
            Ok(bytes) => {
                if let Err(error) = self.parts.uplink.send(kind, bytes) {
                    tracing::debug!(kind = kind.as_str(), %error, "not sent");
                }
            }
            Err(error) => tracing::error!(kind = kind.as_str(), %error, "not signed"),
        }
    }

    /// Appends, and checks a complete artifact beside the loop; an event when it failed at once.
    async fn append(&self, digest: Digest, offset: u64, data: Vec<u8>, complete: bool) -> Option<Event> {
        let artifacts = self.parts.artifacts.clone();
        let appended = spawn_blocking(move || artifacts.append(&digest, offset, &data)).await;
        let problem = match appended {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(detail) = problem {
            return Some(Event::ArtifactFailed { digest, detail });
        }
        if complete {
            let artifacts = self.parts.artifacts.clone();
            self.beside(move || {
                Some(Done::Event(match artifacts.finish(&digest) {
                    Ok(()) => Event::ArtifactStored(digest),
                    Err(error) => Event::ArtifactFailed {
                        digest,
                        detail: error.to_string(),
                    },
                }))
            });
        }
        None
    }

    /// Does what blocks beside the loop. It is a task that waits for room to say so, not one of the few threads: the
    /// loop itself waits for those.
    fn beside(&self, work: impl FnOnce() -> Option<Done> + Send + 'static) {
        let done = self.done.clone();
        tokio::spawn(async move {
            if let Ok(Some(result)) = spawn_blocking(work).await {
                let _ = done.send(result).await;
            }
        });
    }

    fn answer(&self, id: u64, op: v1::Operation, attempt: Option<u32>) {
        let about = match &op {
            v1::Operation::Logs { workload, .. } | v1::Operation::Metrics { workload } => Some(workload.clone()),
            v1::Operation::Release { .. } | v1::Operation::Unknown => None,
        };
        let instance = about
            .zip(attempt)
            .map(|(workload, attempt)| InstanceId { workload, attempt });
        let supervisor = self.parts.supervisor.clone();
        self.beside(move || {
            let answer = answers::answer(&supervisor, instance.as_ref(), &op);
            let ok = answer.is_ok();
            let text = limits::clip_to(&answer.unwrap_or_else(|why| why), limits::LOG_REPLY_BYTES);
            Some(Done::Reply(v1::Reply {
                v: v1::VERSION,
                id,
                ok,
                text,
            }))
        });
    }

    async fn keep(&self, wanted: Vec<Digest>) {
        let artifacts = self.parts.artifacts.clone();
        if let Ok(Err(error)) = spawn_blocking(move || artifacts.keep(&wanted)).await {
            tracing::warn!(%error, "an artifact that is not needed any more stays");
        }
    }

    fn set_alarm(&mut self, alarm: Alarm) {
        let alarms = &mut self.parts.config.alarms;
        alarms.retain(|a| a.code != alarm.code);
        alarms.push(alarm);
    }
}

fn log_stage(stage: &Stage) {
    match stage {
        Stage::Accepted(version) => tracing::info!(stage = "accepted", twin = %version, "twin"),
        Stage::Refused(why) => tracing::warn!(stage = "refused", why, "twin"),
        Stage::Workload(id, state, why) => {
            let state = format!("{state:?}").to_lowercase();
            tracing::info!(stage = "workload", workload = %id, state, why, "workload");
        }
        Stage::Welcomed => tracing::info!(stage = "welcomed", "parent"),
        Stage::Note(text) => tracing::info!(stage = "note", "{text}"),
    }
}

/// The audience of what goes to the root of the tree.
pub(crate) fn hub_audience() -> Result<NodeId, InvalidName> {
    NodeId::new(HUB_AUDIENCE)
}
