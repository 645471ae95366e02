//! Before every handler: who asks, whether that is enough, and how long it may take.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::ApiError;
use super::operations::{Access, Operation};
use super::{App, drain_request};
use crate::tokens::{Caller, Role};

/// Lets a request through to its operation's handler.
pub(super) async fn guard(
    State((app, op)): State<(App, &'static Operation)>,
    mut request: Request,
    next: Next,
) -> Response {
    app.traffic.requests.one();
    if let Access::Role(needed) = op.access {
        match authorize(&app, request.headers(), needed) {
            Ok(caller) => drop(request.extensions_mut().insert(caller)),
            Err(error) => {
                drain_request(request).await;
                return error.into_response();
            }
        }
    }
    match tokio::time::timeout(op.timeout, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let message = format!(
                "not answered within {} s; what was begun may still be done",
                op.timeout.as_secs()
            );
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "timeout", message).into_response()
        }
    }
}

fn authorize(app: &App, headers: &HeaderMap, needed: Role) -> Result<Caller, ApiError> {
    let unauthorized = |message: &str| ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", message);
    let value = headers
        .get(header::AUTHORIZATION)
        .ok_or_else(|| unauthorized("a token is needed: send the header Authorization: Bearer <token>"))?;
    let token = value
        .to_str()
        .ok()
        .and_then(|v| v.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .ok_or_else(|| unauthorized("the Authorization header is not of the form: Bearer <token>"))?;
    let caller = app
        .tokens
        .find(token)
        .ok_or_else(|| unauthorized("this token is not known to the hub"))?;
    if caller.role < needed {
        let message = format!(
            "{} is {}; this needs {} or higher",
            caller.name,
            caller.role.as_str(),
            needed.as_str()
        );
        return Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden", message));
    }
    Ok(caller.clone())
}
