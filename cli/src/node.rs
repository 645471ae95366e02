//! `cnova node revoke` and `cnova node readmit`.

use serde_json::{Value, json};

use crate::args::Node;
use crate::client::Hub;
use crate::failure::read_and_print_error;
use crate::output::Screen;
use crate::routes;

read_and_print_error!(NodeError {});

/// Runs the command.
pub(crate) fn run(what: &Node, hub: &Hub, screen: &mut Screen<'_>) -> Result<(), NodeError> {
    let answer: Value = match what {
        Node::Revoke {
            node,
            reason,
            keys_only,
        } => hub.post(
            &routes::revoke(node),
            &json!({ "reason": reason, "keys_only": keys_only }),
        )?,
        Node::Readmit { node, new_key } => hub.post(&routes::readmit(node), &json!({ "new_key": new_key }))?,
    };
    let text = answer.get("text").and_then(Value::as_str).unwrap_or("done").to_owned();
    Ok(screen.document(&answer, |s| s.line(&text))?)
}
