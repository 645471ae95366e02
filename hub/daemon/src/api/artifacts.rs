//! Uploads: streamed to the disk, never held in memory.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::BodyDataStream;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use cnova_hub_core::Hub;
use cnova_shared::ids::Digest;
use cnova_shared::limits;
use futures_util::StreamExt;
use ring::digest::{Context, SHA256};
use serde_json::{Value, json};
use tokio::fs::File;
use tokio::io::{AsyncWriteExt, BufWriter};
use tokio::sync::SemaphorePermit;
use tokio::time::timeout;

use super::error::ApiError;
use super::{App, declared_length, drain_request, parse};
use crate::library::Draft;
use crate::store::audit;
use crate::tokens::Caller;

/// Longest pause between two pieces of an upload.
const IDLE: Duration = Duration::from_secs(30);
const BUFFER_BYTES: usize = 1 << 20;
const DIGEST_HEADER: &str = "x-cnova-digest";

pub(super) async fn upload(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, ApiError> {
    let (expected, _place) = match admit(&app, request.headers()) {
        Ok(admitted) => admitted,
        Err(error) => {
            drain_request(request).await;
            return Err(error);
        }
    };
    let mut frames = request.into_body().into_data_stream();
    let draft = app.library.draft();
    let (found, size) = receive(&mut frames, &draft).await?;
    if size == 0 {
        return Err(ApiError::unprocessable("empty", "the artifact has no bytes"));
    }
    if let Some(expected) = expected.filter(|e| *e != found) {
        let message = format!("the bytes that came have the digest {found}, not {expected}: they are thrown away");
        return Err(ApiError::unprocessable("digest-mismatch", message));
    }
    let library = app.library.clone();
    let was_there = library.knows(&found);
    let kept = tokio::task::spawn_blocking(move || library.import(&draft)).await;
    kept.map_err(|_| ApiError::internal("the artifact was not kept: the hub's log says why"))??;
    let draft = audit::Draft {
        at_ms: app.clock.now().wall_ms,
        user: caller.name,
        action: "upload",
        object: format!("artifact {found}"),
        outcome: "done",
        detail: format!("{size} bytes"),
    };
    app.hub.uploaded(found, size, draft).await?;
    if !app.library.artifacts().has(&found) {
        // It lay there unused, and was collected in the same moment.
        return Err(ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "busy",
            "the artifact was being removed: upload it again",
        ));
    }
    app.library.promise(found);
    app.library.learn(found);
    let status = if was_there { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, Json(json!({"digest": found, "size": size}))).into_response())
}

/// What can be said of an upload before its first byte.
fn admit<'a>(app: &'a App, headers: &HeaderMap) -> Result<(Option<Digest>, SemaphorePermit<'a>), ApiError> {
    let expected = expected(headers)?;
    if declared_length(headers).is_some_and(|n| n > limits::ARTIFACT_BYTES) {
        return Err(ApiError::too_large("the artifact", limits::ARTIFACT_BYTES));
    }
    let busy = |_| {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "busy",
            "too many uploads at once; try again",
        )
    };
    Ok((expected, app.uploads.try_acquire().map_err(busy)?))
}

fn expected(headers: &HeaderMap) -> Result<Option<Digest>, ApiError> {
    let Some(value) = headers.get(DIGEST_HEADER) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default();
    let digest = text
        .parse()
        .map_err(|e| ApiError::bad_request("digest", format!("{DIGEST_HEADER}: {e}")))?;
    Ok(Some(digest))
}

async fn receive(frames: &mut BodyDataStream, draft: &Draft) -> Result<(Digest, u64), ApiError> {
    let failed = |e: std::io::Error| ApiError::from_io(&e, &format!("the upload cannot be written: {e}"));
    let file = File::create_new(draft.path()).await.map_err(failed)?;
    let mut file = BufWriter::with_capacity(BUFFER_BYTES, file);
    let mut context = Context::new(&SHA256);
    let mut size = 0_u64;
    loop {
        let frame = match timeout(IDLE, frames.next()).await {
            Ok(None) => break,
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(_))) => {
                return Err(ApiError::bad_request(
                    "truncated",
                    format!("the upload ended early, after {size} bytes"),
                ));
            }
            Err(_) => {
                let message = format!("nothing came for {} s, after {size} bytes", IDLE.as_secs());
                return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", message));
            }
        };
        size += frame.len() as u64;
        if size > limits::ARTIFACT_BYTES {
            return Err(ApiError::too_large("the artifact", limits::ARTIFACT_BYTES));
        }
        context.update(&frame);
        file.write_all(&frame).await.map_err(failed)?;
    }
    file.flush().await.map_err(failed)?;
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    Ok((Digest(digest), size))
}

pub(super) async fn head(State(app): State<App>, Path(digest): Path<String>) -> Result<StatusCode, ApiError> {
    let digest: Digest = parse(&digest)?;
    if app.library.knows(&digest) {
        app.library.promise(digest);
        Ok(StatusCode::OK)
    } else {
        Err(ApiError::not_found(&format!("artifact {digest}")))
    }
}

pub(super) async fn list(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    let artifacts = app.hub.query(Hub::artifacts).await?;
    Ok(Json(json!({"artifacts": artifacts})))
}

/// Removes everything that nothing uses, however short a time ago it came.
pub(super) async fn collect(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Value>, ApiError> {
    let sizes = |hub: &Hub| {
        let unused = hub.unused_artifacts();
        let all = hub.artifacts().into_iter().map(|a| (a.digest, a.size));
        all.filter(|(d, _)| unused.contains(d))
            .collect::<BTreeMap<Digest, u64>>()
    };
    let unused = app.hub.query(sizes).await?;
    app.hub.collect(unused.keys().copied().collect())?;
    // What somebody began to use meanwhile has stayed.
    let left = app.hub.query(sizes).await?;
    let gone: Vec<(&Digest, &u64)> = unused.iter().filter(|(d, _)| !left.contains_key(d)).collect();
    let bytes: u64 = gone.iter().map(|(_, size)| **size).sum();
    if !gone.is_empty() {
        let draft = audit::Draft {
            at_ms: app.clock.now().wall_ms,
            user: caller.name,
            action: "collect",
            object: "artifacts".to_owned(),
            outcome: "done",
            detail: format!("{} removed, {bytes} bytes", gone.len()),
        };
        app.hub.audit(draft).await?;
    }
    let digests: Vec<&Digest> = gone.into_iter().map(|(d, _)| d).collect();
    Ok(Json(json!({"removed": digests, "bytes": bytes})))
}
