//! `cnova describe`: one thing, with its reasons.

use std::io;

use cnova_shared::ids::{Name, NodeId, WorkloadId};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::age::{age, timestamp};
use crate::apply::wait::stage_line;
use crate::args::{Describe, WorkloadRef};
use crate::client::{Hub, HubError};
use crate::get::{GetError, list, mebibytes, workloads_table};
use crate::model::{ApplicationInfo, NodeInfo, Outcome, WorkloadInfo};
use crate::output::{Screen, Table};
use crate::routes;

/// Runs the command.
pub(crate) fn run(what: &Describe, hub: &Hub, screen: &mut Screen<'_>) -> Result<(), GetError> {
    match what {
        Describe::Node { name } => node(hub, name, screen),
        Describe::Application { name } => application(hub, name, screen),
        Describe::Workload { workload: r } => workload(hub, r, screen),
    }
}

fn read<T: DeserializeOwned>(path: &str, value: &Value) -> Result<T, GetError> {
    T::deserialize(value).map_err(|e| GetError::NotUnderstood {
        path: path.to_owned(),
        reason: e.to_string(),
    })
}

/// `name:  value`, aligned.
fn field(screen: &mut Screen<'_>, name: &str, value: &str) -> io::Result<()> {
    screen.line(&format!(
        "{:<14}{}",
        format!("{name}:"),
        if value.is_empty() { "-" } else { value }
    ))
}

fn heading(screen: &mut Screen<'_>, text: &str) -> io::Result<()> {
    screen.line("")?;
    screen.line(text)
}

fn items_where(value: &Value, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter(|w| wanted(w))
        .cloned()
        .collect()
}

fn node(hub: &Hub, name: &NodeId, screen: &mut Screen<'_>) -> Result<(), GetError> {
    let path = routes::node(name);
    let info: Value = hub.get(&path)?;
    let all = list(hub, routes::WORKLOADS, "workloads")?;
    let here = Value::Array(items_where(&all, |w| {
        w.get("node").and_then(Value::as_str) == Some(name.as_str())
    }));
    if !screen.is_table() {
        return Ok(screen.document(&json!({ "node": info, "workloads": here }), |_| Ok(()))?);
    }
    let node: NodeInfo = read(&path, &info)?;
    let workloads: Vec<WorkloadInfo> = read(routes::WORKLOADS, &here)?;
    print_node(&node, screen)?;
    heading(screen, "Workloads:")?;
    if workloads.is_empty() {
        screen.line("  none")?;
    } else {
        screen.indented_table(&workloads_table(&workloads, screen.now_ms()))?;
    }
    Ok(())
}

fn print_node(n: &NodeInfo, screen: &mut Screen<'_>) -> io::Result<()> {
    let now = screen.now_ms();
    let sync = if n.in_sync { "in sync" } else { "not in sync" };
    field(screen, "Node", &n.node)?;
    field(screen, "Role", &n.role)?;
    field(screen, "Site", &n.site)?;
    field(
        screen,
        "Link",
        &if n.via == n.node {
            n.link.clone()
        } else {
            format!("{} (via {})", n.link, n.via)
        },
    )?;
    field(screen, "Trust", &n.trust)?;
    field(
        screen,
        "Twin",
        &format!("desired {}, reported {}: {sync}", n.desired, n.reported),
    )?;
    let heard = if n.heard_ms == 0 {
        "never".to_owned()
    } else {
        format!("{} ago", age(now, n.heard_ms))
    };
    field(screen, "Heard", &heard)?;
    field(screen, "Software", &n.software)?;
    let labels: Vec<String> = n.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    field(screen, "Labels", &labels.join(", "))?;
    field(screen, "Memory", &mebibytes(n.capabilities.memory_bytes))?;
    field(screen, "CPU", &format!("{}m", n.capabilities.cpu_millis))?;
    for r in &n.capabilities.runtimes {
        field(
            screen,
            "Runtime",
            &format!(
                "{} {} (engine {}; {})",
                r.name,
                r.version,
                r.engine,
                r.targets.join(", ")
            ),
        )?;
    }
    for a in &n.capabilities.accelerators {
        field(screen, "Accelerator", &format!("{} ({}, {})", a.id, a.class, a.kind))?;
    }
    if !n.capabilities.devices.is_empty() {
        field(screen, "Devices", &n.capabilities.devices.join(", "))?;
    }
    heading(screen, "Alarms:")?;
    for a in &n.alarms {
        screen.line(&format!("  {}: {}", a.code, a.detail))?;
    }
    if n.alarms.is_empty() {
        screen.line("  none")?;
    }
    heading(screen, "Refused twins:")?;
    for r in &n.refusals {
        screen.line(&format!("  {} {}: {}", timestamp(r.at_ms), r.code, r.detail))?;
    }
    if n.refusals.is_empty() {
        screen.line("  none")?;
    }
    Ok(())
}

fn application(hub: &Hub, name: &Name, screen: &mut Screen<'_>) -> Result<(), GetError> {
    let path = routes::application(name);
    let info: Value = hub.get(&path)?;
    if !screen.is_table() {
        return Ok(screen.document(&info, |_| Ok(()))?);
    }
    let app: ApplicationInfo = read(&path, &info)?;
    field(screen, "Application", app.name.as_str())?;
    field(screen, "Generation", &app.generation.to_string())?;
    field(screen, "Applied by", &app.user)?;
    for workload in app.workloads.keys() {
        heading(screen, &format!("Workload {workload}:"))?;
        print_placement(&app, workload, screen)?;
    }
    heading(screen, "Problems:")?;
    for (place, why) in &app.problems {
        screen.line(&format!("  {place}: {why}"))?;
    }
    if app.problems.is_empty() {
        screen.line("  none")?;
    }
    heading(screen, "Timeline:")?;
    let mut stages = app.timeline.clone();
    stages.sort();
    let admitted = stages
        .iter()
        .find(|s| s.stage == "admitted")
        .or(stages.first())
        .map_or(0, |s| s.at_ms);
    for stage in &stages {
        screen.line(&format!("  {}", stage_line(stage, admitted)))?;
    }
    if stages.is_empty() {
        screen.line("  none (the hub keeps it in memory since its last start)")?;
    }
    Ok(())
}

fn print_placement(app: &ApplicationInfo, workload: &str, screen: &mut Screen<'_>) -> io::Result<()> {
    let Some(placement) = app.workloads.get(workload) else {
        return Ok(());
    };
    let on = if placement.nodes.is_empty() {
        "no node".to_owned()
    } else {
        placement.nodes.join(", ")
    };
    screen.line(&format!("  on {on}"))?;
    if let Some(summary) = &placement.summary {
        screen.line(&format!("  fewer than asked for: {summary}"))?;
    }
    for (node, why) in &placement.not {
        screen.line(&format!("  not on {node}: {why}"))?;
    }
    Ok(())
}

fn workload(hub: &Hub, r: &WorkloadRef, screen: &mut Screen<'_>) -> Result<(), GetError> {
    let all = list(hub, routes::WORKLOADS, "workloads")?;
    let wanted = |w: &Value| {
        let is = |field: &str, text: &str| w.get(field).and_then(Value::as_str) == Some(text);
        let node_is = r.node.as_ref().is_none_or(|n| is("node", n.as_str()));
        is("application", r.id.application.as_str()) && is("workload", r.id.name.as_str()) && node_is
    };
    let here = Value::Array(items_where(&all, wanted));
    let workloads: Vec<WorkloadInfo> = read(routes::WORKLOADS, &here)?;
    let path = routes::application(&r.id.application);
    let info: Value = hub.get(&path)?;
    let app: ApplicationInfo = read(&path, &info)?;
    let mut metrics = Map::new();
    for w in &workloads {
        metrics.insert(w.node.to_string(), ask_metrics(hub, &r.id, &w.node)?);
    }
    if !screen.is_table() {
        let placement = info
            .pointer(&format!("/workloads/{}", r.id.name))
            .cloned()
            .unwrap_or_default();
        let value = json!({ "workloads": here, "placement": placement, "metrics": metrics });
        return Ok(screen.document(&value, |_| Ok(()))?);
    }
    field(screen, "Workload", &r.id.to_string())?;
    field(screen, "Generation", &app.generation.to_string())?;
    print_workload(r, &app, &workloads, &metrics, screen)
}

fn print_workload(
    r: &WorkloadRef,
    app: &ApplicationInfo,
    workloads: &[WorkloadInfo],
    metrics: &Map<String, Value>,
    screen: &mut Screen<'_>,
) -> Result<(), GetError> {
    if !app.workloads.contains_key(r.id.name.as_str()) {
        screen.line(&format!("{} has no workload of this name", app.name))?;
    }
    heading(screen, "Placement:")?;
    print_placement(app, r.id.name.as_str(), screen)?;
    let now = screen.now_ms();
    for w in workloads {
        heading(screen, &format!("On {}:", w.node))?;
        let since = if w.since_ms == 0 {
            String::new()
        } else {
            format!(", for {}", age(now, w.since_ms))
        };
        field(screen, "  State", &format!("{}{since}", w.state_text()))?;
        field(screen, "  Reason", &w.reason)?;
        field(
            screen,
            "  Runs",
            &format!("generation {} (desired {})", w.generation, w.desired),
        )?;
        field(screen, "  Try", &w.attempt.to_string())?;
        if w.pid > 0 {
            field(screen, "  Process", &w.pid.to_string())?;
        }
        if let Some(why) = app.problems.get(&format!("{}@{}", w.workload, w.node)) {
            field(screen, "  Problem", why)?;
        }
        print_metrics(metrics.get(w.node.as_str()), screen)?;
    }
    if workloads.is_empty() {
        let place = r
            .node
            .as_ref()
            .map_or("no node".to_owned(), |n| format!("{n} it is not"));
        heading(screen, &format!("On {place}."))?;
    }
    Ok(())
}

/// The metrics, or `{"unavailable": why}`: a node that cannot be reached is no reason not to describe the rest.
fn ask_metrics(hub: &Hub, id: &WorkloadId, node: &NodeId) -> Result<Value, HubError> {
    let unavailable = |why: String| json!({ "unavailable": why });
    match hub.get(&routes::metrics(id, node)) {
        Ok(Outcome::Replied { ok: true, text }) => Ok(serde_json::from_str(&text).unwrap_or(Value::String(text))),
        Ok(Outcome::Replied { ok: false, text }) => Ok(unavailable(text)),
        Ok(Outcome::NotFound { what }) => Ok(unavailable(format!("there is no {what}"))),
        Ok(Outcome::Refused { reasons }) => Ok(unavailable(reasons.join("; "))),
        Ok(_) => Ok(unavailable("the hub's answer is not understood".to_owned())),
        Err(HubError::Refused(r)) => Ok(unavailable(r.text())),
        Err(e) => Err(e),
    }
}

fn print_metrics(metrics: Option<&Value>, screen: &mut Screen<'_>) -> io::Result<()> {
    match metrics {
        Some(Value::Object(fields)) if fields.contains_key("unavailable") => {
            let why = fields.get("unavailable").and_then(Value::as_str).unwrap_or_default();
            field(screen, "  Metrics", &format!("not available: {why}"))
        }
        Some(Value::Object(fields)) => {
            let mut t = Table::new(["METRIC", "VALUE"]);
            for (name, value) in fields {
                t.row([
                    name.clone(),
                    value.as_str().map_or_else(|| value.to_string(), str::to_owned),
                ]);
            }
            if t.is_empty() {
                field(screen, "  Metrics", "")
            } else {
                screen.indented_table(&t)
            }
        }
        Some(other) => field(screen, "  Metrics", &other.to_string()),
        None => Ok(()),
    }
}
