//! The hub: applications, placement, twins, inventory, and the tree below.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use cnova_shared::ids::{Digest, Name, NodeId};
use cnova_shared::limits;
use cnova_shared::time::Now;
use cnova_shared::tree::{Clock, Said, Tree, TreeEvent};
use cnova_shared::twin::{VerifiedTwin, Version};
use cnova_shared::wire::v1::{self, Body, WorkloadState};

use crate::api::{Action, CompileKey, Config, Event, Op, Outcome, RequestId, Stored, StoredApp};
use crate::cndl::{self, RuntimeKind};
use crate::inventory::Inventory;
use crate::placement::{
    CurrentPlacement, LabelsAndResources, NodeResources, NodeRole, NodeView, Placement, Placer, RuntimeView,
};
use crate::policy::{AdmissionContext, AdmittedManifest};
use crate::rollout::{self, ArtifactView, Composed, PlacedApp};
use crate::timeline::{StageRecord, Timeline};

/// An application in force.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) generation: u64,
    pub(crate) placement: Placement,
    pub(crate) problems: BTreeMap<String, String>,
}

/// An application that waits for its compilations.
#[derive(Debug)]
struct Candidate {
    request: RequestId,
    manifest: AdmittedManifest,
    waits_for: BTreeSet<CompileKey>,
    since_ms: u64,
}

/// One hub.
#[derive(Debug)]
pub struct Hub {
    config: Config,
    pub(crate) tree: Tree,
    pub(crate) inventory: Inventory,
    pub(crate) apps: BTreeMap<Name, App>,
    pub(crate) timeline: Timeline,
    deleted: BTreeMap<Name, u64>,
    artifacts: BTreeMap<Digest, u64>,
    compiled: BTreeMap<CompileKey, v1::Artifact>,
    compiling: BTreeSet<CompileKey>,
    failed: BTreeMap<CompileKey, String>,
    candidates: Vec<Candidate>,
    composed: BTreeMap<NodeId, Vec<v1::Workload>>,
    signing: BTreeMap<NodeId, Version>,
    asked: BTreeMap<u64, RequestId>,
    epoch: u64,
    ops: Vec<Op>,
    effects: VecDeque<Action>,
    actions: VecDeque<Action>,
}

impl Hub {
    /// Starts from what the store holds.
    #[must_use]
    pub fn boot(config: Config, stored: Stored, now: Now) -> Self {
        let trust = config.trust.clone();
        let reopen = |bytes: &[u8]| VerifiedTwin::reopen(bytes, &trust);
        let twins = stored.tree.twins.values().filter_map(|b| reopen(b).ok());
        let composed = twins
            .map(|t| (t.twin().node.clone(), t.twin().workloads.clone()))
            .collect();
        let hellos: Vec<Vec<u8>> = stored.tree.descendants.values().map(|(_, h)| h.clone()).collect();
        let mut hub = Self {
            tree: Tree::new(config.node.clone(), stored.tree, reopen),
            inventory: Inventory::new(stored.entries, stored.retired),
            apps: BTreeMap::new(),
            timeline: Timeline::default(),
            deleted: stored.deleted,
            artifacts: served(stored.artifacts, &stored.compiled),
            compiled: stored.compiled,
            compiling: BTreeSet::new(),
            failed: BTreeMap::new(),
            candidates: Vec::new(),
            composed,
            signing: BTreeMap::new(),
            asked: BTreeMap::new(),
            epoch: stored.epoch,
            ops: Vec::new(),
            effects: VecDeque::new(),
            actions: VecDeque::new(),
            config,
        };
        if hub.epoch == 0 {
            hub.set_epoch((now.wall_ms / 1000).max(1));
        }
        for hello in hellos {
            hub.restore_hello(&hello);
        }
        for (name, app) in stored.apps {
            hub.restore_app(name, app);
        }
        hub.reconcile(now);
        hub.settle(now);
        hub
    }

    /// A stored hello was verified when it came and lies in the hub's own store.
    fn restore_hello(&mut self, bytes: &[u8]) {
        use cnova_shared::{certificate, envelope::Untrusted, topics::Kind};
        let Ok(untrusted) = Untrusted::read(bytes) else { return };
        let Some(certificate) = untrusted.x5chain.first().and_then(|c| certificate::read(c).ok()) else {
            return;
        };
        let hello = untrusted
            .verify(Kind::Hello, &certificate.key)
            .and_then(|v| v.decode::<v1::Hello>());
        if let Ok(hello) = hello {
            let node = hello.claims().iss.clone();
            self.inventory.on_hello(&node, hello.into_value(), 0);
        }
    }

    fn restore_app(&mut self, name: Name, app: StoredApp) {
        match cndl::parse(&app.manifest, name.as_str()) {
            Ok(manifest) => {
                let context = AdmissionContext {
                    user: app.user,
                    now_unix_s: app.admitted_s,
                };
                let manifest = AdmittedManifest::restored(manifest, context);
                let placement = LabelsAndResources.place(&manifest, &self.node_views(Some(&name)), &app.placement);
                let problems = BTreeMap::new();
                self.apps.insert(
                    name,
                    App {
                        generation: app.generation,
                        placement,
                        problems,
                    },
                );
            }
            Err(e) => self.note(format!(
                "stored application {name} cannot be read and is left as it runs: {e}"
            )),
        }
    }

    fn set_epoch(&mut self, epoch: u64) {
        self.epoch = epoch;
        self.ops.push(Op::Epoch(epoch));
    }

    /// Takes one event.
    pub fn handle(&mut self, event: Event, now: Now) {
        match event {
            Event::Apply { request, manifest } => self.on_apply(request, *manifest, now),
            Event::Delete { request, name } => self.on_delete(request, &name, now),
            Event::Ask { request, node, op } => self.on_ask(request, node, op),
            Event::Uploaded { digest, size } => {
                if self.artifacts.insert(digest, size).is_none() {
                    self.ops.push(Op::PutArtifact { digest, size });
                }
            }
            Event::Compiled { key, result } => self.on_compiled(key, result, now),
            Event::TwinSigned(bytes) => self.on_signed(&bytes, now),
            Event::ChildConnected(child) => self.tree.child_connected(&child),
            Event::ChildDisconnected { child, reason } => {
                self.tree.child_disconnected(&child);
                self.note(format!("{child} is disconnected: {reason}"));
            }
            Event::FromChild { child, kind, bytes } => {
                let authorities = self.config.trust.authorities();
                let clock = Clock {
                    authorities: &authorities,
                    now_s: now.wall_ms / 1000,
                    mono_ms: now.mono_ms,
                };
                self.tree.on_message(&child, kind, &bytes, &clock);
            }
            Event::Tick => {}
        }
        self.settle(now);
    }

    pub(crate) fn trust(&self) -> &cnova_shared::bundle::TrustBundle {
        &self.config.trust
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Event::Tick`] is due, monotonic milliseconds.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<u64> {
        self.tree.timeout()
    }

    fn refuse(&mut self, request: RequestId, reasons: Vec<String>) {
        self.answer(request, Outcome::Refused { reasons });
    }

    fn answer(&mut self, request: RequestId, outcome: Outcome) {
        self.effects.push_back(Action::Answer { request, outcome });
    }

    fn on_apply(&mut self, request: RequestId, manifest: AdmittedManifest, now: Now) {
        let files = manifest.manifest().unresolved_files();
        if !files.is_empty() {
            let list = files.into_iter().collect::<Vec<_>>().join(", ");
            let why =
                format!("the manifest names files ({list}); upload them and name their digests, as `cnova apply` does");
            return self.refuse(request, vec![why]);
        }
        let unknown: Vec<String> = manifest
            .manifest()
            .digests()
            .into_iter()
            .filter(|d| d.parse().map_or(true, |d: Digest| !self.artifacts.contains_key(&d)))
            .map(|d| format!("artifact {d} was never uploaded"))
            .collect();
        if !unknown.is_empty() {
            return self.refuse(request, unknown);
        }
        let waits_for = self.compilations(&manifest);
        if let Some(why) = waits_for.iter().find_map(|k| self.failed.get(k)) {
            let why = why.clone();
            return self.refuse(request, vec![why]);
        }
        let waits_for: BTreeSet<_> = waits_for
            .into_iter()
            .filter(|k| !self.compiled.contains_key(k))
            .collect();
        let candidate = Candidate {
            request,
            manifest,
            waits_for,
            since_ms: now.wall_ms,
        };
        if candidate.waits_for.is_empty() {
            return self.commit(candidate, now);
        }
        for key in candidate.waits_for.clone() {
            self.compile(key);
        }
        self.candidates.push(candidate);
    }

    fn compile(&mut self, key: CompileKey) {
        if self.compiling.insert(key.clone()) {
            self.effects.push_back(Action::Compile(key));
        }
    }

    /// Everything that must be compiled for a manifest on the targets of all nodes that could run it. Without any such
    /// node it is compiled for one target all the same, so that a file that is not Wasm is refused now and not later.
    fn compilations(&self, manifest: &AdmittedManifest) -> BTreeSet<CompileKey> {
        let name = Name::new(&manifest.application().name).ok();
        let views = self.node_views(name.as_ref());
        let placement = LabelsAndResources.place(manifest, &views, &CurrentPlacement::default());
        let mut keys = BTreeSet::new();
        for def in manifest
            .application()
            .workloads
            .iter()
            .filter(|w| w.runtime == RuntimeKind::Wasm)
        {
            let Some(source) = def.artifact.digest().and_then(|d| d.parse().ok()) else {
                continue;
            };
            let nodes = placement
                .workloads()
                .get(&def.name)
                .map(|p| p.nodes.clone())
                .unwrap_or_default();
            let mut targets: BTreeSet<(String, String)> = BTreeSet::new();
            for record in nodes
                .iter()
                .filter_map(|n| self.inventory.nodes().get(&NodeId::new(n).ok()?))
            {
                let caps = record.hello.as_ref().map(|h| &h.capabilities);
                targets.extend(
                    caps.and_then(rollout::wasm_target)
                        .map(|(t, e)| (t.to_owned(), e.to_owned())),
                );
            }
            if targets.is_empty() {
                targets.insert((DEFAULT_TARGET.0.to_owned(), DEFAULT_TARGET.1.to_owned()));
            }
            keys.extend(
                targets
                    .into_iter()
                    .map(|(target, engine)| CompileKey { source, target, engine }),
            );
        }
        keys
    }

    /// Stores an application whose artifacts are all there, places it and answers.
    fn commit(&mut self, candidate: Candidate, now: Now) {
        let Candidate {
            request,
            manifest,
            since_ms,
            ..
        } = candidate;
        let name = match Name::new(&manifest.application().name) {
            Ok(name) => name,
            Err(e) => return self.refuse(request, vec![e.to_string()]),
        };
        let current = self.apps.get(&name);
        let changed = current.is_none_or(|a| a.placement.manifest().manifest() != manifest.manifest());
        let before = current
            .map(|a| a.generation)
            .or(self.deleted.get(&name).copied())
            .unwrap_or(0);
        let was = current.map(|a| a.placement.to_current()).unwrap_or_default();
        let generation = if changed { before + 1 } else { before };
        let placement = LabelsAndResources.place(&manifest, &self.node_views(Some(&name)), &was);
        let outcome = Outcome::Applied {
            name: name.clone(),
            generation,
            changed,
            placed: placement.to_current().workloads,
            unplaced: unplaced(&placement),
        };
        if changed {
            self.stage(
                &name,
                generation,
                "admitted",
                since_ms,
                format!("by {}", manifest.context().user),
            );
            self.stage(&name, generation, "placed", now.wall_ms, placed_on(&placement));
        }
        self.deleted.remove(&name);
        self.apps.insert(
            name.clone(),
            App {
                generation,
                placement,
                problems: BTreeMap::new(),
            },
        );
        self.persist_app(&name);
        self.answer(request, outcome);
        self.reconcile(now);
    }

    fn persist_app(&mut self, name: &Name) {
        let Some(app) = self.apps.get(name) else { return };
        let manifest = app.placement.manifest();
        let stored = StoredApp {
            generation: app.generation,
            manifest: cndl::canonical_json(manifest.manifest()),
            user: manifest.context().user.clone(),
            admitted_s: manifest.context().now_unix_s,
            placement: app.placement.to_current(),
        };
        self.ops.push(Op::PutApp {
            name: name.clone(),
            app: stored,
        });
    }

    fn stage(&mut self, name: &Name, generation: u64, stage: &str, at_ms: u64, detail: String) {
        self.note(format!(
            "stage={stage} application={name} generation={generation} {detail}"
        ));
        let by = "hub".to_owned();
        let record = StageRecord {
            stage: stage.to_owned(),
            at_ms,
            by,
            node: None,
            detail,
        };
        self.timeline.add(name, generation, record);
    }

    fn on_delete(&mut self, request: RequestId, name: &Name, now: Now) {
        let Some(app) = self.apps.remove(name) else {
            return self.answer(
                request,
                Outcome::NotFound {
                    what: format!("application {name}"),
                },
            );
        };
        self.deleted.insert(name.clone(), app.generation);
        self.ops.push(Op::DeleteApp {
            name: name.clone(),
            generation: app.generation,
        });
        self.answer(request, Outcome::Deleted { name: name.clone() });
        self.reconcile(now);
    }

    fn on_ask(&mut self, request: RequestId, node: NodeId, op: v1::Operation) {
        let Some(via) = self.tree.via(&node).cloned() else {
            return self.answer(
                request,
                Outcome::NotFound {
                    what: format!("node {node}"),
                },
            );
        };
        if !self.tree.is_connected(&via) {
            return self.refuse(
                request,
                vec![format!("{node} cannot be reached: {via} is not connected to the hub")],
            );
        }
        // Request ids are the daemon's and unique while the hub runs; the node repeats them in its reply.
        self.asked.insert(request, request);
        let command = v1::Command {
            v: v1::VERSION,
            id: request,
            op,
        };
        self.effects.push_back(Action::Command {
            child: via,
            node,
            command,
        });
        while self.asked.len() > QUESTIONS_KEPT {
            self.asked.pop_first();
        }
    }

    fn on_compiled(&mut self, key: CompileKey, result: Result<v1::Artifact, String>, now: Now) {
        self.compiling.remove(&key);
        match result {
            Ok(artifact) => {
                self.artifacts.insert(artifact.digest, artifact.size);
                self.ops.push(Op::PutCompiled {
                    key: key.clone(),
                    artifact: artifact.clone(),
                });
                self.compiled.insert(key.clone(), artifact);
            }
            Err(why) => {
                let why = format!("artifact {} cannot be compiled for {}: {why}", key.source, key.target);
                self.note(why.clone());
                self.failed.insert(key.clone(), limits::clip(&why));
            }
        }
        for mut candidate in std::mem::take(&mut self.candidates) {
            if !candidate.waits_for.remove(&key) {
                self.candidates.push(candidate);
            } else if let Some(why) = self.failed.get(&key).cloned() {
                self.refuse(candidate.request, vec![why]);
            } else if candidate.waits_for.is_empty() {
                self.commit(candidate, now);
            } else {
                self.candidates.push(candidate);
            }
        }
        // A failure may be the worker's and not the module's; the next apply tries again.
        self.failed.remove(&key);
        self.reconcile(now);
    }

    fn on_signed(&mut self, bytes: &[u8], now: Now) {
        let twin = match VerifiedTwin::open(bytes, &self.config.trust, now.wall_ms / 1000) {
            Ok(twin) => twin,
            Err(e) => return self.note(format!("the hub's own signer made a twin that nodes would refuse: {e}")),
        };
        let node = twin.twin().node.clone();
        let apps = twin
            .twin()
            .workloads
            .iter()
            .map(|w| (w.id.application.clone(), w.app_generation));
        self.timeline.signed(&node, twin.version(), apps, now.wall_ms);
        self.note(format!("stage=signed node={node} twin={}", twin.version()));
        if self.signing.get(&node) == Some(&twin.version()) {
            self.signing.remove(&node);
        }
        self.tree.put_twin(&twin, now);
    }

    /// What placement may know of the fleet. `apart_from` is the application that is being placed.
    pub(crate) fn node_views(&self, apart_from: Option<&Name>) -> Vec<NodeView> {
        let mut used: BTreeMap<&str, NodeResources> = BTreeMap::new();
        for (_, app) in self.apps.iter().filter(|(n, _)| Some(*n) != apart_from) {
            for def in &app.placement.manifest().application().workloads {
                let Some(placed) = app.placement.workloads().get(&def.name) else {
                    continue;
                };
                for node in &placed.nodes {
                    let u = used.entry(node).or_default();
                    u.memory_bytes += def.resources.memory_bytes.unwrap_or(0);
                    u.cpu_millis += def.resources.cpu_millis;
                }
            }
        }
        let view = |(id, record): (&NodeId, &crate::inventory::NodeRecord)| {
            let hello = record.hello.as_ref()?;
            let caps = &hello.capabilities;
            Some(NodeView {
                id: id.to_string(),
                site: hello.site.to_string(),
                labels: hello.labels.clone(),
                runtimes: caps
                    .runtimes
                    .iter()
                    .map(|r| RuntimeView {
                        name: r.name.clone(),
                        targets: r.targets.clone(),
                    })
                    .collect(),
                capacity: Some(NodeResources {
                    memory_bytes: caps.memory_bytes,
                    cpu_millis: u32::try_from(caps.cpu_millis).unwrap_or(u32::MAX),
                }),
                used: used.get(id.as_str()).copied().unwrap_or_default(),
                seen: true,
                revoked: false,
                role: match hello.role {
                    v1::NodeRole::Agent => NodeRole::Agent,
                    v1::NodeRole::Gateway => NodeRole::Gateway,
                },
            })
        };
        self.inventory.nodes().iter().filter_map(view).collect()
    }

    /// Places everything anew where that changes something, and has the twins that differ signed.
    fn reconcile(&mut self, now: Now) {
        let names: Vec<Name> = self.apps.keys().cloned().collect();
        for name in &names {
            let views = self.node_views(Some(name));
            let Some(app) = self.apps.get_mut(name) else { continue };
            let was = app.placement.to_current();
            let placement = LabelsAndResources.place(app.placement.manifest(), &views, &was);
            let moved = placement.to_current() != was;
            app.placement = placement;
            if moved {
                let (generation, detail) = (app.generation, placed_on(&app.placement));
                self.persist_app(name);
                self.stage(name, generation, "placed", now.wall_ms, detail);
            }
        }
        let agents: Vec<NodeId> = self
            .inventory
            .nodes()
            .iter()
            .filter(|(_, r)| is_agent(r))
            .map(|(n, _)| n.clone())
            .collect();
        let mut problems: BTreeMap<Name, BTreeMap<String, String>> = BTreeMap::new();
        for node in agents {
            let composed = self.compose(&node);
            for key in composed.missing.clone() {
                self.compile(key);
            }
            for (id, why) in composed.problems {
                problems
                    .entry(id.application)
                    .or_default()
                    .insert(format!("{}@{node}", id.name), why);
            }
            if composed.missing.is_empty() {
                self.sign_if_new(node, composed.workloads);
            }
        }
        for (name, app) in &mut self.apps {
            app.problems = problems.remove(name).unwrap_or_default();
        }
    }

    fn compose(&self, node: &NodeId) -> Composed {
        let Some(hello) = self.inventory.nodes().get(node).and_then(|r| r.hello.as_ref()) else {
            return Composed::default();
        };
        let apps: Vec<PlacedApp<'_>> = self
            .apps
            .iter()
            .map(|(name, a)| PlacedApp {
                name,
                generation: a.generation,
                placement: &a.placement,
            })
            .collect();
        let view = ArtifactView {
            uploaded: &self.artifacts,
            compiled: &self.compiled,
        };
        rollout::compose(node.as_str(), &hello.capabilities, &apps, &view)
    }

    fn sign_if_new(&mut self, node: NodeId, workloads: Vec<v1::Workload>) {
        let has = self.tree.reported(&node).unwrap_or_default();
        let desired = self
            .tree
            .desired(&node)
            .max(self.signing.get(&node).copied())
            .unwrap_or_default();
        let same = match self.composed.get(&node) {
            Some(before) => *before == workloads,
            None => workloads.is_empty(),
        };
        // A node that is ahead of this hub (its store was restored from a backup, or lost) is overtaken.
        let behind = has > desired;
        if same && !behind {
            return;
        }
        if behind && has.epoch > self.epoch {
            self.set_epoch(has.epoch + 1);
        }
        let newest = desired.max(has);
        let generation = if newest.epoch == self.epoch {
            newest.generation + 1
        } else {
            1
        };
        let version = Version {
            epoch: self.epoch,
            generation,
        };
        self.signing.insert(node.clone(), version);
        self.composed.insert(node.clone(), workloads.clone());
        let twin = v1::Twin {
            v: v1::VERSION,
            node,
            epoch: version.epoch,
            generation,
            workloads,
        };
        self.effects.push_back(Action::SignTwin(Box::new(twin)));
    }

    fn drain_tree(&mut self, now: Now) {
        while let Some(event) = self.tree.poll_event() {
            match event {
                TreeEvent::Persist(op) => self.ops.push(Op::Tree(op)),
                TreeEvent::Heard { author, said, .. } => self.on_heard(&author, said, now),
                TreeEvent::Ack { child, ack, .. } => self.effects.push_back(Action::Ack { child, ack }),
                TreeEvent::ChunkWanted { child, request } => self.on_chunk_wanted(child, &request),
                TreeEvent::Forward {
                    child,
                    kind,
                    node,
                    first,
                    bytes,
                } => {
                    if let Some(version) = first {
                        self.timeline
                            .add_for_twin(&node, version, "relayed", "hub", now.wall_ms);
                    }
                    self.effects.push_back(Action::Forward { child, kind, bytes });
                }
                TreeEvent::Note(text) => self.note(text),
            }
        }
    }

    fn on_heard(&mut self, author: &NodeId, said: Said, now: Now) {
        match said {
            Said::Hello(hello) => {
                let has = Version {
                    epoch: hello.epoch,
                    generation: hello.generation,
                };
                let ahead = has > self.tree.desired(author).unwrap_or_default();
                if self.inventory.on_hello(author, hello, now.wall_ms) || ahead {
                    self.reconcile(now);
                }
            }
            Said::Report(report) => match self.inventory.on_report(author, &report, now.wall_ms, &mut self.ops) {
                Some(fresh) => fresh.iter().for_each(|entry| self.on_entry(author, entry, now)),
                None => self.tree.ask_again(author, now.mono_ms),
            },
            Said::Reply(reply) => {
                if let Some(request) = self.asked.remove(&reply.id) {
                    self.answer(
                        request,
                        Outcome::Replied {
                            ok: reply.ok,
                            text: reply.text,
                        },
                    );
                }
            }
        }
    }

    fn on_entry(&mut self, author: &NodeId, entry: &v1::Entry, now: Now) {
        match &entry.body {
            Body::Relayed {
                node,
                epoch,
                generation,
            } => {
                let version = Version {
                    epoch: *epoch,
                    generation: *generation,
                };
                self.timeline
                    .add_for_twin(node, version, "relayed", author.as_str(), entry.at_ms);
            }
            Body::Twin {
                epoch,
                generation,
                verified_ms,
                committed_ms,
                ..
            } => {
                let version = Version {
                    epoch: *epoch,
                    generation: *generation,
                };
                self.timeline
                    .add_for_twin(author, version, "verified", author.as_str(), *verified_ms);
                if *committed_ms > 0 {
                    self.timeline
                        .add_for_twin(author, version, "committed", author.as_str(), *committed_ms);
                }
            }
            Body::Workload(w) if w.state == WorkloadState::Running && w.app_generation > 0 => {
                let (name, detail) = (&w.id.application, w.id.to_string());
                let record = |stage: &str, at_ms, by: &str| StageRecord {
                    stage: stage.to_owned(),
                    at_ms,
                    by: by.to_owned(),
                    node: Some(author.clone()),
                    detail: detail.clone(),
                };
                self.timeline
                    .add(name, w.app_generation, record("running", entry.at_ms, author.as_str()));
                self.timeline
                    .add(name, w.app_generation, record("reported", now.wall_ms, "hub"));
            }
            Body::Refused { code, detail, .. } => self.note(format!("{author} refused a twin: {code}: {detail}")),
            Body::Alarm(a) => self.note(format!("alarm of {author}: {}: {}", a.code, a.detail)),
            _ => {}
        }
    }

    fn on_chunk_wanted(&mut self, child: NodeId, r: &v1::ChunkRequest) {
        let size = self.artifacts.get(&r.digest).copied().unwrap_or(0);
        if r.offset < size {
            let length = r.length.min(size - r.offset);
            self.effects.push_back(Action::ServeChunk {
                child,
                digest: r.digest,
                offset: r.offset,
                length,
            });
            return;
        }
        let missing = Some(if size == 0 {
            "the hub does not have it".to_owned()
        } else {
            format!("it has {size} bytes, byte {} was asked for", r.offset)
        });
        let chunk = v1::Chunk {
            v: v1::VERSION,
            digest: r.digest,
            offset: r.offset,
            total: size,
            data: Vec::new(),
            missing,
        };
        self.effects.push_back(Action::RefuseChunk { child, chunk });
    }

    /// Puts what is to be kept before what is to be done.
    fn settle(&mut self, now: Now) {
        self.tree.poll_twins(now);
        self.drain_tree(now);
        if !self.ops.is_empty() {
            self.actions.push_back(Action::Persist(std::mem::take(&mut self.ops)));
        }
        self.actions.append(&mut self.effects);
    }

    fn note(&mut self, text: String) {
        self.effects.push_back(Action::Note(text));
    }
}

/// Questions to nodes whose answers are waited for.
const QUESTIONS_KEPT: usize = 1024;
/// What an application is compiled for when no node could run it yet: target and engine.
const DEFAULT_TARGET: (&str, &str) = ("x86_64-unknown-linux-gnu", "cnova-1-wasmtime-48.0.8");

/// Nodes fetch what was uploaded and what was compiled from it.
fn served(mut uploaded: BTreeMap<Digest, u64>, compiled: &BTreeMap<CompileKey, v1::Artifact>) -> BTreeMap<Digest, u64> {
    uploaded.extend(compiled.values().map(|a| (a.digest, a.size)));
    uploaded
}

fn is_agent(record: &crate::inventory::NodeRecord) -> bool {
    record.hello.as_ref().is_some_and(|h| h.role == v1::NodeRole::Agent)
}

fn unplaced(placement: &Placement) -> BTreeMap<String, String> {
    let short = placement
        .workloads()
        .iter()
        .filter_map(|(n, w)| Some((n.clone(), w.summary.clone()?)));
    short.collect()
}

fn placed_on(placement: &Placement) -> String {
    let nodes: BTreeSet<&String> = placement.workloads().values().flat_map(|w| &w.nodes).collect();
    let list: Vec<&str> = nodes.iter().take(10).map(|n| n.as_str()).collect();
    format!("on {} node(s): {}", nodes.len(), list.join(", "))
}
