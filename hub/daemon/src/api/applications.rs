//! Applications: applied, looked at, deleted.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use cnova_hub_core::cndl::{self, Manifest, ManifestErrors};
use cnova_hub_core::policy::{AdmissionContext, AdmittedManifest, PolicyDenied};
use cnova_hub_core::{Hub, Outcome};
use cnova_shared::ids::{Digest, Name, NodeId, WorkloadId};
use cnova_shared::limits;
use cnova_shared::wire::v1::Body;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::operations::LIMIT_MAX;
use super::plan::{Fleet, plan};
use super::{App, declared_length, parse, query, read_body};
use crate::event_loop::Change;
use crate::store::audit::Draft;
use crate::tokens::Caller;

/// Largest body of an apply: a manifest of the largest size, escaped as JSON, and its artifacts.
const APPLY_BYTES: usize = 4 << 20;

/// Most nodes of an explanation whose history is looked up.
const HISTORIES: usize = 16;
/// Most entries of one node's history in an explanation.
const HISTORY_ENTRIES: usize = 10;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ApplyRequest {
    pub(super) manifest: String,
    #[serde(default = "unnamed")]
    pub(super) source: String,
    #[serde(default)]
    pub(super) artifacts: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) dry_run: bool,
}

fn unnamed() -> String {
    "manifest".to_owned()
}

/// What is to be applied.
pub(super) async fn read_request(request: Request) -> Result<ApplyRequest, ApiError> {
    let too_large = || ApiError::too_large("the manifest", cndl::MAX_MANIFEST_BYTES as u64);
    let declared = declared_length(request.headers());
    let body = read_body(request.into_body(), declared, "the request", APPLY_BYTES)
        .await
        .map_err(|error| {
            if error.status == StatusCode::PAYLOAD_TOO_LARGE {
                too_large()
            } else {
                error
            }
        })?;
    let request: ApplyRequest = serde_json::from_slice(&body)
        .map_err(|e| ApiError::bad_request("json", format!("the body is not an ApplyRequest: {e}; see /docs")))?;
    if request.manifest.len() > cndl::MAX_MANIFEST_BYTES {
        return Err(too_large());
    }
    Ok(request)
}

pub(super) async fn apply(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, ApiError> {
    let request = read_request(request).await?;
    let dry_run = request.dry_run;
    let brought: BTreeSet<String> = request.artifacts.values().cloned().collect();
    let now_unix_s = app.clock.now_s();
    let context = AdmissionContext {
        user: caller.name.clone(),
        now_unix_s,
    };
    // Hostile YAML or a slow policy takes a thread of its own and not the loop's.
    let not_judged = |_| ApiError::internal("the manifest was not judged: the hub's log says why");
    let manifest = tokio::task::spawn_blocking(move || read(&request))
        .await
        .map_err(not_judged)?;
    let manifest = manifest.map_err(|errors| manifest_error(&errors))?;
    let digests: BTreeSet<Digest> = manifest.digests().iter().filter_map(|d| d.parse().ok()).collect();
    let look = move |hub: &Hub| hub.provenance_facts(&digests, now_unix_s);
    let facts = app.hub.query(look).await?;
    let name = manifest.application().name.clone();
    let judging = {
        let app = app.clone();
        move || app.policy.admit_proved(manifest, &context, &facts)
    };
    let judged = tokio::task::spawn_blocking(judging).await.map_err(not_judged)?;
    let admitted = match judged {
        Ok(admitted) => admitted,
        Err(denied) => return Err(deny(&app, &caller, format!("application {name}"), &denied, dry_run).await),
    };
    if dry_run {
        return try_out(&app, admitted, &brought)
            .await
            .map(|plan| Json(plan).into_response());
    }
    let name = admitted.application().name.clone();
    let draft = draft(&app, &caller, "apply", format!("application {name}"));
    let outcome = app.hub.change(Change::Apply(Box::new(admitted)), Some(draft)).await?;
    answer(outcome)
}

fn read(request: &ApplyRequest) -> Result<Manifest, ManifestErrors> {
    cndl::parse(&request.manifest, &request.source).and_then(|m| m.resolve_files(&request.artifacts))
}

pub(super) fn manifest_error(errors: &ManifestErrors) -> ApiError {
    let more = if errors.truncated { " and more" } else { "" };
    let message = format!(
        "{}: {} mistake(s){more} in the manifest:\n{errors}",
        errors.source_name,
        errors.errors.len()
    );
    ApiError::unprocessable("manifest", message).with(&errors.errors)
}

pub(super) async fn deny(app: &App, caller: &Caller, object: String, denied: &PolicyDenied, dry_run: bool) -> ApiError {
    if !dry_run {
        let mut draft = draft(app, caller, "apply", object);
        (draft.outcome, draft.detail) = ("denied", limits::clip(&denied.to_string()));
        // Nothing was changed: that it cannot be written down is no reason for another answer.
        if let Err(error) = app.hub.audit(draft).await {
            tracing::warn!(%error, "a denial is not in the audit log");
        }
    }
    let reasons = denied
        .reasons
        .iter()
        .map(|(policy, message)| format!("{policy}: {message}"));
    ApiError::new(StatusCode::FORBIDDEN, "policy", denied.to_string()).with(reasons)
}

/// `brought` are the digests of files that an apply would upload first; a plan does not need them.
async fn try_out(app: &App, admitted: AdmittedManifest, brought: &BTreeSet<String>) -> Result<Value, ApiError> {
    let library = app.library.clone();
    let missing = |d: &&str| d.parse().map_or(true, |d: Digest| !library.knows(&d));
    let unknown: BTreeSet<String> = admitted
        .manifest()
        .digests()
        .into_iter()
        .filter(missing)
        .map(str::to_owned)
        .collect();
    let never = |d: &String| format!("artifact {d} was never uploaded");
    let reasons: Vec<String> = unknown.iter().filter(|d| !brought.contains(*d)).map(never).collect();
    if !reasons.is_empty() {
        return Err(refused(reasons));
    }
    let asked = admitted.clone();
    let look = move |hub: &Hub| (hub.secret_mistakes(asked.manifest()), hub.secrets());
    let (mistakes, secrets) = app.hub.query(look).await?;
    if !mistakes.is_empty() {
        return Err(manifest_error(&admitted.manifest().mistakes(mistakes)));
    }
    let used: BTreeSet<String> = admitted.manifest().secrets().map(|(.., s)| s.name.clone()).collect();
    let copy = |hub: &Hub| Fleet {
        nodes: hub.nodes(),
        applications: hub.applications().iter().filter_map(|n| hub.application(n)).collect(),
    };
    let fleet = app.hub.query(copy).await?;
    let (asked, now_s) = (admitted.clone(), app.clock.now_s());
    // What is uploaded first brings its provenance with it.
    let look = move |hub: &Hub| hub.unproven(asked.application(), &[], Some(now_s));
    let unproven = app.hub.query(look).await?;
    let unproven: BTreeMap<String, String> = unproven.into_iter().map(|(name, why, _)| (name, why)).collect();
    let planned = tokio::task::spawn_blocking(move || plan(&admitted, &fleet, &unknown)).await;
    let mut planned = planned.map_err(|_| ApiError::internal("the plan failed: the hub's log says why"))?;
    if !unproven.is_empty() {
        planned["unproven"] = json!(unproven);
    }
    let versions = secrets.iter().filter(|s| used.contains(s.name.as_str()));
    let versions: BTreeMap<&str, u64> = versions.map(|s| (s.name.as_str(), s.version)).collect();
    if !versions.is_empty() {
        planned["secrets"] = json!(versions);
    }
    Ok(planned)
}

fn refused(reasons: Vec<String>) -> ApiError {
    ApiError::unprocessable("refused", format!("nothing was changed: {}", reasons.join("; "))).with(reasons)
}

pub(super) fn answer(outcome: Outcome) -> Result<Response, ApiError> {
    match outcome {
        Outcome::Refused { reasons } => Err(refused(reasons)),
        Outcome::Mistakes(errors) => Err(manifest_error(&errors)),
        Outcome::NotFound { what } => Err(ApiError::not_found(&what)),
        done => Ok(Json(done).into_response()),
    }
}

pub(super) fn draft(app: &App, caller: &Caller, action: &'static str, object: String) -> Draft {
    let at_ms = app.clock.now().wall_ms;
    Draft {
        at_ms,
        user: caller.name.clone(),
        action,
        object,
        outcome: "done",
        detail: String::new(),
    }
}

pub(super) async fn list(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    let look = |hub: &Hub| {
        hub.applications()
            .iter()
            .filter_map(|n| hub.application(n))
            .collect::<Vec<_>>()
    };
    let all = app.hub.query(look).await?;
    let short = |a: cnova_hub_core::views::ApplicationInfo| {
        let workloads: BTreeMap<_, _> = a
            .workloads
            .into_iter()
            .map(|(n, w)| (n, json!({"nodes": w.nodes, "summary": w.summary})))
            .collect();
        json!({
            "name": a.name, "generation": a.generation, "user": a.user,
            "workloads": workloads, "problems": a.problems,
        })
    };
    Ok(Json(
        json!({"applications": all.into_iter().map(short).collect::<Vec<_>>()}),
    ))
}

pub(super) async fn get(State(app): State<App>, Path(name): Path<String>) -> Result<Response, ApiError> {
    let name: Name = parse(&name)?;
    let wanted = name.clone();
    let found = app.hub.query(move |hub| hub.application(&wanted)).await?;
    found
        .map(|a| Json(a).into_response())
        .ok_or_else(|| ApiError::not_found(&format!("application {name}")))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExplainQuery {
    node: Option<String>,
}

pub(super) async fn explain(
    State(app): State<App>,
    Path((application, workload)): Path<(String, String)>,
    asked: Result<Query<ExplainQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let id = WorkloadId {
        application: parse(&application)?,
        name: parse(&workload)?,
    };
    let only: Option<NodeId> = query(asked)?.node.as_deref().map(parse).transpose()?;
    let wanted = id.clone();
    let found = app.hub.query(move |hub| hub.explain(&wanted)).await?;
    let mut found = found.ok_or_else(|| ApiError::not_found(&format!("workload {id}; see /v1/applications")))?;
    if let Some(node) = only {
        found.nodes.retain(|n| n.node == node);
        found.not.retain(|n, _| *n == node.as_str());
        if found.nodes.is_empty() && found.not.is_empty() {
            return Err(ApiError::not_found(&format!("node {node}")));
        }
    }
    let mut histories = BTreeMap::new();
    for node in found.nodes.iter().take(HISTORIES) {
        let entries = app.store.history(node.node.clone(), LIMIT_MAX).await?;
        let said = entries
            .into_iter()
            .filter(|e| is_about(&e.body, &id))
            .take(HISTORY_ENTRIES);
        histories.insert(node.node.clone(), said.collect::<Vec<_>>());
    }
    let mut value = serde_json::to_value(found).unwrap_or_default();
    value["as_of_ms"] = json!(app.clock.now().wall_ms);
    value["history"] = json!(histories);
    Ok(Json(value))
}

fn is_about(body: &Value, id: &WorkloadId) -> bool {
    match Body::deserialize(body) {
        Ok(Body::Workload(w)) => w.id == *id,
        Ok(Body::Gone { id: gone }) => gone == *id,
        _ => false,
    }
}

pub(super) async fn delete(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let name: Name = parse(&name)?;
    let draft = draft(&app, &caller, "delete", format!("application {name}"));
    answer(app.hub.change(Change::Delete(name), Some(draft)).await?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TimelineQuery {
    generation: Option<u64>,
}

pub(super) async fn timeline(
    State(app): State<App>,
    Path(name): Path<String>,
    asked: Result<Query<TimelineQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let name: Name = parse(&name)?;
    let asked = query(asked)?.generation;
    let wanted = name.clone();
    let look = move |hub: &Hub| {
        let generation = asked.or_else(|| hub.application(&wanted).map(|a| a.generation))?;
        let stages = hub.timeline(&wanted, generation);
        (!stages.is_empty() || hub.applications().contains(&wanted)).then_some((generation, stages))
    };
    let (generation, stages) = app
        .hub
        .query(look)
        .await?
        .ok_or_else(|| ApiError::not_found(&format!("application {name}")))?;
    Ok(Json(json!({"name": name, "generation": generation, "stages": stages})))
}
