//! What is said on the socket: one line of JSON each way.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Phase;

/// Longest request line, in bytes.
pub const REQUEST_BYTES_MAX: usize = 4 << 10;
/// Longest reply line that a client reads, in bytes.
pub const REPLY_BYTES_MAX: usize = 64 << 10;
/// Connections that a runtime keeps open at once; one more closes the one that was idle longest.
pub const CONNECTIONS_MAX: usize = 8;
/// Counters that a runtime keeps for its workload; further names are dropped.
pub const COUNTERS_MAX: usize = 256;

/// A question to a runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Is the workload well? Answered with [`Health`].
    Health,
    /// What does it use? Answered with [`Metrics`].
    Metrics,
    /// End it. Answered at once; the exit file says when it is done.
    Stop {
        /// How long it may take before force is used, in milliseconds; the spec's if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        grace_ms: Option<u64>,
    },
}

/// What comes back: `ok` and the fields of the answer, or an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply<T> {
    /// Whether the request was understood and done.
    pub ok: bool,
    /// The answer's own fields.
    #[serde(flatten)]
    pub body: T,
}

/// How a workload is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Whether it does what it should, as far as the runtime can tell.
    pub healthy: bool,
    /// Where it is in its life.
    pub phase: Phase,
    /// Since it was started, in milliseconds.
    #[serde(default)]
    pub uptime_ms: u64,
    /// Why it is not healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What a workload uses and counts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// CPU time since the start, in milliseconds, the runtime's own included.
    pub cpu_ms: u64,
    /// Memory that counts against the limit, in bytes.
    pub memory_bytes: u64,
    /// Since the start, in milliseconds.
    pub uptime_ms: u64,
    /// Numbers that the workload publishes, by name; at most [`COUNTERS_MAX`].
    #[serde(default)]
    pub counters: BTreeMap<String, f64>,
    /// Bytes written to the log since the start: wear of the flash.
    #[serde(default)]
    pub log_bytes: u64,
    /// Write calls for the log since the start.
    #[serde(default)]
    pub log_writes: u64,
    /// Lines that could not be written, for instance because the disk was full.
    #[serde(default)]
    pub log_dropped_lines: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_look_as_documented() {
        for (request, text) in [
            (Request::Health, r#"{"op":"health"}"#),
            (Request::Metrics, r#"{"op":"metrics"}"#),
            (Request::Stop { grace_ms: Some(5) }, r#"{"op":"stop","grace_ms":5}"#),
            (Request::Stop { grace_ms: None }, r#"{"op":"stop"}"#),
        ] {
            assert_eq!(serde_json::to_string(&request).unwrap(), text);
            assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);
        }
    }

    #[test]
    fn replies_are_flat() {
        let reply = Reply {
            ok: true,
            body: Health {
                healthy: true,
                phase: Phase::Running,
                uptime_ms: 4,
                detail: None,
            },
        };
        let text = serde_json::to_string(&reply).unwrap();
        assert_eq!(text, r#"{"ok":true,"healthy":true,"phase":"running","uptime_ms":4}"#);
    }
}
