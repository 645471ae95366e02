//! Secrets: set, granted, listed, removed. A value comes in and never goes out again.

use std::collections::BTreeSet;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::response::Response;
use axum::{Extension, Json};
use cnova_hub_core::Hub;
use cnova_hub_core::secrets::{Grantee, SecretChange};
use cnova_shared::ids::Name;
use cnova_shared::limits;
use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::applications::{answer, draft};
use super::error::ApiError;
use super::{App, declared_length, parse, query, read_body};
use crate::event_loop::Change;
use crate::tokens::Caller;

/// Longest list of grants.
const GRANTS_BYTES: usize = 16 * 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SetQuery {
    /// Separated by commas.
    allow: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Grants {
    allow: Vec<String>,
}

pub(super) async fn list(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    let secrets = app.hub.query(Hub::secrets).await?;
    Ok(Json(json!({"secrets": secrets})))
}

pub(super) async fn set(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    asked: Result<Query<SetQuery>, QueryRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    let name: Name = parse(&name)?;
    let allow = query(asked)?.allow;
    let allow = allow
        .map(|list| grantees(list.split(',').filter(|w| !w.is_empty())))
        .transpose()?;
    let declared = declared_length(request.headers());
    let value = read_body(request.into_body(), declared, "the secret", limits::SECRET_BYTES).await?;
    let value = Zeroizing::new(value);
    if value.is_empty() {
        return Err(ApiError::unprocessable("empty", "the value is empty"));
    }
    let locked = app
        .vault
        .lock(&name, &value)
        .map_err(|e| ApiError::internal(e.to_string()))?;
    let change = SecretChange::Set {
        name: name.clone(),
        locked: locked.bytes,
        tag: locked.tag,
        is_text: locked.is_text,
        allow,
        by: caller.name.clone(),
    };
    let draft = draft(&app, &caller, "secret-set", format!("secret {name}"));
    answer(app.hub.change(Change::Secret(change), Some(draft)).await?)
}

pub(super) async fn allow(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let name: Name = parse(&name)?;
    let declared = declared_length(request.headers());
    let body = read_body(request.into_body(), declared, "the request", GRANTS_BYTES).await?;
    let asked: Grants = serde_json::from_slice(&body)
        .map_err(|e| ApiError::bad_request("json", format!("the body is not understood: {e}; see /docs")))?;
    let allow = grantees(asked.allow.iter().map(String::as_str))?;
    let mut draft = draft(&app, &caller, "secret-allow", format!("secret {name}"));
    draft.detail = allow.iter().map(Grantee::to_string).collect::<Vec<_>>().join(" ");
    let change = SecretChange::Allow { name, allow };
    answer(app.hub.change(Change::Secret(change), Some(draft)).await?)
}

pub(super) async fn remove(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let name: Name = parse(&name)?;
    let draft = draft(&app, &caller, "secret-remove", format!("secret {name}"));
    answer(
        app.hub
            .change(Change::Secret(SecretChange::Remove(name)), Some(draft))
            .await?,
    )
}

fn grantees<'a>(list: impl Iterator<Item = &'a str>) -> Result<BTreeSet<Grantee>, ApiError> {
    let bad = |text: String| ApiError::bad_request("allow", text);
    let one = |text: &'a str| {
        text.parse::<Grantee>()
            .map_err(|e| bad(format!("allow: {e}; write an application, or application/workload")))
    };
    let all: BTreeSet<Grantee> = list.map(one).collect::<Result<_, _>>()?;
    if all.len() > limits::SECRET_GRANTS {
        return Err(bad(format!(
            "allow: {} of them, at most {}",
            all.len(),
            limits::SECRET_GRANTS
        )));
    }
    Ok(all)
}
