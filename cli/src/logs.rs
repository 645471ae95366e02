//! `cnova logs`: the end of a workload's log, from the nodes that it is on.

use cnova_shared::ids::{NodeId, WorkloadId};
use serde_json::{Map, Value};

use crate::args::LogsArgs;
use crate::client::{Hub, HubError};
use crate::failure::read_and_print_error;
use crate::model::{Outcome, Workloads};
use crate::output::Screen;
use crate::routes;

read_and_print_error!(LogsError {
    #[error("{workload} is on no node; see why with: cnova describe workload {workload}")]
    Nowhere { workload: WorkloadId },
    #[error("no log of {workload}:\n  - {}", reasons.join("\n  - "))]
    NoLog { workload: WorkloadId, reasons: Vec<String> },
});

/// Runs the command.
pub(crate) fn run(args: &LogsArgs, hub: &Hub, screen: &mut Screen<'_>) -> Result<(), LogsError> {
    let id = &args.workload;
    let nodes = match &args.node {
        Some(node) => vec![node.clone()],
        None => nodes_of(hub, id)?,
    };
    if nodes.is_empty() {
        return Err(LogsError::Nowhere { workload: id.clone() });
    }
    let (mut logs, mut reasons) = (Map::new(), Vec::new());
    for node in &nodes {
        match ask(hub, id, node, args.lines)? {
            Ok(text) if screen.is_table() => {
                if nodes.len() > 1 {
                    screen.line(&format!("==> {id} on {node} <=="))?;
                }
                screen.text(&text)?;
            }
            Ok(text) => {
                logs.insert(node.to_string(), Value::String(text));
            }
            Err(why) => reasons.push(format!("{node}: {why}")),
        }
    }
    screen.document(&Value::Object(logs), |_| Ok(()))?;
    if reasons.is_empty() {
        Ok(())
    } else {
        Err(LogsError::NoLog {
            workload: id.clone(),
            reasons,
        })
    }
}

fn nodes_of(hub: &Hub, id: &WorkloadId) -> Result<Vec<NodeId>, HubError> {
    let all: Workloads = hub.get(routes::WORKLOADS)?;
    Ok(all.workloads.into_iter().filter(|w| w.is(id)).map(|w| w.node).collect())
}

/// The log, or why this node gives none. Other nodes may still give theirs.
fn ask(hub: &Hub, id: &WorkloadId, node: &NodeId, lines: u32) -> Result<Result<String, String>, HubError> {
    match hub.get(&routes::logs(id, node, lines)) {
        Ok(Outcome::Replied { ok: true, text }) => Ok(Ok(text)),
        Ok(Outcome::Replied { ok: false, text }) => Ok(Err(text)),
        Ok(Outcome::NotFound { what }) => Ok(Err(format!("there is no {what}"))),
        Ok(Outcome::Refused { reasons }) => Ok(Err(reasons.join("; "))),
        Ok(_) => Ok(Err("the hub's answer is not understood".to_owned())),
        Err(HubError::Refused(r)) if !matches!(r.status, 401 | 403) => Ok(Err(r.text())),
        Err(e) => Err(e),
    }
}
