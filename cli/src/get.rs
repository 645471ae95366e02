//! `cnova get`: lists.

use std::io;
use std::path::PathBuf;

use cnova_shared::ids::{Name, NodeId};
use cnova_shared::wire::v1::{Body, SystemState};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::age::{age, timestamp};
use crate::args::Get;
use crate::client::Hub;
use crate::failure::read_and_print_error;
use crate::model::{ApplicationInfo, Audit, HistoryEntry, NodeInfo, SystemInfo, TwinDocument, WorkloadInfo};
use crate::output::{Screen, Table};
use crate::routes;

read_and_print_error!(GetError {
    #[error("the hub's answer to GET {path} is not understood: {reason}\n  print it as it is with -o json")]
    NotUnderstood { path: String, reason: String },
    #[error("cannot write {}: {source}", path.display())]
    Save { path: PathBuf, source: io::Error },
});

/// Runs the command.
pub(crate) fn run(what: &Get, hub: &Hub, screen: &mut Screen<'_>) -> Result<(), GetError> {
    match what {
        Get::Nodes => {
            let nodes = list(hub, routes::NODES, "nodes")?;
            show(routes::NODES, nodes, screen, |all: Vec<NodeInfo>, s| {
                s.table(&nodes_table(&all, s.now_ms()))
            })
        }
        Get::Workloads { node, application } => workloads(hub, node.as_ref(), application.as_ref(), screen),
        Get::Applications => {
            let applications = list(hub, routes::APPLICATIONS, "applications")?;
            show(
                routes::APPLICATIONS,
                applications,
                screen,
                |all: Vec<ApplicationInfo>, s| s.table(&applications_table(&all)),
            )
        }
        Get::Systems => {
            let systems = list(hub, routes::SYSTEMS, "systems")?;
            show(routes::SYSTEMS, systems, screen, |all: Vec<SystemInfo>, s| {
                s.table(&systems_table(&all))
            })
        }
        Get::Twin { node, raw: Some(file) } => save_twin(hub, node, file, screen),
        Get::Twin { node, raw: None } => {
            let path = routes::twin(node);
            show(&path, hub.get(&path)?, screen, |twin: TwinDocument, s| {
                print_twin(&twin, s)
            })
        }
        Get::History { node, limit } => {
            let path = routes::history(node, *limit);
            let entries = list(hub, &path, "entries")?;
            show(&path, entries, screen, |all: Vec<HistoryEntry>, s| {
                s.table(&history(&all))
            })
        }
        Get::Audit { limit } => {
            let path = routes::audit(*limit);
            show(&path, hub.get(&path)?, screen, |audit: Audit, s| print_audit(&audit, s))
        }
    }
}

/// A list, out of the object that holds it under its name.
pub(crate) fn list(hub: &Hub, path: &str, name: &str) -> Result<Value, GetError> {
    let mut value: Value = hub.get(path)?;
    match value.get_mut(name).map(Value::take) {
        Some(items @ Value::Array(_)) => Ok(items),
        _ => Err(GetError::NotUnderstood {
            path: path.to_owned(),
            reason: format!("it holds no list {name:?}"),
        }),
    }
}

/// JSON and YAML are what the hub said, whole; only a table needs it to be understood.
fn show<T: DeserializeOwned>(
    path: &str,
    value: Value,
    screen: &mut Screen<'_>,
    print: impl FnOnce(T, &mut Screen<'_>) -> io::Result<()>,
) -> Result<(), GetError> {
    if !screen.is_table() {
        return Ok(screen.document(&value, |_| Ok(()))?);
    }
    let read = serde_json::from_value(value);
    let content = read.map_err(|e| GetError::NotUnderstood {
        path: path.to_owned(),
        reason: e.to_string(),
    })?;
    Ok(print(content, screen)?)
}

fn nodes_table(nodes: &[NodeInfo], now_ms: u64) -> Table {
    let mut t = Table::new([
        "NODE",
        "ROLE",
        "SITE",
        "LINK",
        "TRUST",
        "TWIN",
        "REPORTED",
        "SYNC",
        "HEARD",
        "RUNTIMES",
        "ACCELERATORS",
    ]);
    for n in nodes {
        let sync = if n.in_sync { "yes" } else { "no" };
        t.row([
            n.node.clone(),
            n.role.clone(),
            n.site.clone(),
            n.link.clone(),
            n.trust.clone(),
            n.desired.clone(),
            n.reported.clone(),
            sync.to_owned(),
            age(now_ms, n.heard_ms),
            names(n.capabilities.runtimes.iter().map(|r| r.name.as_str())),
            names(n.capabilities.accelerators.iter().map(|a| a.kind.as_str())),
        ]);
    }
    t
}

fn systems_table(systems: &[SystemInfo]) -> Table {
    let mut t = Table::new(["SYSTEM", "VERSION", "NODE", "STATE", "RUNS", "SLOT", "WHY"]);
    for s in systems {
        if s.nodes.is_empty() {
            let none = "no node is at the place and has the labels that it is for";
            let cells = [s.name.as_str(), &s.version, "-", "-", "-", "-", none];
            t.row(cells.map(str::to_owned));
        }
        for (node, n) in &s.nodes {
            let state = match n.state {
                SystemState::Writing => format!("{} {} %", system_word(n.state), n.percent),
                state => system_word(state).to_owned(),
            };
            let cells = [&s.name, &s.version, node, &state, &n.version, &n.slot, &n.reason];
            t.row(cells.map(|c| if c.is_empty() { "-".to_owned() } else { c.clone() }));
        }
    }
    t
}

const fn system_word(state: SystemState) -> &'static str {
    match state {
        SystemState::Idle => "idle",
        SystemState::Waiting => "waiting",
        SystemState::Writing => "writing",
        SystemState::Verifying => "verifying",
        SystemState::Staged => "staged",
        SystemState::Rebooting => "rebooting",
        SystemState::Trial => "trial",
        SystemState::Confirmed => "confirmed",
        SystemState::RolledBack => "ROLLED BACK",
        SystemState::Failed => "FAILED",
        SystemState::Unknown => "unknown",
    }
}

fn names<'a>(all: impl Iterator<Item = &'a str>) -> String {
    all.collect::<Vec<_>>().join(",")
}

fn workloads(
    hub: &Hub,
    node: Option<&NodeId>,
    application: Option<&Name>,
    screen: &mut Screen<'_>,
) -> Result<(), GetError> {
    let mut value = list(hub, routes::WORKLOADS, "workloads")?;
    let is = |w: &Value, field: &str, wanted: Option<&str>| {
        wanted.is_none_or(|wanted| w.get(field).and_then(Value::as_str) == Some(wanted))
    };
    if let Some(all) = value.as_array_mut() {
        all.retain(|w| is(w, "node", node.map(NodeId::as_str)) && is(w, "application", application.map(Name::as_str)));
    }
    show(routes::WORKLOADS, value, screen, |all: Vec<WorkloadInfo>, s| {
        s.table(&workloads_table(&all, s.now_ms()))
    })
}

/// The table that `describe` shows too.
pub(crate) fn workloads_table(workloads: &[WorkloadInfo], now_ms: u64) -> Table {
    let mut t = Table::new(["WORKLOAD", "NODE", "DESIRED", "RUNS", "STATE", "TRY", "AGE", "REASON"]);
    let generation = |g: u64| if g == 0 { "-".to_owned() } else { g.to_string() };
    for w in workloads {
        t.row([
            w.id(),
            w.node.to_string(),
            generation(w.desired),
            generation(w.generation),
            w.state_text(),
            w.attempt.to_string(),
            age(now_ms, w.since_ms),
            w.reason.clone(),
        ]);
    }
    t
}

fn applications_table(applications: &[ApplicationInfo]) -> Table {
    let mut t = Table::new([
        "APPLICATION",
        "GENERATION",
        "USER",
        "WORKLOADS",
        "PLACED",
        "SHORT",
        "PROBLEMS",
    ]);
    for a in applications {
        let placed: usize = a.workloads.values().map(|w| w.nodes.len()).sum();
        let short = a.workloads.values().filter(|w| w.summary.is_some()).count();
        t.row([
            a.name.to_string(),
            a.generation.to_string(),
            a.user.clone(),
            a.workloads.len().to_string(),
            placed.to_string(),
            short.to_string(),
            a.problems.len().to_string(),
        ]);
    }
    t
}

fn print_twin(document: &TwinDocument, screen: &mut Screen<'_>) -> io::Result<()> {
    let TwinDocument { digest, size, twin } = document;
    screen.line(&format!(
        "twin {}.{} of {} ({size} bytes, {digest})",
        twin.epoch, twin.generation, twin.node
    ))?;
    let mut t = Table::new([
        "WORKLOAD",
        "GENERATION",
        "RUNTIME",
        "ARTIFACT",
        "BYTES",
        "MEMORY",
        "CPU",
        "PRIORITY",
    ]);
    for w in &twin.workloads {
        t.row([
            w.id.to_string(),
            w.app_generation.to_string(),
            w.runtime.clone(),
            w.artifact.digest.short(),
            w.artifact.size.to_string(),
            mebibytes(w.memory_bytes),
            format!("{}m", w.cpu_millis),
            w.priority.to_string(),
        ]);
    }
    screen.table(&t)
}

/// `64 MiB`, or bytes when it is not a whole number of them.
pub(crate) fn mebibytes(bytes: u64) -> String {
    const MIB: u64 = 1 << 20;
    if bytes > 0 && bytes.is_multiple_of(MIB) {
        format!("{} MiB", bytes / MIB)
    } else {
        format!("{bytes} B")
    }
}

fn save_twin(hub: &Hub, node: &NodeId, file: &PathBuf, screen: &mut Screen<'_>) -> Result<(), GetError> {
    let bytes = hub.get_signed(&routes::twin(node))?;
    std::fs::write(file, &bytes).map_err(|source| GetError::Save {
        path: file.clone(),
        source,
    })?;
    let value = json!({ "node": node, "file": file, "bytes": bytes.len() });
    let text = format!(
        "{} bytes (COSE_Sign1) of the twin of {node} saved in {}",
        bytes.len(),
        file.display()
    );
    Ok(screen.document(&value, |s| s.line(&text))?)
}

fn history(entries: &[HistoryEntry]) -> Table {
    let mut t = Table::new(["RECEIVED", "SEQ", "SUBJECT", "WHAT"]);
    for e in entries {
        t.row([
            timestamp(e.received_ms),
            e.seq.to_string(),
            e.key.clone(),
            said(&e.body),
        ]);
    }
    t
}

fn print_audit(audit: &Audit, screen: &mut Screen<'_>) -> io::Result<()> {
    let mut t = Table::new(["WHEN", "SEQ", "USER", "ACTION", "OBJECT", "OUTCOME", "DETAIL"]);
    for e in &audit.entries {
        t.row([
            timestamp(e.at_ms),
            e.seq.to_string(),
            e.user.clone(),
            e.action.clone(),
            e.object.clone(),
            e.outcome.clone(),
            e.detail.clone(),
        ]);
    }
    screen.table(&t)?;
    match (audit.chain.holds, audit.chain.broken_at) {
        (true, _) => screen.line("the log is whole: every entry's hash fits the one before it"),
        (false, Some(seq)) => screen.line(&format!(
            "THE LOG WAS CHANGED: entry {seq} does not fit the one before it"
        )),
        (false, None) => screen.line("THE LOG WAS CHANGED: its hashes do not fit"),
    }
}

pub(crate) fn said(body: &Body) -> String {
    match body {
        Body::Twin { epoch, generation, .. } => format!("has twin {epoch}.{generation}"),
        Body::Refused { code, detail, .. } => format!("refused a twin: {code}: {detail}"),
        Body::Appraised { node, .. } => format!("appraised {node} while the hub was away"),
        Body::Workload(w) => {
            let state = serde_json::to_value(w.state).ok();
            let state = state.as_ref().and_then(Value::as_str).unwrap_or("unknown");
            let adopted = if w.adopted { " (adopted)" } else { "" };
            let why = if w.reason.is_empty() {
                String::new()
            } else {
                format!(": {}", w.reason)
            };
            format!(
                "generation {} {state}{adopted}, try {}{why}",
                w.app_generation, w.attempt
            )
        }
        Body::Gone { id } => format!("{id} is gone"),
        Body::Relayed {
            node,
            epoch,
            generation,
        } => format!("handed twin {epoch}.{generation} on to {node}"),
        Body::Link { child, up: true, .. } => format!("{child} connected"),
        Body::Link {
            child,
            up: false,
            reason,
        } => format!("{child} disconnected: {reason}"),
        Body::System(s) => {
            let state = system_word(s.state);
            let why = if s.reason.is_empty() {
                String::new()
            } else {
                format!(": {}", s.reason)
            };
            match s.wanted.as_str() {
                "" => format!("system {} in slot {}", s.version, s.slot),
                wanted => format!(
                    "system {} in slot {}; version {wanted} is {state}{why}",
                    s.version, s.slot
                ),
            }
        }
        Body::Alarm(a) => format!("alarm {}: {}", a.code, a.detail),
        Body::Over => "the condition is over".to_owned(),
        Body::Unknown => "something that this program does not know".to_owned(),
    }
}
