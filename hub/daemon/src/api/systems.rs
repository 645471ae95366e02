//! Operating systems for nodes: applied, looked at, taken away.

use axum::extract::{Path, Request, State};
use axum::response::Response;
use axum::{Extension, Json};
use cnova_hub_core::Hub;
use cnova_hub_core::cndl::{self, ManifestErrors, SystemManifest};
use cnova_hub_core::policy::AdmissionContext;
use cnova_shared::ids::{Digest, Name};
use serde_json::{Value, json};

use super::applications::{ApplyRequest, answer, deny, draft, manifest_error, read_request};
use super::error::ApiError;
use super::{App, parse};
use crate::event_loop::Change;
use crate::tokens::Caller;

fn read(request: &ApplyRequest) -> Result<SystemManifest, ManifestErrors> {
    cndl::parse_system(&request.manifest, &request.source).and_then(|m| m.resolve_file(&request.artifacts))
}

pub(super) async fn apply(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, ApiError> {
    let request = read_request(request).await?;
    if request.dry_run {
        let why = "a system cannot be tried out: `cnova get systems` shows what stands between it and each node";
        return Err(ApiError::bad_request("dry-run", why.to_owned()));
    }
    let now_unix_s = app.clock.now_s();
    let context = AdmissionContext {
        user: caller.name.clone(),
        now_unix_s,
    };
    let not_judged = |_| ApiError::internal("the manifest was not judged: the hub's log says why");
    let manifest = tokio::task::spawn_blocking(move || read(&request))
        .await
        .map_err(not_judged)?;
    let manifest = manifest.map_err(|errors| manifest_error(&errors))?;
    let digest: Option<Digest> = manifest.system().bundle.digest().and_then(|d| d.parse().ok());
    let look = move |hub: &Hub| hub.provenance_facts(&digest.into_iter().collect(), now_unix_s);
    let facts = app.hub.query(look).await?;
    let object = format!("system {}", manifest.system().name);
    let judging = {
        let app = app.clone();
        move || app.policy.admit_system(manifest, &context, &facts)
    };
    let judged = tokio::task::spawn_blocking(judging).await.map_err(not_judged)?;
    let admitted = match judged {
        Ok(admitted) => admitted,
        Err(denied) => return Err(deny(&app, &caller, object, &denied, false).await),
    };
    let draft = draft(&app, &caller, "apply", object);
    answer(
        app.hub
            .change(Change::ApplySystem(Box::new(admitted)), Some(draft))
            .await?,
    )
}

pub(super) async fn list(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    let all = app.hub.query(Hub::systems).await?;
    Ok(Json(json!({"systems": all})))
}

pub(super) async fn delete(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let name: Name = parse(&name)?;
    let draft = draft(&app, &caller, "delete", format!("system {name}"));
    answer(app.hub.change(Change::DeleteSystem(name), Some(draft)).await?)
}
