//! Bundles, revocations, delegations.

use axum::extract::{Path, Request, State};
use axum::response::Response;
use axum::{Extension, Json};
use cnova_hub_core::Hub;
use cnova_shared::ids::NodeId;
use cnova_shared::limits;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::applications::{answer, draft};
use super::error::ApiError;
use super::{App, declared_length, parse, read_body};
use crate::event_loop::Change;
use crate::tokens::Caller;

/// Longest body of a request about one node.
const BODY_BYTES: usize = 4 * 1024;

pub(super) async fn get(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    let info = app.hub.query(Hub::trust_info).await?;
    serde_json::to_value(info)
        .map(Json)
        .map_err(|e| ApiError::internal(e.to_string()))
}

pub(super) async fn push(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, ApiError> {
    let declared = declared_length(request.headers());
    let bytes = read_body(request.into_body(), declared, "the trust bundle", limits::BUNDLE_BYTES).await?;
    let draft = draft(&app, &caller, "trust", "trust bundle".to_owned());
    answer(app.hub.change(Change::PushBundle(bytes), Some(draft)).await?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Revoke {
    reason: String,
    #[serde(default)]
    keys_only: bool,
}

pub(super) async fn revoke(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(node): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let node: NodeId = parse(&node)?;
    let Revoke { reason, keys_only } = body(request).await?;
    if reason.trim().is_empty() || reason.len() > limits::REASON_BYTES {
        let most = limits::REASON_BYTES;
        return Err(ApiError::bad_request("reason", format!("reason: 1 to {most} bytes")));
    }
    let draft = draft(&app, &caller, "revoke", format!("node {node}"));
    let change = Change::Revoke {
        node,
        keys_only,
        reason,
    };
    answer(app.hub.change(change, Some(draft)).await?)
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Readmit {
    new_key: bool,
}

pub(super) async fn readmit(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(node): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let node: NodeId = parse(&node)?;
    let Readmit { new_key } = body(request).await?;
    let draft = draft(&app, &caller, "readmit", format!("node {node}"));
    answer(app.hub.change(Change::Readmit { node, new_key }, Some(draft)).await?)
}

async fn body<T: DeserializeOwned>(request: Request) -> Result<T, ApiError> {
    let declared = declared_length(request.headers());
    let bytes = read_body(request.into_body(), declared, "the request", BODY_BYTES).await?;
    serde_json::from_slice(&bytes).map_err(|e| ApiError::bad_request("body", e.to_string()))
}
