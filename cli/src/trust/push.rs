//! `cnova trust push`: the hub takes a newer trust bundle and rolls it out.

use std::path::Path;

use serde_json::Value;

use super::{TrustError, files};
use crate::client::Hub;
use crate::failure::read_and_print_error;
use crate::output::Screen;
use crate::routes;

read_and_print_error!(PushError {
    #[error("{0}")]
    Trust(#[from] TrustError),
});

/// Runs `trust push`.
pub(crate) fn run(file: &Path, hub: &Hub, screen: &mut Screen<'_>) -> Result<(), PushError> {
    // A file that is no bundle is said to be none here, with its name.
    let bundle = files::read_bundle(file)?;
    let answer: Value = hub.post_bytes(routes::TRUST_BUNDLE, "application/cose", bundle.bytes())?;
    let text = answer.get("text").and_then(Value::as_str).unwrap_or("taken").to_owned();
    Ok(screen.document(&answer, |s| s.line(&text))?)
}
