//! Who may enrol, and who did.

use std::str::FromStr;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cnova_hub_core::enrol::{EnrolChange, EnrolmentInfo, KnownTpm, NamePattern, SiteRule, StoredToken, token_id};
use cnova_hub_core::{Hub, Outcome};
use cnova_shared::ids::{Digest, NodeId, SitePath};
use ring::rand::{SecureRandom, SystemRandom};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::applications::draft;
use super::error::ApiError;
use super::{App, declared_length, parse, read_body};
use crate::event_loop::Change;
use crate::tokens::Caller;

/// Largest request.
const BODY_BYTES: usize = 16 * 1024;
/// Most uses of one token.
const USES_MAX: u32 = 10_000;
/// Longest life of a token, seconds: a year.
const TOKEN_SECONDS_MAX: u64 = 366 * 86_400;
/// Random bytes of a token.
const TOKEN_BYTES: usize = 32;
/// What a token begins with, so that one that was lost is recognised.
const TOKEN_PREFIX: &str = "cnova-enrol-";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenRequest {
    site: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default = "once")]
    uses: u32,
    expires_in_s: u64,
}

const fn once() -> u32 {
    1
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KnownRequest {
    fingerprint: String,
    node: String,
    site: String,
}

pub(super) async fn show(State(app): State<App>) -> Result<Json<EnrolmentInfo>, ApiError> {
    Ok(Json(app.hub.query(Hub::enrolment).await?))
}

pub(super) async fn add_token(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, ApiError> {
    let asked: TokenRequest = body(request).await?;
    if !(1..=USES_MAX).contains(&asked.uses) {
        return Err(field("uses", format!("{} is not from 1 to {USES_MAX}", asked.uses)));
    }
    if !(1..=TOKEN_SECONDS_MAX).contains(&asked.expires_in_s) {
        let text = format!("{} is not from 1 to {TOKEN_SECONDS_MAX}", asked.expires_in_s);
        return Err(field("expires_in_s", text));
    }
    let site: SiteRule = named("site", &asked.site)?;
    let name = asked
        .name
        .as_deref()
        .map(|n| named::<NamePattern>("name", n))
        .transpose()?;
    let mut random = [0; TOKEN_BYTES];
    SystemRandom::new()
        .fill(&mut random)
        .map_err(|_| ApiError::internal("the system gives no random numbers"))?;
    let text = format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(random));
    let hash = Digest::of(text.as_bytes());
    let (id, made_s) = (token_id(&hash), app.clock.now_s());
    let token = StoredToken {
        site,
        name,
        expires_s: made_s + asked.expires_in_s,
        uses_left: asked.uses,
        by: caller.name.clone(),
        made_s,
    };
    let expires_s = token.expires_s;
    let detail = format!("site {}, {} use(s), until {expires_s}", token.site, token.uses_left);
    let change = EnrolChange::AddToken { hash, token };
    change_it(
        &app,
        &caller,
        change,
        "enrol-token",
        format!("enrolment token {id}"),
        detail,
    )
    .await?;
    // The one time that the text leaves the hub; its hash is all that stays.
    let answer = json!({"id": id, "token": text, "expires_s": expires_s});
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

pub(super) async fn revoke_token(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let object = format!("enrolment token {}", cnova_shared::limits::clip_to(&id, 64));
    let change = EnrolChange::RevokeToken(id);
    change_it(&app, &caller, change, "enrol-token-revoke", object, String::new()).await
}

pub(super) async fn add_known(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, ApiError> {
    let asked: KnownRequest = body(request).await?;
    let fingerprint: Digest = named("fingerprint", &asked.fingerprint)?;
    let node: NodeId = named("node", &asked.node)?;
    let site: SitePath = named("site", &asked.site)?;
    let detail = format!("{} at {site}", fingerprint.hex());
    let object = format!("TPM of {node}");
    let known = KnownTpm {
        node,
        site,
        by: caller.name.clone(),
        made_s: app.clock.now_s(),
    };
    let change = EnrolChange::AddKnown { fingerprint, known };
    change_it(&app, &caller, change, "enrol-ek", object, detail).await
}

pub(super) async fn remove_known(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(fingerprint): Path<String>,
) -> Result<Response, ApiError> {
    let fingerprint: Digest = parse(&fingerprint)?;
    let object = format!("TPM {}", fingerprint.hex());
    let change = EnrolChange::DropKnown(fingerprint);
    change_it(&app, &caller, change, "enrol-ek-remove", object, String::new()).await
}

pub(super) async fn forget(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(node): Path<String>,
) -> Result<Response, ApiError> {
    let node: NodeId = parse(&node)?;
    let object = format!("node {node}");
    change_it(
        &app,
        &caller,
        EnrolChange::Forget(node),
        "enrol-forget",
        object,
        String::new(),
    )
    .await
}

async fn change_it(
    app: &App,
    caller: &Caller,
    change: EnrolChange,
    action: &'static str,
    object: String,
    detail: String,
) -> Result<Response, ApiError> {
    let mut audit = draft(app, caller, action, object);
    audit.detail = detail;
    match app.hub.change(Change::Enrolment(change), Some(audit)).await? {
        Outcome::NotFound { what } => Err(ApiError::not_found(&what)),
        Outcome::Refused { reasons } => Err(ApiError::unprocessable("refused", reasons.join("; "))),
        done => Ok(Json(done).into_response()),
    }
}

async fn body<T: DeserializeOwned>(request: Request) -> Result<T, ApiError> {
    let declared = declared_length(request.headers());
    let bytes = read_body(request.into_body(), declared, "the request", BODY_BYTES).await?;
    serde_json::from_slice(&bytes)
        .map_err(|e| ApiError::bad_request("json", format!("the body is not understood: {e}; see /docs")))
}

fn named<T: FromStr>(name: &str, text: &str) -> Result<T, ApiError>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|e: T::Err| field(name, e.to_string()))
}

fn field(name: &str, problem: String) -> ApiError {
    ApiError::bad_request("field", format!("{name}: {problem}"))
}
