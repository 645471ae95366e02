//! The HTTP API.

mod applications;
mod artifacts;
mod attestation;
mod attestation_operations;
mod enrolment;
mod enrolment_operations;
pub mod error;
mod fleet;
mod guard;
mod metrics;
pub mod openapi;
pub mod operations;
mod plan;
mod provenance;
mod schemas;
mod secret_operations;
mod secrets;
pub mod serve;
mod system_operations;
mod systems;
mod trust;
mod trust_operations;

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request};
use axum::http::StatusCode;
use axum::middleware;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, head, post, put};
use cnova_hub_core::policy::PolicySet;
use cnova_shared::ids::NodeId;
use futures_util::StreamExt;
use tokio::sync::Semaphore;

use self::error::ApiError;
use self::operations::{Id, operations};
use crate::clock::Clock;
use crate::event_loop::HubHandle;
use crate::library::Library;
use crate::signer::Signer;
use crate::store::Store;
use crate::tokens::Tokens;
use crate::traffic::Traffic;
use crate::vault::Vault;

/// Uploads at once; one more is turned away.
pub const UPLOADS_AT_ONCE: usize = 8;
/// What is read and thrown away of a body that is not wanted, so that the client reads the answer.
const DRAIN_BYTES: usize = 64 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// What the handlers work with. Cheap to clone.
pub type App = Arc<Api>;

/// What the handlers work with.
pub struct Api {
    /// The loop.
    pub hub: HubHandle,
    /// For what the core does not keep: history and audit log.
    pub store: Store,
    /// The artifacts.
    pub library: Arc<Library>,
    /// Who may.
    pub tokens: Tokens,
    /// What may.
    pub policy: PolicySet,
    /// Counters.
    pub traffic: Arc<Traffic>,
    /// The signing key's end.
    pub signer: Arc<Signer>,
    /// The key for secrets.
    pub vault: Arc<Vault>,
    /// The clocks.
    pub clock: Clock,
    /// The hub's name.
    pub node: NodeId,
    /// When its certificate ends, seconds since 1970.
    pub certificate_not_after_s: u64,
    /// Room for uploads.
    pub uploads: Semaphore,
}

/// The router: every operation of the table behind its guard.
pub fn router(app: App) -> Router {
    let mut router = Router::new();
    for op in operations() {
        let guarded = route(op.id).layer(middleware::from_fn_with_state((app.clone(), op), guard::guard));
        router = router.route(op.path, guarded);
    }
    router
        .fallback(async || ApiError::not_found("such path; see /docs"))
        .method_not_allowed_fallback(async || {
            ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method",
                "this path does not know that method; see /docs",
            )
        })
        .with_state(app)
}

fn route(id: Id) -> MethodRouter<App> {
    match id {
        Id::UploadArtifact => post(artifacts::upload),
        Id::ListArtifacts => get(artifacts::list),
        Id::CollectArtifacts => post(artifacts::collect),
        Id::HeadArtifact => head(artifacts::head),
        Id::AttachProvenance => post(provenance::attach),
        Id::Apply => post(applications::apply),
        Id::ListApplications => get(applications::list),
        Id::GetApplication => get(applications::get),
        Id::DeleteApplication => delete(applications::delete),
        Id::Explain => get(applications::explain),
        Id::GetTimeline => get(applications::timeline),
        Id::ListNodes => get(fleet::nodes),
        Id::GetNode => get(fleet::node),
        Id::GetTwin => get(fleet::twin),
        Id::GetHistory => get(fleet::history),
        Id::ListWorkloads => get(fleet::workloads),
        Id::GetLogs => get(fleet::logs),
        Id::GetMetrics => get(fleet::metrics),
        Id::GetAttestation => get(attestation::show),
        Id::Attest => post(attestation::demand),
        Id::Release => post(attestation::release),
        Id::ListReferences => get(attestation::references),
        Id::PutReference => post(attestation::put_set),
        Id::DeleteReference => delete(attestation::drop_set),
        Id::GetAudit => get(fleet::audit),
        Id::Enrolment => get(enrolment::show),
        Id::AddEnrolmentToken => post(enrolment::add_token),
        Id::RevokeEnrolmentToken => delete(enrolment::revoke_token),
        Id::AddEk => post(enrolment::add_known),
        Id::RemoveEk => delete(enrolment::remove_known),
        Id::ForgetNode => delete(enrolment::forget),
        Id::ListSecrets => get(secrets::list),
        Id::SetSecret => put(secrets::set),
        Id::AllowSecret => post(secrets::allow),
        Id::RemoveSecret => delete(secrets::remove),
        Id::ListSystems => get(systems::list),
        Id::ApplySystem => post(systems::apply),
        Id::DeleteSystem => delete(systems::delete),
        Id::GetTrust => get(trust::get),
        Id::PushBundle => post(trust::push),
        Id::RevokeNode => post(trust::revoke),
        Id::ReadmitNode => post(trust::readmit),
        Id::Health => get(fleet::health),
        Id::Metrics => get(metrics::metrics),
        Id::OpenApi => get(async || axum::Json(openapi::document())),
        Id::Docs => get(async || page(include_str!("docs.html"))),
        Id::Page => get(async || page(include_str!("fleet.html"))),
    }
}

/// A page that loads nothing from elsewhere and can be framed by nobody.
fn page(html: &'static str) -> Response {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                  base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    (
        [
            ("content-security-policy", policy),
            ("x-content-type-options", "nosniff"),
        ],
        Html(html),
    )
        .into_response()
}

/// Reads a name out of the path.
fn parse<T: FromStr>(text: &str) -> Result<T, ApiError>
where
    T::Err: std::fmt::Display,
{
    text.parse()
        .map_err(|e: T::Err| ApiError::bad_request("name", e.to_string()))
}

/// What stands behind the question mark, or why it is not understood.
fn query<T>(parsed: Result<Query<T>, QueryRejection>) -> Result<T, ApiError> {
    match parsed {
        Ok(Query(value)) => Ok(value),
        Err(error) => Err(ApiError::bad_request("query", error.body_text())),
    }
}

/// Reads a body of at most `limit` bytes.
async fn read_body(body: Body, declared: Option<u64>, what: &str, limit: usize) -> Result<Vec<u8>, ApiError> {
    let too_large = || ApiError::too_large(what, limit as u64);
    let mut frames = body.into_data_stream();
    let mut bytes = Vec::new();
    while declared.is_none_or(|n| n <= limit as u64) {
        match frames.next().await {
            None => return Ok(bytes),
            Some(Ok(frame)) if bytes.len() + frame.len() <= limit => bytes.extend_from_slice(&frame),
            Some(Ok(_)) => break,
            Some(Err(_)) => return Err(ApiError::bad_request("truncated", format!("{what} ended early"))),
        }
    }
    drop(bytes);
    drain(frames).await;
    Err(too_large())
}

/// A client that is still sending would otherwise see a broken connection instead of the answer.
async fn drain(mut frames: axum::body::BodyDataStream) {
    let mut left = DRAIN_BYTES;
    let rest = async {
        while let Some(Ok(frame)) = frames.next().await {
            left = left.saturating_sub(frame.len());
            if left == 0 {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(DRAIN_TIME, rest).await;
}

/// The same for a request that is refused for its head alone. A client that waits to be told to go on is not told so.
async fn drain_request(request: Request) {
    let waits = request.headers().contains_key(axum::http::header::EXPECT);
    if !waits && declared_length(request.headers()) != Some(0) {
        drain(request.into_body().into_data_stream()).await;
    }
}

/// What a client says its body's length is.
fn declared_length(headers: &axum::http::HeaderMap) -> Option<u64> {
    headers
        .get(axum::http::header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}
