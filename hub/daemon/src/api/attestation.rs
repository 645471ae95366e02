//! What nodes proved, what they shall prove, and asking them again.

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use cnova_attestation::reference::{ReferenceSet, Selector};
use cnova_hub_core::attestation_views::{AttestationInfo, ReferenceInfo, ReferencesInfo};
use cnova_hub_core::systems::Measured;
use cnova_hub_core::{AttestChange, Hub, Outcome};
use cnova_shared::ids::NodeId;
use serde::Deserialize;
use serde_json::json;

use super::error::ApiError;
use super::{App, parse};
use crate::event_loop::Change;
use crate::store::audit::Draft;
use crate::tokens::Caller;

/// What is known of a node's attestation.
pub(super) async fn show(State(app): State<App>, Path(node): Path<String>) -> Result<Json<AttestationInfo>, ApiError> {
    let node: NodeId = parse(&node)?;
    let name = node.clone();
    let found = app.hub.query(move |hub| hub.attestation(&name)).await?;
    found
        .map(Json)
        .ok_or_else(|| ApiError::not_found(&format!("node {node}")))
}

/// Challenges a node now.
pub(super) async fn demand(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(node): Path<String>,
) -> Result<Response, ApiError> {
    let node: NodeId = parse(&node)?;
    let object = format!("node {node}");
    change(&app, caller, "attest", object, AttestChange::Demand(node)).await
}

/// Lets a node out of its quarantine.
pub(super) async fn release(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(node): Path<String>,
) -> Result<Response, ApiError> {
    let node: NodeId = parse(&node)?;
    let object = format!("node {node}");
    change(&app, caller, "release", object, AttestChange::Release(node)).await
}

/// The reference values.
pub(super) async fn references(State(app): State<App>) -> Result<Json<ReferencesInfo>, ApiError> {
    let look = Hub::references_info;
    Ok(Json(app.hub.query(look).await?))
}

/// Where a set of reference values comes from: a node whose registers it takes over, or whoever built the image.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewSet {
    /// Take over what this node last showed.
    #[serde(default)]
    from_node: Option<NodeId>,
    /// The set; with `from_node` only whom it is for counts, and without that it is for that node.
    #[serde(default)]
    set: Option<ReferenceInfo>,
    /// With `from_node`: what it would show if it booted this image, by what the image alone decides.
    #[serde(default)]
    image: Option<Measured>,
}

/// Adds a set, or replaces the one with its name.
pub(super) async fn put_set(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    new: Result<Json<NewSet>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(new) = new.map_err(|e| ApiError::bad_request("reference", e.body_text()))?;
    let bad = |e: &dyn std::fmt::Display| ApiError::unprocessable("reference", e.to_string());
    let set = new.set.map(ReferenceSet::try_from).transpose().map_err(|e| bad(&e))?;
    let wanted = match (new.from_node, set) {
        (Some(node), set) => {
            let only_it = Selector {
                nodes: [node.clone()].into(),
                ..Selector::default()
            };
            let nodes = set.map_or(only_it, |s| s.nodes);
            let name = name.clone();
            AttestChange::SetFromNode {
                name,
                node,
                nodes,
                image: new.image.unwrap_or_default(),
            }
        }
        (None, Some(set)) => AttestChange::PutSet(Box::new(ReferenceSet {
            name: name.clone(),
            ..set
        })),
        (None, None) => return Err(bad(&"say from_node or set")),
    };
    change(&app, caller, "reference", format!("reference {name}"), wanted).await
}

/// Takes a set away.
pub(super) async fn drop_set(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let object = format!("reference {name}");
    change(&app, caller, "reference", object, AttestChange::DropSet(name)).await
}

async fn change(
    app: &App,
    caller: Caller,
    action: &'static str,
    object: String,
    change: AttestChange,
) -> Result<Response, ApiError> {
    let draft = Draft {
        at_ms: app.clock.now().wall_ms,
        user: caller.name,
        action,
        object,
        // The loop says how it went.
        outcome: "done",
        detail: String::new(),
    };
    match app.hub.change(Change::Attest(change), Some(draft)).await? {
        Outcome::Attested { text } => Ok((StatusCode::OK, Json(json!({"done": text}))).into_response()),
        Outcome::Refused { reasons } => Err(ApiError::unprocessable("attestation", reasons.join("; "))),
        _ => Err(ApiError::internal(
            "the hub gave another answer than it should: its log says more",
        )),
    }
}
