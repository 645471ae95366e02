//! Where artifacts are from: envelopes are taken, judged at once, and kept.

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use cnova_hub_core::Hub;
use cnova_provenance::ProvenanceError;
use cnova_shared::ids::Digest;
use cnova_shared::limits;
use cnova_shared::wire::v1;
use serde_json::json;

use super::error::ApiError;
use super::{App, declared_length, parse, read_body};
use crate::store::audit::Draft;
use crate::tokens::Caller;

/// Keeps an envelope beside its artifact. One that no builder of the trust bundle signed is kept, too: a later bundle
/// may name the builder. One that was changed, or that is about something else, is not.
pub(super) async fn attach(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(digest): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let subject: Digest = parse(&digest)?;
    let declared = declared_length(request.headers());
    let limit = limits::PROVENANCE_BYTES;
    let envelope = read_body(request.into_body(), declared, "the provenance", limit).await?;
    if !app.library.knows(&subject) {
        return Err(ApiError::not_found(&format!("artifact {subject}: upload it first")));
    }
    let now_s = app.clock.now_s();
    let copy = envelope.clone();
    let judge = move |hub: &Hub| hub.judge_provenance(&copy, &subject, now_s);
    let (fact, problem) = match app.hub.query(judge).await? {
        Ok(fact) => (Some(fact), None),
        Err(error) if may_come_to_count(&error) => (None, Some(error.to_string())),
        Err(error) => return Err(ApiError::unprocessable("provenance", error.to_string())),
    };
    let (library, bytes) = (app.library.clone(), envelope.clone());
    let kept = tokio::task::spawn_blocking(move || library.keep(&bytes)).await;
    let (digest, size) = kept.map_err(|_| ApiError::internal("it was not kept: the hub's log says why"))??;
    let was_there = app.library.knows(&digest);
    let detail = match (&fact, &problem) {
        (Some(fact), _) => format!("{digest}: {}, level {}", fact.builder, fact.level),
        (None, why) => format!("{digest}: {}", why.as_deref().unwrap_or_default()),
    };
    let audit = Draft {
        at_ms: app.clock.now().wall_ms,
        user: caller.name,
        action: "attest",
        object: format!("artifact {subject}"),
        outcome: "done",
        detail: limits::clip(&detail),
    };
    app.hub
        .provenance(subject, v1::Artifact { digest, size }, envelope, audit)
        .await?;
    app.library.promise(digest);
    app.library.promise(subject);
    app.library.learn(digest);
    let mut answer = json!({"digest": digest, "size": size, "subject": subject});
    if let Some(fact) = fact {
        answer["builder"] = json!(fact.builder);
        answer["level"] = json!(fact.level);
        answer["build_type"] = json!(fact.build_type);
    }
    if let Some(problem) = problem {
        answer["problem"] = json!(problem);
    }
    let status = if was_there { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, Json(answer)).into_response())
}

/// Whether another trust bundle could make an envelope count.
fn may_come_to_count(error: &ProvenanceError) -> bool {
    matches!(
        error,
        ProvenanceError::NoKnownKey { .. }
            | ProvenanceError::NotThisBuilder { .. }
            | ProvenanceError::BuilderExpired { .. }
    )
}
