//! Nodes, what runs on them, what they said, and who changed what.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use cnova_hub_core::views::NodeInfo;
use cnova_hub_core::{Hub, Outcome};
use cnova_shared::ids::{Digest, NodeId, WorkloadId};
use cnova_shared::wire::v1::{self, Operation};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::error::ApiError;
use super::operations::{LIMIT, LIMIT_MAX, LINES, LINES_MAX};
use super::{App, parse, query};
use crate::event_loop::Change;

/// How long a node has to answer a question.
const ASK: Duration = Duration::from_secs(10);
/// How long the loop has to say that it lives.
const HEALTH: Duration = Duration::from_secs(5);

pub(super) async fn nodes(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    let nodes = app.hub.query(Hub::nodes).await?;
    Ok(Json(json!({"nodes": nodes})))
}

pub(super) async fn node(State(app): State<App>, Path(node): Path<String>) -> Result<Response, ApiError> {
    let node: NodeId = parse(&node)?;
    let wanted = node.clone();
    let found = app.hub.query(move |hub| hub.node(&wanted)).await?;
    found
        .map(|n| Json(n).into_response())
        .ok_or_else(|| ApiError::not_found(&format!("node {node}")))
}

pub(super) async fn twin(
    State(app): State<App>,
    Path(node): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    const COSE: &str = "application/cose";
    let node: NodeId = parse(&node)?;
    let wanted = node.clone();
    let look = move |hub: &Hub| Some((hub.twin_bytes(&wanted)?.to_vec(), hub.twin(&wanted)?));
    let missing = || ApiError::not_found(&format!("twin for node {node}"));
    let (bytes, twin) = app.hub.query(look).await?.ok_or_else(missing)?;
    let wants_bytes = headers
        .get(header::ACCEPT)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.contains(COSE));
    if wants_bytes {
        return Ok(([(header::CONTENT_TYPE, COSE)], bytes).into_response());
    }
    let shown = shown(&twin)?;
    Ok(Json(json!({
        "node": node,
        "epoch": twin.epoch,
        "generation": twin.generation,
        "digest": Digest::of(&bytes),
        "size": bytes.len(),
        "twin": shown,
    }))
    .into_response())
}

/// A twin for people: of secrets their names, versions and keys.
fn shown(twin: &v1::Twin) -> Result<Value, ApiError> {
    let mut shown = serde_json::to_value(twin).map_err(|e| ApiError::internal(e.to_string()))?;
    if !twin.secrets.is_empty() {
        let names = twin
            .secrets
            .iter()
            .map(|s| json!({"n": s.name, "v": s.version, "k": s.key.to_string()}));
        shown["sec"] = names.collect();
    }
    Ok(shown)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LimitQuery {
    limit: Option<u32>,
}

fn limit(asked: Result<Query<LimitQuery>, QueryRejection>) -> Result<u32, ApiError> {
    within("limit", query(asked)?.limit, LIMIT, LIMIT_MAX)
}

fn within(name: &str, asked: Option<u32>, default: u32, max: u32) -> Result<u32, ApiError> {
    match asked.unwrap_or(default) {
        n if (1..=max).contains(&n) => Ok(n),
        n => Err(ApiError::bad_request(
            "query",
            format!("{name}: {n} is not from 1 to {max}"),
        )),
    }
}

pub(super) async fn history(
    State(app): State<App>,
    Path(node): Path<String>,
    asked: Result<Query<LimitQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let node: NodeId = parse(&node)?;
    let entries = app.store.history(node.clone(), limit(asked)?).await?;
    Ok(Json(json!({"node": node, "entries": entries})))
}

pub(super) async fn audit(
    State(app): State<App>,
    asked: Result<Query<LimitQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let entries = app.store.audit(limit(asked)?).await?;
    let broken_at = app.store.verify_audit().await?;
    Ok(Json(
        json!({"entries": entries, "chain": {"holds": broken_at.is_none(), "broken_at": broken_at}}),
    ))
}

pub(super) async fn workloads(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    let workloads = app.hub.query(Hub::workloads).await?;
    Ok(Json(json!({"workloads": workloads})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LinesQuery {
    lines: Option<u32>,
}

pub(super) async fn logs(
    State(app): State<App>,
    Path((node, application, workload)): Path<(String, String, String)>,
    asked: Result<Query<LinesQuery>, QueryRejection>,
) -> Result<Json<Outcome>, ApiError> {
    let lines = within("lines", query(asked)?.lines, LINES, LINES_MAX)?;
    let workload = WorkloadId {
        application: parse(&application)?,
        name: parse(&workload)?,
    };
    ask(&app, parse(&node)?, Operation::Logs { workload, lines }).await
}

pub(super) async fn metrics(
    State(app): State<App>,
    Path((node, application, workload)): Path<(String, String, String)>,
) -> Result<Json<Outcome>, ApiError> {
    let workload = WorkloadId {
        application: parse(&application)?,
        name: parse(&workload)?,
    };
    ask(&app, parse(&node)?, Operation::Metrics { workload }).await
}

async fn ask(app: &App, node: NodeId, op: Operation) -> Result<Json<Outcome>, ApiError> {
    let change = Change::Ask { node: node.clone(), op };
    let gateway_timeout = |code, message| ApiError::new(StatusCode::GATEWAY_TIMEOUT, code, message);
    let Ok(outcome) = timeout(ASK, app.hub.change(change, None)).await else {
        return Err(gateway_timeout("timeout", why_silent(app, node).await));
    };
    match outcome? {
        Outcome::Replied { ok: false, text } => Err(ApiError::unprocessable("node-refused", text)),
        Outcome::Refused { reasons } => Err(gateway_timeout("unreachable", reasons.join("; "))),
        Outcome::NotFound { what } => Err(ApiError::not_found(&what)),
        replied => Ok(Json(replied)),
    }
}

/// A node that does not answer, and which link on the way to it is to blame, where that is known.
async fn why_silent(app: &App, node: NodeId) -> String {
    let wanted = node.clone();
    let look = move |hub: &Hub| {
        let info = hub.node(&wanted)?;
        let via = NodeId::new(&info.via)
            .ok()
            .filter(|via| *via != wanted)
            .and_then(|via| hub.node(&via));
        Some((info, via))
    };
    let text = format!("{node} did not answer within {} s", ASK.as_secs());
    let Ok(Some((info, via))) = app.hub.query(look).await else {
        return text;
    };
    let is_down = |n: &NodeInfo| n.link != "connected";
    match via {
        Some(via) if is_down(&via) => format!("{text}: the link between the hub and {} is {}", via.node, via.link),
        Some(via) if is_down(&info) => format!("{text}: its link behind {} is {}", via.node, info.link),
        None if is_down(&info) => format!("{text}: its link to the hub is {}", info.link),
        _ => format!("{text}, although every link to it is up"),
    }
}

pub(super) async fn health(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    let unwell = |message: String| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "unwell", message);
    match timeout(HEALTH, app.hub.query(|_| ())).await {
        Ok(answer) => answer?,
        Err(_) => {
            return Err(unwell(format!(
                "the hub's loop did not answer within {} s",
                HEALTH.as_secs()
            )));
        }
    }
    if app.traffic.outage.is_on() {
        return Err(unwell("the hub cannot write its store; free disk space".into()));
    }
    Ok(Json(
        json!({"status": "ok", "node": app.node, "version": env!("CARGO_PKG_VERSION")}),
    ))
}
