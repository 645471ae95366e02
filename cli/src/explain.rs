//! `cnova explain`: why a workload runs where it does, why not elsewhere, and what can be done.

use std::collections::BTreeMap;
use std::io;

use serde::Deserialize;
use serde_json::Value;

use crate::age::{age, timestamp};
use crate::apply::wait::stage_line;
use crate::args::Explain;
use crate::client::Hub;
use crate::get::{GetError, said};
use crate::model::{HistoryEntry, StageRecord};
use crate::output::{Screen, Table};
use crate::routes;

#[derive(Deserialize)]
struct Explanation {
    application: String,
    workload: String,
    #[serde(default)]
    generation: u64,
    #[serde(default)]
    runtime: String,
    #[serde(default)]
    verdict: String,
    #[serde(default)]
    artifacts: Vec<Artifact>,
    #[serde(default)]
    nodes: Vec<Node>,
    #[serde(default)]
    not: BTreeMap<String, String>,
    #[serde(default)]
    next: Vec<String>,
    #[serde(default)]
    timeline: Vec<StageRecord>,
    #[serde(default)]
    history: BTreeMap<String, Vec<HistoryEntry>>,
    #[serde(default)]
    as_of_ms: u64,
}

#[derive(Deserialize)]
struct Artifact {
    what: String,
    #[serde(default)]
    digest: Option<String>,
    #[serde(default)]
    size: Option<u64>,
    state: String,
}

#[derive(Deserialize)]
struct Node {
    node: String,
    #[serde(default)]
    because: String,
    #[serde(default)]
    link: String,
    #[serde(default)]
    heard_ms: u64,
    #[serde(default)]
    twin_asked: String,
    #[serde(default)]
    twin_held: String,
    #[serde(default)]
    reported: Option<Reported>,
    #[serde(default)]
    needs: Vec<String>,
    #[serde(default)]
    timeline: Vec<StageRecord>,
}

/// A state is text: a later version may know more of them.
#[derive(Deserialize)]
struct Reported {
    state: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    generation: u64,
    #[serde(default)]
    attempt: u32,
    #[serde(default)]
    since_ms: u64,
    #[serde(default)]
    received_ms: u64,
}

/// Runs the command.
pub(crate) fn run(what: &Explain, hub: &Hub, screen: &mut Screen<'_>) -> Result<(), GetError> {
    let Explain::Workload { workload, node } = what;
    let path = routes::explanation(&workload.id, node.as_ref().or(workload.node.as_ref()));
    let value: Value = hub.get(&path)?;
    if !screen.is_table() {
        return Ok(screen.document(&value, |_| Ok(()))?);
    }
    let read = Explanation::deserialize(&value).map_err(|e| GetError::NotUnderstood {
        path: path.clone(),
        reason: e.to_string(),
    })?;
    Ok(print(&read, screen)?)
}

fn print(e: &Explanation, screen: &mut Screen<'_>) -> io::Result<()> {
    let runtime = if e.runtime.is_empty() {
        String::new()
    } else {
        format!(" ({})", e.runtime)
    };
    screen.line(&format!(
        "{}/{}{runtime}, generation {}",
        e.application, e.workload, e.generation
    ))?;
    screen.line(&format!("as of {} by the hub's clock", timestamp(e.as_of_ms)))?;
    screen.line("")?;
    screen.line(&e.verdict)?;
    if !e.next.is_empty() {
        screen.line("")?;
        screen.line("What you can do:")?;
        for line in &e.next {
            screen.line(&format!("  - {line}"))?;
        }
    }
    // Times of several nodes are compared with the one at which the application was admitted.
    let admitted = e.timeline.iter().find(|s| s.stage == "admitted").map(|s| s.at_ms);
    for node in &e.nodes {
        screen.line("")?;
        print_node(node, e, admitted, screen)?;
    }
    if !e.not.is_empty() {
        screen.line("")?;
        screen.line("Not on:")?;
        for (node, why) in &e.not {
            screen.line(&format!("  {node}: {why}"))?;
        }
    }
    if !e.artifacts.is_empty() {
        screen.line("")?;
        screen.line("Artifacts on the hub:")?;
        let mut t = Table::new(["WHAT", "STATE", "BYTES", "DIGEST"]);
        for a in &e.artifacts {
            let size = a.size.map(|s| s.to_string()).unwrap_or_default();
            t.row([
                a.what.clone(),
                a.state.clone(),
                size,
                a.digest.clone().unwrap_or_default(),
            ]);
        }
        screen.indented_table(&t)?;
    }
    Ok(())
}

fn print_node(n: &Node, e: &Explanation, admitted: Option<u64>, screen: &mut Screen<'_>) -> io::Result<()> {
    let heard = match n.heard_ms {
        0 => "not heard since the hub started".to_owned(),
        ms => format!("heard {} before", age(e.as_of_ms, ms)),
    };
    screen.line(&format!("On {}: {}", n.node, n.because))?;
    screen.line(&format!("  link      {}, {heard}", n.link))?;
    screen.line(&format!("  twin      asked {}, held {}", n.twin_asked, n.twin_held))?;
    match &n.reported {
        Some(r) => {
            let why = if r.reason.is_empty() {
                String::new()
            } else {
                format!(": {}", r.reason)
            };
            screen.line(&format!(
                "  reported  generation {} {}, try {}{why}",
                r.generation, r.state, r.attempt
            ))?;
            screen.line(&format!(
                "            since {} by its clock, received {}",
                timestamp(r.since_ms),
                timestamp(r.received_ms)
            ))?;
        }
        None => screen.line("  reported  nothing")?,
    }
    for need in &n.needs {
        screen.line(&format!("  needs     {need}"))?;
    }
    let mut stages = n.timeline.clone();
    stages.sort();
    let first = admitted.or(stages.first().map(|s| s.at_ms)).unwrap_or_default();
    for stage in &stages {
        screen.line(&format!("  stage     {}", stage_line(stage, first)))?;
    }
    for entry in e.history.get(&n.node).into_iter().flatten() {
        screen.line(&format!(
            "  history   {} {}",
            timestamp(entry.received_ms),
            said(&entry.body)
        ))?;
    }
    Ok(())
}
