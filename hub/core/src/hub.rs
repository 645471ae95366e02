//! The hub: applications, placement, twins, inventory, and the tree below.

mod applications;
mod artifacts;
mod attestation;
mod boots;
mod certificates;
mod children;
mod provenance;
mod secrets;
mod systems;
mod trust;
mod twins;

pub use provenance::{ProvenanceFact, ProvenanceFacts};

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use cnova_attestation::appraiser::Appraiser;
use cnova_attestation::reference::References;
use cnova_shared::ids::{Digest, Name, NodeId};
use cnova_shared::keys::KeyId;
use cnova_shared::limits;
use cnova_shared::time::Now;
use cnova_shared::topics::Kind;
use cnova_shared::tree::{Clock, Said, Tree, TreeEvent};
use cnova_shared::trust::TrustState;
use cnova_shared::twin::{VerifiedTwin, Version};
use cnova_shared::wire::v1::{self, Body, WorkloadState};

use crate::api::{Action, CompileKey, Config, Event, InspectKey, Inspection, Outcome, RequestId};
use crate::cndl::{self, RuntimeKind};
use crate::enrol::Desk;
use crate::inventory::Inventory;
use crate::placement::{
    CurrentPlacement, LabelsAndResources, NodeResources, NodeRole, NodeView, Placement, Placer, RuntimeView,
    required_accelerators,
};
use crate::policy::{AdmissionContext, AdmittedManifest};
use crate::rollout::{self, ArtifactView, Composed, PlacedApp};
use crate::secrets::{SealKey, StoredSecret};
use crate::stored::{Op, Stored, StoredApp, StoredProvenance};
use crate::systems::BundleFacts;
use crate::timeline::{StageRecord, Timeline};

/// An application in force.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) generation: u64,
    pub(crate) placement: Placement,
    pub(crate) problems: BTreeMap<String, String>,
}

/// An application that waits until its artifacts are compiled and looked into.
#[derive(Debug)]
struct Candidate {
    request: RequestId,
    manifest: AdmittedManifest,
    /// With the workload that each is for.
    compilations: BTreeMap<CompileKey, String>,
    inspections: BTreeMap<InspectKey, String>,
    since_ms: u64,
}

/// What a node's newest twin says, beside its version.
#[derive(Debug, Default, PartialEq)]
struct Made {
    workloads: Vec<v1::Workload>,
    secrets: Vec<v1::SealedSecret>,
    system: Option<Box<v1::System>>,
}

/// One hub.
#[derive(Debug)]
pub struct Hub {
    config: Config,
    pub(crate) trust: TrustState,
    pub(crate) trust_since_ms: u64,
    pub(crate) signer: Option<KeyId>,
    /// The keys with which the hub approves boots, the newest document that it asked to be signed, and why what the
    /// references say cannot be approved.
    approvers: BTreeSet<KeyId>,
    boots_version: u64,
    unapproved: Vec<String>,
    /// Requests that wait until the list that they change is signed, and what they are told then.
    revoking: VecDeque<(RequestId, String)>,
    /// When delegations are looked at again, monotonic milliseconds.
    delegations_at: Option<u64>,
    /// The wall clock at the last event, milliseconds since 1970.
    pub(crate) wall_ms: u64,
    pub(crate) tree: Tree,
    pub(crate) inventory: Inventory,
    pub(crate) apps: BTreeMap<Name, App>,
    pub(crate) timeline: Timeline,
    deleted: BTreeMap<Name, u64>,
    artifacts: BTreeMap<Digest, u64>,
    compiled: BTreeMap<CompileKey, v1::Artifact>,
    provenance: BTreeMap<Digest, Vec<StoredProvenance>>,
    compiling: BTreeSet<CompileKey>,
    failed: BTreeMap<CompileKey, String>,
    inspected: BTreeMap<InspectKey, Inspection>,
    inspecting: BTreeSet<InspectKey>,
    candidates: Vec<Candidate>,
    composed: BTreeMap<NodeId, Made>,
    systems: BTreeMap<Name, systems::SystemInForce>,
    system_counts: BTreeMap<Name, systems::Count>,
    /// What is in bundles, or what is wrong with them; those that are looked into, and who waits for that.
    bundles: BTreeMap<Digest, Result<BundleFacts, String>>,
    looking_into: BTreeSet<Digest>,
    waiting_systems: Vec<(RequestId, Digest, crate::policy::AdmittedSystem)>,
    secrets: BTreeMap<Name, StoredSecret>,
    /// The last version of secrets that are no more, so that a later one of the name goes on counting.
    removed_secrets: BTreeMap<Name, u64>,
    /// Encrypted, and in no twin yet.
    sealed: BTreeMap<NodeId, Vec<v1::SealedSecret>>,
    sealing: BTreeSet<SealKey>,
    seal_failed: BTreeMap<(Name, u64), String>,
    signing: BTreeMap<NodeId, Version>,
    asked: BTreeMap<u64, RequestId>,
    pub(crate) appraiser: Appraiser,
    references: References,
    ears: BTreeMap<NodeId, Vec<u8>>,
    /// How far nodes with a TPM were trusted at the last look.
    standings: BTreeMap<NodeId, &'static str>,
    look_at_ms: u64,
    desk: Desk,
    epoch: u64,
    ops: Vec<Op>,
    effects: VecDeque<Action>,
    actions: VecDeque<Action>,
}

impl Hub {
    /// Starts from what the store holds.
    #[must_use]
    #[allow(clippy::too_many_lines, reason = "one field after the other")]
    pub fn boot(config: Config, stored: Stored, now: Now) -> Self {
        let held = stored.trust.clone();
        let (trust, faults) = TrustState::restore_of_hub(config.trust.clone(), stored.trust);
        let twins = stored.tree.twins.values().filter_map(|b| trust.reopen_twin(b).ok());
        let composed = twins
            .map(|t| {
                let twin = t.twin();
                let made = Made {
                    workloads: twin.workloads.clone(),
                    secrets: twin.secrets.clone(),
                    system: twin.system.clone(),
                };
                (twin.node.clone(), made)
            })
            .collect();
        let hellos: Vec<Vec<u8>> = stored.tree.descendants.values().map(|(_, h)| h.clone()).collect();
        let mut hub = Self {
            tree: Tree::new(config.node.clone(), stored.tree, &trust),
            trust,
            trust_since_ms: stored.trust_since_ms,
            signer: None,
            approvers: BTreeSet::new(),
            boots_version: 0,
            unapproved: Vec::new(),
            revoking: VecDeque::new(),
            delegations_at: None,
            wall_ms: now.wall_ms,
            inventory: Inventory::new(stored.entries, stored.retired),
            apps: BTreeMap::new(),
            timeline: Timeline::default(),
            deleted: stored.deleted,
            artifacts: served(stored.artifacts, &stored.compiled),
            compiled: stored.compiled,
            provenance: stored.provenance,
            compiling: BTreeSet::new(),
            failed: BTreeMap::new(),
            inspected: BTreeMap::new(),
            inspecting: BTreeSet::new(),
            candidates: Vec::new(),
            composed,
            systems: BTreeMap::new(),
            system_counts: BTreeMap::new(),
            bundles: BTreeMap::new(),
            looking_into: BTreeSet::new(),
            waiting_systems: Vec::new(),
            secrets: stored.secrets,
            removed_secrets: stored.removed_secrets,
            sealed: BTreeMap::new(),
            sealing: BTreeSet::new(),
            seal_failed: BTreeMap::new(),
            signing: BTreeMap::new(),
            asked: BTreeMap::new(),
            appraiser: Appraiser::new(
                config.appraisal.rhythm,
                config.appraisal.launch_pcr,
                config.appraisal.seed,
                stored.verdicts,
            ),
            references: stored.references,
            ears: stored.ears,
            standings: BTreeMap::new(),
            look_at_ms: now.mono_ms,
            desk: Desk::new(config.enrolment.clone(), stored.enrolment),
            epoch: stored.epoch,
            ops: Vec::new(),
            effects: VecDeque::new(),
            actions: VecDeque::new(),
            config,
        };
        hub.begin_trust(&held, &faults, now);
        if hub.epoch == 0 {
            hub.set_epoch((now.wall_ms / 1000).max(1));
        }
        for hello in hellos {
            hub.restore_hello(&hello);
        }
        let known: Vec<NodeId> = hub.tree.descendants().cloned().collect();
        for node in known {
            if let Some(known) = hub.known(&node) {
                hub.appraiser.greet(&node, &known, now);
            }
        }
        for (name, app) in stored.apps {
            hub.restore_app(name, app);
        }
        for (name, system) in stored.systems {
            hub.restore_system(&name, system);
        }
        hub.reconcile(now);
        hub.settle(now);
        hub
    }

    /// A stored hello was verified when it came and lies in the hub's own store.
    fn restore_hello(&mut self, bytes: &[u8]) {
        use cnova_shared::{certificate, envelope::Untrusted};
        let Ok(untrusted) = Untrusted::read(bytes) else { return };
        let Some(certificate) = untrusted.x5chain.first().and_then(|c| certificate::read(c).ok()) else {
            return;
        };
        let Ok(key) = untrusted.speaker(&certificate) else {
            return;
        };
        let hello = untrusted
            .verify(Kind::Hello, &key)
            .and_then(|v| v.decode::<v1::Hello>());
        if let Ok(hello) = hello {
            let node = hello.claims().iss.clone();
            self.inventory.on_hello(&node, hello.into_value(), 0);
        }
    }

    fn restore_app(&mut self, name: Name, app: StoredApp) {
        match cndl::restore(&app.manifest, name.as_str()) {
            Ok(manifest) => {
                let context = AdmissionContext {
                    user: app.user,
                    now_unix_s: app.admitted_s,
                };
                let manifest = AdmittedManifest::restored(manifest, context);
                // What its images consist of is not in the store: it is in the images.
                for key in applications::inspections(manifest.application()).into_keys() {
                    self.inspect(key);
                }
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
        self.wall_ms = now.wall_ms;
        match event {
            Event::Apply { request, manifest } => self.on_apply(request, *manifest, now),
            Event::Delete { request, name } => self.on_delete(request, &name, now),
            Event::ApplySystem { request, manifest } => self.on_apply_system(request, *manifest, now),
            Event::DeleteSystem { request, name } => self.on_delete_system(request, &name, now),
            Event::BundleInspected { bundle, result } => self.on_bundle_inspected(bundle, result.map(|f| *f), now),
            Event::Ask { request, node, op } => self.on_ask(request, node, op),
            Event::Attest { request, change } => self.on_attest_change(request, change, now),
            Event::EarSigned { node, bytes } => self.on_ear_signed(node, bytes),
            Event::Secret { request, change } => self.on_secret(request, change, now),
            Event::SecretSealed { key, result } => self.on_sealed(key, result, now),
            Event::EnrolChange { request, change } => self.on_enrol_change(request, change, now),
            Event::Enrol {
                author,
                ticket,
                step,
                random,
            } => self.on_enrol(author, ticket, step, &random, now),
            Event::Certified { certify, result } => self.on_certified(*certify, result, now),
            Event::Uploaded { digest, size } => {
                self.on_uploaded(digest, size, now);
            }
            Event::ProvenanceAdded {
                subject,
                artifact,
                envelope,
            } => self.on_provenance(subject, artifact, envelope, now),
            Event::Compiled { key, result } => self.on_compiled(key, result, now),
            Event::Inspected { key, result } => self.on_inspected(key, result, now),
            Event::Collect(digests) => self.on_collect(&digests),
            Event::TwinSigned(bytes) => self.on_signed(&bytes, now),
            Event::Signer(key) => self.on_signer(key, now),
            Event::Approvers(keys) => self.on_approvers(keys, now),
            Event::DocumentSigned(draft, signed) => self.on_document(*draft, signed, now),
            Event::PushBundle { request, bytes } => self.on_bundle(request, bytes, now),
            Event::Revoke {
                request,
                node,
                keys_only,
                reason,
            } => self.on_revoke(request, node, keys_only, reason, now),
            Event::Readmit { request, node, new_key } => self.on_readmit(request, &node, new_key, now),
            Event::ChildConnected(child) => self.tree.child_connected(&child),
            Event::ChildDisconnected { child, reason } => {
                self.tree.child_disconnected(&child);
                self.note(format!("{child} is disconnected: {reason}"));
            }
            Event::FromChild { child, kind, bytes } => {
                let clock = Clock {
                    trust: &self.trust,
                    now_s: now.wall_ms / 1000,
                    mono_ms: now.mono_ms,
                };
                self.tree.on_message(&child, kind, &bytes, &clock);
            }
            Event::Tick => {}
        }
        self.settle(now);
    }

    /// What the hub trusts, and its fleet with it.
    #[must_use]
    pub fn trust(&self) -> &TrustState {
        &self.trust
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Event::Tick`] is due, monotonic milliseconds.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<u64> {
        let own = self.tree.timeout().into_iter().chain(self.delegations_at);
        own.chain(self.attest_timeout()).min()
    }

    fn refuse(&mut self, request: RequestId, reasons: Vec<String>) {
        self.answer(request, Outcome::Refused { reasons });
    }

    fn answer(&mut self, request: RequestId, outcome: Outcome) {
        self.effects.push_back(Action::Answer { request, outcome });
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

    fn on_ask(&mut self, request: RequestId, node: NodeId, op: v1::Operation) {
        let Some(via) = self.tree.via(&node).cloned() else {
            return self.answer(
                request,
                Outcome::NotFound {
                    what: format!("node {node}"),
                },
            );
        };
        if let Some(why) = self.why_revoked(&node).or_else(|| self.why_revoked(&via)) {
            return self.refuse(request, vec![format!("{node} cannot be reached: {why}")]);
        }
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

    /// Puts what is to be kept before what is to be done.
    fn settle(&mut self, now: Now) {
        self.look_at_delegations(now);
        // What a twin was signed with goes before the twin.
        self.tree.poll_trust(&self.trust, now);
        self.tree.poll_twins(now);
        self.drain_tree(now);
        self.attest(now);
        if !self.ops.is_empty() {
            self.actions.push_back(Action::Persist(std::mem::take(&mut self.ops)));
        }
        self.actions.append(&mut self.effects);
    }

    /// The wall clock at the last event, seconds since 1970.
    pub(crate) fn now_s(&self) -> u64 {
        self.wall_ms / 1000
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
