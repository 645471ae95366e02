//! What the API says when it says no: always `{"error":{"code","message","details":[...]}}`.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use cnova_store::{ArtifactError, CallError};
use serde::Serialize;
use serde_json::{Value, json};

use crate::event_loop::Unavailable;

/// An answer that is not what was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// A stable word for programs.
    pub code: &'static str,
    /// A sentence for people.
    pub message: String,
    /// Each complete in itself: texts, or the mistakes in a manifest.
    pub details: Vec<Value>,
}

impl ApiError {
    /// An error without details.
    #[must_use]
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            details: Vec::new(),
        }
    }

    /// The same with details.
    #[must_use]
    pub fn with<T: Serialize>(mut self, details: impl IntoIterator<Item = T>) -> Self {
        // What is no JSON has no place in an answer either.
        self.details = details
            .into_iter()
            .filter_map(|d| serde_json::to_value(d).ok())
            .collect();
        self
    }

    /// 400.
    #[must_use]
    pub fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// 404.
    #[must_use]
    pub fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", format!("there is no {what}"))
    }

    /// 422.
    #[must_use]
    pub fn unprocessable(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, message)
    }

    /// 413.
    #[must_use]
    pub fn too_large(what: &str, limit: u64) -> Self {
        let short = match limit >> 20 {
            0 => format!("{} KiB", limit >> 10),
            mib => format!("{mib} MiB"),
        };
        let message = format!("{what} is too large: at most {limit} bytes ({short}) are taken");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", message)
    }

    /// 507.
    #[must_use]
    pub fn no_room(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INSUFFICIENT_STORAGE, "no-room", message)
    }

    /// 500.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status.is_server_error() {
            tracing::warn!(status = self.status.as_u16(), code = self.code, self.message);
        }
        let body = json!({"error": {"code": self.code, "message": self.message, "details": self.details}});
        let mut response = (self.status, Json(body)).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<Unavailable> for ApiError {
    fn from(why: Unavailable) -> Self {
        match why {
            Unavailable::Busy => Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", why.to_string()),
            Unavailable::Stopping => Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", why.to_string()),
            Unavailable::Store(_) => Self::new(StatusCode::INSUFFICIENT_STORAGE, "store", why.to_string()),
        }
    }
}

impl From<CallError> for ApiError {
    fn from(error: CallError) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "store",
            format!("the store did not answer: {error}"),
        )
    }
}

impl From<ArtifactError> for ApiError {
    fn from(error: ArtifactError) -> Self {
        match &error {
            ArtifactError::NoRoom { .. } => Self::no_room(format!(
                "{error}; raise limits.max_artifact_bytes in the hub's configuration"
            )),
            ArtifactError::Io { source, .. } => Self::from_io(source, &error.to_string()),
        }
    }
}

impl ApiError {
    /// A full disk is not a defect.
    #[must_use]
    pub fn from_io(error: &std::io::Error, what: &str) -> Self {
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Self::no_room(format!("the hub's disk is full: {what}"))
            }
            _ => Self::internal(what),
        }
    }
}
