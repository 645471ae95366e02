//! Why a workload runs where it runs, and why it does not where it does not: everything that the hub knows of it, in
//! the order in which a person asks.

use std::collections::BTreeMap;

use cnova_shared::ids::{Digest, Name, NodeId, WorkloadId};
use cnova_shared::wire::v1::{self, Body, WorkloadState};
use serde::{Deserialize, Serialize};

use crate::api::{CompileKey, InspectKey};
use crate::cndl::{RuntimeKind, WorkloadDef};
use crate::hub::{App, Hub};
use crate::placement::{Constraint, WorkloadPlacement};
use crate::rollout;
use crate::timeline::StageRecord;

/// Everything about one workload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// Its application.
    pub application: Name,
    /// Its name there.
    pub workload: Name,
    /// The application's generation; 0 when there is no such application any more.
    pub generation: u64,
    /// What runs it; empty when the application no longer has it.
    pub runtime: String,
    /// The answer in one sentence.
    pub verdict: String,
    /// What its artifacts are, and whether the hub has them.
    pub artifacts: Vec<ArtifactState>,
    /// The nodes that are to run it, and those that say that they have it.
    pub nodes: Vec<NodeExplanation>,
    /// Why not, for every other node.
    pub not: BTreeMap<String, String>,
    /// What a person can do, most useful first.
    pub next: Vec<String>,
    /// The stages of this generation that concern no node.
    pub timeline: Vec<StageRecord>,
}

/// One artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactState {
    /// `program`, `compiled for TARGET`, `configuration`, `layer N` or `file PATH`.
    pub what: String,
    /// Its digest, where it is known.
    pub digest: Option<Digest>,
    /// Bytes, where it is there.
    pub size: Option<u64>,
    /// `there`, `missing`, `in work`, or `failed: WHY`.
    pub state: String,
}

/// The workload on one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeExplanation {
    /// The node.
    pub node: NodeId,
    /// Whether it is to run there.
    pub placed: bool,
    /// Why it stands as it does, in a sentence.
    pub because: String,
    /// `connected`, `disconnected` or `unknown`.
    pub link: String,
    /// When the node was last heard, milliseconds since 1970 by the hub's clock; 0 for not since the hub started.
    pub heard_ms: u64,
    /// The twin that it should have, `epoch.generation`, or `-`.
    pub twin_asked: String,
    /// The twin that it said it has.
    pub twin_held: String,
    /// What it said of the workload.
    pub reported: Option<ReportedState>,
    /// Workloads that must come first, and how far they are there.
    pub needs: Vec<String>,
    /// What a person can do.
    pub next: Vec<String>,
    /// When each stage was reached there.
    pub timeline: Vec<StageRecord>,
}

/// What a node said of a workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportedState {
    /// Its state.
    pub state: WorkloadState,
    /// Why.
    pub reason: String,
    /// The application's generation that it runs.
    pub generation: u64,
    /// How often it was started.
    pub attempt: u32,
    /// Whether a new version did not become healthy, and the one before runs again.
    pub returned: bool,
    /// Since when, milliseconds since 1970 by the node's clock.
    pub since_ms: u64,
    /// When the hub heard of it, by the hub's clock.
    pub received_ms: u64,
}

impl Hub {
    /// Explains one workload; `None` when neither an application nor a node knows it.
    #[must_use]
    pub fn explain(&self, id: &WorkloadId) -> Option<Explanation> {
        let app = self.apps.get(&id.application);
        let placed = app.and_then(|a| a.placement.workloads().get(id.name.as_str()));
        let def = app.and_then(|a| a.placement.manifest().application().workload(id.name.as_str()));
        let reporting = self.inventory.nodes().keys().filter(|n| self.said_of(n, id).is_some());
        let chosen = placed.iter().flat_map(|p| &p.nodes).filter_map(|n| NodeId::new(n).ok());
        let all: std::collections::BTreeSet<NodeId> = reporting.cloned().chain(chosen).collect();
        if placed.is_none() && all.is_empty() {
            return None;
        }
        let links = self.links();
        let place = Place { id, app, placed, def };
        let nodes: Vec<NodeExplanation> = all
            .into_iter()
            .map(|node| {
                let link = self.link(&node, &links);
                self.explain_node(&place, node, link)
            })
            .collect();
        let generation = app.map_or(0, |a| a.generation);
        let mut timeline = self.timeline(&id.application, generation);
        timeline.retain(|s| s.node.is_none());
        Some(Explanation {
            application: id.application.clone(),
            workload: id.name.clone(),
            generation,
            runtime: def.map(|d| d.runtime.as_str().to_owned()).unwrap_or_default(),
            verdict: verdict(&place, &nodes),
            artifacts: def.map(|d| self.artifact_states(d)).unwrap_or_default(),
            not: placed
                .iter()
                .flat_map(|p| &p.rejected)
                .map(|(n, r)| (n.clone(), r.to_string()))
                .collect(),
            next: next_for_placement(&place, &nodes),
            nodes,
            timeline,
        })
    }

    /// What a node last said of a workload, and when the hub heard it.
    fn said_of(&self, node: &NodeId, id: &WorkloadId) -> Option<ReportedState> {
        let entries = self.inventory.nodes().get(node)?.entries.values();
        let mut said = entries.filter_map(|stored| match &stored.entry.body {
            Body::Workload(w) if w.id == *id => Some(ReportedState {
                state: w.state,
                reason: w.reason.clone(),
                generation: w.app_generation,
                attempt: w.attempt,
                returned: w.returned,
                since_ms: stored.entry.at_ms,
                received_ms: stored.received_ms,
            }),
            _ => None,
        });
        said.next()
    }

    fn explain_node(&self, place: &Place<'_>, node: NodeId, link: &str) -> NodeExplanation {
        let info = self.node(&node);
        let id = place.id;
        let is_placed = place.placed.is_some_and(|p| p.nodes.contains(node.as_str()));
        let problem = place.app.and_then(|a| a.problems.get(&format!("{}@{node}", id.name)));
        let reported = self.said_of(&node, id);
        let mut timeline = self.timeline(&id.application, place.app.map_or(0, |a| a.generation));
        timeline.retain(|s| s.node.as_ref() == Some(&node) && (!s.detail.contains('/') || s.detail == id.to_string()));
        let asks = self.twin_asks(&node, id);
        let mut one = NodeExplanation {
            placed: is_placed,
            because: String::new(),
            link: link.to_owned(),
            heard_ms: info.as_ref().map_or(0, |i| i.heard_ms),
            twin_asked: info.as_ref().map_or_else(|| "-".to_owned(), |i| i.desired.clone()),
            twin_held: info.as_ref().map_or_else(|| "-".to_owned(), |i| i.reported.clone()),
            needs: self.needs_on(place, &node),
            reported,
            next: Vec::new(),
            timeline,
            node,
        };
        let refused = info.as_ref().and_then(|i| i.refusals.last());
        let in_sync = info.as_ref().is_some_and(|i| i.in_sync);
        let generation = place.app.map_or(0, |a| a.generation);
        (one.because, one.next) = match (problem, asks, &one.reported) {
            _ if !is_placed => not_wanted(id, &one, in_sync),
            (Some(why), _, _) => (
                format!("the hub cannot give it to this node: {why}"),
                vec![format!(
                    "correct that and apply the application again: cnova describe application {}",
                    id.application
                )],
            ),
            (None, None, None) => (
                "the hub is still preparing it: its artifacts are being compiled or looked into".to_owned(),
                Vec::new(),
            ),
            (None, _, reported) if !in_sync && reported.as_ref().is_none_or(|r| r.generation < generation) => {
                not_arrived(&one, refused)
            }
            (None, _, None) => (
                "the node has the twin and has not said anything of this workload yet".to_owned(),
                vec![format!("see what the node says: cnova describe node {}", one.node)],
            ),
            (None, _, Some(said)) => reported_because(id, &one, said),
        };
        one
    }

    /// The generation of the application that the node's newest twin asks for.
    fn twin_asks(&self, node: &NodeId, id: &WorkloadId) -> Option<u64> {
        let twin = self.twin(node)?;
        twin.workloads.iter().find(|w| w.id == *id).map(|w| w.app_generation)
    }

    fn needs_on(&self, place: &Place<'_>, node: &NodeId) -> Vec<String> {
        let needs = place.def.map(|d| d.needs.as_slice()).unwrap_or_default();
        let text = |need: &crate::cndl::Need| {
            let application = match &need.application {
                Some(other) => Name::new(other).ok()?,
                None => place.id.application.clone(),
            };
            let name = Name::new(&need.workload).ok()?;
            let id = WorkloadId { application, name };
            let wanted = state_word(need.condition);
            let app = self.apps.get(&id.application);
            let placed = app.and_then(|a| a.placement.workloads().get(id.name.as_str()));
            let state = match (self.said_of(node, &id), placed) {
                (Some(said), _) => format!("{} here", state_word(said.state)),
                (None, Some(p)) if p.nodes.contains(node.as_str()) => "placed here, not reported yet".to_owned(),
                (None, Some(_)) => "NOT PLACED on this node".to_owned(),
                (None, None) => "there is no such workload".to_owned(),
            };
            Some(format!("{id} must be {wanted}: {state}"))
        };
        needs.iter().filter_map(text).collect()
    }

    fn artifact_states(&self, def: &WorkloadDef) -> Vec<ArtifactState> {
        let view = self.artifact_view();
        let stored = |what: String, digest: Option<Digest>| {
            let size = digest.and_then(|d| view.uploaded.get(&d).copied());
            let state = if size.is_some() { "there" } else { "missing" };
            ArtifactState {
                what,
                digest,
                size,
                state: state.to_owned(),
            }
        };
        let source: Option<Digest> = def.artifact.digest().and_then(|d| d.parse().ok());
        let mut all = vec![stored("program".to_owned(), source)];
        if let Some(digest) = source {
            let key = InspectKey {
                digest,
                runtime: def.runtime,
            };
            match view.inspected.get(&key) {
                _ if def.runtime == RuntimeKind::Wasm => all.extend(self.compiled_states(def, digest)),
                Some(Ok(parts)) => all.extend(parts.iter().enumerate().map(|(i, part)| {
                    let what = if i == 0 {
                        "configuration".to_owned()
                    } else {
                        format!("layer {i}")
                    };
                    stored(what, Some(part.digest))
                })),
                Some(Err(why)) => all[0].state = format!("failed: {why}"),
                None => all[0].state = "in work".to_owned(),
            }
        }
        all.extend(self.provenance_state(def));
        let files = def.files.iter();
        all.extend(files.map(|f| {
            stored(
                format!("file {}", f.path),
                f.artifact.digest().and_then(|d| d.parse().ok()),
            )
        }));
        all
    }

    fn compiled_states(&self, def: &WorkloadDef, source: Digest) -> Vec<ArtifactState> {
        let view = self.artifact_view();
        let agents = self.inventory.nodes().values().filter_map(|r| r.hello.as_ref());
        let agents = agents.filter(|h| h.role == v1::NodeRole::Agent);
        let keys: std::collections::BTreeSet<CompileKey> = agents
            .filter_map(|h| rollout::wasm_target(def, &h.capabilities))
            .map(|(target, engine)| CompileKey {
                source,
                target: target.to_owned(),
                engine: engine.to_owned(),
            })
            .collect();
        let state = |key: CompileKey| {
            let what = format!("compiled for {} ({})", key.target, key.engine);
            match (view.compiled.get(&key), view.failed.get(&key)) {
                (Some(a), _) => Some((what, Some(a.digest), Some(a.size), "there".to_owned())),
                (None, Some(why)) => Some((what, None, None, format!("failed: {why}"))),
                // Compiled when a node of that target is to run it.
                (None, None) => None,
            }
        };
        let one = |(what, digest, size, state)| ArtifactState {
            what,
            digest,
            size,
            state,
        };
        keys.into_iter().filter_map(state).map(one).collect()
    }
}

/// What is asked about.
struct Place<'a> {
    id: &'a WorkloadId,
    app: Option<&'a App>,
    placed: Option<&'a WorkloadPlacement>,
    def: Option<&'a WorkloadDef>,
}

/// A state's word as it is on the wire.
fn state_word<T: Serialize>(state: T) -> String {
    let value = serde_json::to_value(state).unwrap_or_default();
    value.as_str().unwrap_or("unknown").to_owned()
}

fn verdict(place: &Place<'_>, nodes: &[NodeExplanation]) -> String {
    let Some(placed) = place.placed else {
        return match place.app {
            None => format!(
                "application {} is not applied (any more); what is listed still has to stop",
                place.id.application
            ),
            Some(_) => "the application has no such workload (any more); what is listed still has to stop".to_owned(),
        };
    };
    if placed.nodes.is_empty() {
        let why = placed
            .summary
            .clone()
            .unwrap_or_else(|| "no node was chosen".to_owned());
        return format!("runs nowhere: {why}");
    }
    let generation = place.app.map_or(0, |a| a.generation);
    let runs = |n: &&NodeExplanation| {
        let said = n.reported.as_ref();
        n.placed && said.is_some_and(|r| r.state == WorkloadState::Running && r.generation == generation)
    };
    let running = nodes.iter().filter(runs).count();
    let all = placed.nodes.len();
    let mut text = format!("runs on {running} of {all} node(s) that are to run it");
    if let Some(first) = nodes.iter().find(|n| n.placed && !runs(n)) {
        text = format!("{text}; {}: {}", first.node, first.because);
    }
    match &placed.summary {
        Some(short) => format!("{text}; {short}"),
        None => text,
    }
}

fn not_wanted(id: &WorkloadId, one: &NodeExplanation, in_sync: bool) -> (String, Vec<String>) {
    if in_sync {
        return (
            "it is not to run here, and the node is stopping it".to_owned(),
            Vec::new(),
        );
    }
    (
        format!(
            "{id} is not to run here, but the node has not heard that yet: it holds twin {}",
            one.twin_held
        ),
        link_advice(one),
    )
}

fn link_advice(one: &NodeExplanation) -> Vec<String> {
    match one.link.as_str() {
        "connected" => Vec::new(),
        _ => vec![format!(
            "bring the node or its link back; it takes the twin by itself then: cnova describe node {}",
            one.node
        )],
    }
}

fn not_arrived(one: &NodeExplanation, refused: Option<&crate::views::Refusal>) -> (String, Vec<String>) {
    let held = format!(
        "the node holds twin {} and is to have {}",
        one.twin_held, one.twin_asked
    );
    match (one.link.as_str(), refused) {
        ("connected", Some(r)) => (
            format!("{held}; it refused one: {}: {}", r.code, r.detail),
            vec![format!("see what it refused and when: cnova get history {}", one.node)],
        ),
        ("connected", None) => (format!("{held}; it is on its way"), Vec::new()),
        (link, _) => (format!("{held}; its link is {link}"), link_advice(one)),
    }
}

fn reported_because(id: &WorkloadId, one: &NodeExplanation, said: &ReportedState) -> (String, Vec<String>) {
    let stale = match one.link.as_str() {
        "connected" => String::new(),
        link => format!(" (its link is {link}: this is what it said last)"),
    };
    let reason = if said.reason.is_empty() {
        String::new()
    } else {
        format!(": {}", said.reason)
    };
    let back = if said.returned {
        " (the new version did not become healthy: the one before runs again)"
    } else {
        ""
    };
    let because = format!("{}{back}{reason}{stale}", state_word(said.state));
    let log = format!("see its log: cnova logs {id} --node {}", one.node);
    let mut next = match said.state {
        WorkloadState::CrashLoop => vec![
            log,
            "it is started again only when its twin changes: correct the workload and apply it again".to_owned(),
        ],
        WorkloadState::Failed => vec![log],
        WorkloadState::Waiting => one
            .needs
            .iter()
            .filter(|n| n.contains("NOT PLACED") || n.contains("no such"))
            .map(|n| format!("what it needs cannot come: {n}; place both on the same node"))
            .collect(),
        _ => Vec::new(),
    };
    if said.returned {
        next.push("correct the new version and apply it again; until then the last good one stays".to_owned());
    }
    next.extend(link_advice(one));
    (because, next)
}

/// What helps a workload that has too few nodes.
fn next_for_placement(place: &Place<'_>, nodes: &[NodeExplanation]) -> Vec<String> {
    let mut next: Vec<String> = Vec::new();
    if let Some(placed) = place.placed.filter(|p| p.unplaced > 0 || p.nodes.is_empty()) {
        let mut counts: BTreeMap<Constraint, usize> = BTreeMap::new();
        for reason in placed.rejected.values() {
            *counts.entry(reason.constraint()).or_default() += 1;
        }
        if counts.is_empty() {
            next.push("no other node is known: start an agent, and see it come with: cnova get nodes".to_owned());
        }
        next.extend(counts.keys().filter_map(|c| advice(*c)).map(str::to_owned));
    }
    for line in nodes.iter().flat_map(|n| &n.next) {
        if !next.contains(line) {
            next.push(line.clone());
        }
    }
    next
}

const fn advice(constraint: Constraint) -> Option<&'static str> {
    Some(match constraint {
        Constraint::Site => "correct placement.site in the manifest, or move a node in its configuration (site)",
        Constraint::Trust => {
            "enrol a node by its TPM and give its reference values, or lower placement.trust in the manifest"
        }
        Constraint::Label => "correct placement.labels in the manifest, or give a node the label in its configuration",
        Constraint::Runtime => "install the runtime on a node; an agent reports its runtimes when it starts",
        Constraint::Accelerator => "make the accelerator optional ({kind: ..., optional: true}), or free or add one",
        Constraint::Device => "offer the device in an agent's configuration (devices), or take it out of the manifest",
        Constraint::Memory | Constraint::Cpu => "ask for less in resources, or delete what takes the room",
        Constraint::NeverReported => "start the agents that never reported",
        Constraint::Revoked | Constraint::Role | Constraint::NotNeeded => return None,
    })
}
