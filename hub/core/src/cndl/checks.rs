//! What a schema cannot say: quantities in range, names unique, fields that must fit each other. Works on the raw value,
//! so that a mistake elsewhere hides none of these; a field that the schema already refused is passed over.

use std::collections::{BTreeMap, BTreeSet};

use cnova_shared::ids::WorkloadId;
use cnova_shared::limits;
use serde_json::Value;

use super::Origin;
use super::errors::{ManifestError, quoted};
use super::quantity::{self, InvalidQuantity};
use super::site_pattern::SitePattern;
use super::tree::Node;

/// Everything that is wrong beyond the schema.
pub(super) fn check(tree: &Node, value: &Value, schema_errors: &[ManifestError], origin: Origin) -> Vec<ManifestError> {
    let refused = schema_errors.iter().map(|e| e.pointer.as_str()).collect();
    let mut checker = Checker {
        tree,
        root: value,
        refused,
        errors: Vec::new(),
    };
    let workloads = value.get("workloads").and_then(Value::as_array).map_or(0, Vec::len);
    for index in 0..workloads.min(super::MAX_WORKLOADS) {
        let at = format!("/workloads/{index}");
        checker.workload(&at);
        checker.conditions(&at);
        checker.secrets(&at);
        if origin == Origin::Written {
            checker.settings(&at);
        }
    }
    if workloads <= super::MAX_WORKLOADS {
        checker.needs(workloads);
        checker.attestation(workloads);
    }
    let names: Vec<String> = (0..workloads).map(|i| format!("/workloads/{i}/name")).collect();
    checker.unique(&names, "workload name");
    checker.errors
}

/// The same for a manifest of a system.
pub(super) fn check_system(tree: &Node, value: &Value, schema_errors: &[ManifestError]) -> Vec<ManifestError> {
    let refused = schema_errors.iter().map(|e| e.pointer.as_str()).collect();
    let mut checker = Checker {
        tree,
        root: value,
        refused,
        errors: Vec::new(),
    };
    for field in [
        "attempt",
        "slots/tries",
        "rollout/atOnce",
        "rollout/maxFailures",
        "bundle/size",
    ] {
        checker.whole_number(&format!("/{field}"));
    }
    checker.site("/placement/site");
    checker.file_path("/bundle/file");
    if checker.get("/window").is_some() {
        checker.schedule("/window");
        if value.pointer("/window/for").is_none() {
            let hint = Some("such as for: 2h".to_owned());
            checker.push(
                "/window",
                "the field \"for\" is missing: how long it is open".to_owned(),
                hint,
            );
        }
    }
    checker.quantity("/health/within", positive_duration);
    let within = checker.get("/health/within").and_then(|v| positive_duration(v).ok());
    let most = limits::SYSTEM_HEALTHY_WITHIN_S * 1000;
    if let Some(ms) = within.filter(|ms| *ms > most) {
        checker.push("/health/within", format!("{ms} ms is too long: at most an hour"), None);
    }
    for index in 0..checker.items("/health/workloads") {
        let at = format!("/health/workloads/{index}");
        if let Some(text) = checker.text(&at)
            && text.parse::<WorkloadId>().is_err()
        {
            let hint = Some("write application/workload".to_owned());
            checker.push(&at, format!("{} is not a workload", quoted(text)), hint);
        }
    }
    checker.errors
}

pub(super) struct Checker<'a> {
    tree: &'a Node,
    pub(super) root: &'a Value,
    refused: BTreeSet<&'a str>,
    errors: Vec<ManifestError>,
}

impl<'a> Checker<'a> {
    pub(super) fn push(&mut self, pointer: &str, message: String, hint: Option<String>) {
        self.push_at(pointer, false, message, hint);
    }

    pub(super) fn push_at(&mut self, pointer: &str, at_key: bool, message: String, hint: Option<String>) {
        let position = if at_key {
            self.tree.key_position_of(pointer)
        } else {
            self.tree.position_of(pointer)
        };
        self.errors.push(ManifestError {
            line: position.line,
            column: position.column,
            pointer: pointer.to_owned(),
            message,
            hint,
        });
    }

    /// The value, unless it is absent or the schema has already refused it.
    pub(super) fn get(&self, pointer: &str) -> Option<&'a Value> {
        if self.refused.contains(pointer) {
            None
        } else {
            self.root.pointer(pointer)
        }
    }

    pub(super) fn text(&self, pointer: &str) -> Option<&'a str> {
        self.get(pointer)?.as_str()
    }

    pub(super) fn items(&self, pointer: &str) -> usize {
        self.get(pointer).and_then(Value::as_array).map_or(0, Vec::len)
    }

    fn workload(&mut self, at: &str) {
        self.quantities(at);
        for field in [
            "priority",
            "restart/crashLoopAfter",
            "placement/replicas",
            "artifact/size",
        ] {
            self.whole_number(&format!("{at}/{field}"));
        }
        self.site(&format!("{at}/placement/site"));
        self.spread(at);
        self.file_path(&format!("{at}/artifact/file"));
        let files = self.items(&format!("{at}/files"));
        for index in 0..files {
            self.file_path(&format!("{at}/files/{index}/artifact/file"));
            self.whole_number(&format!("{at}/files/{index}/artifact/size"));
            self.mount_path(&format!("{at}/files/{index}/path"));
        }
        let paths: Vec<String> = (0..files).map(|i| format!("{at}/files/{i}/path")).collect();
        self.unique(&paths, "file path");
        for index in 0..self.items(&format!("{at}/grants/network")) {
            self.peer(&format!("{at}/grants/network/{index}"));
        }
    }

    fn quantities(&mut self, at: &str) {
        self.quantity(&format!("{at}/resources/memory"), quantity::size);
        self.quantity(&format!("{at}/resources/cpu"), quantity::cpu);
        self.quantity(&format!("{at}/limits/log"), quantity::size);
        self.quantity(&format!("{at}/stopGrace"), quantity::duration);
        self.quantity(&format!("{at}/limits/wallTime"), positive_duration);
        self.quantity(&format!("{at}/restart/backoffMin"), positive_duration);
        self.quantity(&format!("{at}/restart/backoffMax"), positive_duration);
        let backoff = |field: &str| {
            self.get(&format!("{at}/restart/{field}"))
                .and_then(|v| positive_duration(v).ok())
        };
        let min = backoff("backoffMin").unwrap_or(super::DEFAULT_BACKOFF_MIN_MS);
        let max = backoff("backoffMax").unwrap_or(super::DEFAULT_BACKOFF_MAX_MS);
        if min > max {
            let message = format!("backoffMin ({min} ms) is longer than backoffMax ({max} ms)");
            self.push(&format!("{at}/restart"), message, None);
        }
    }

    pub(super) fn quantity<T>(&mut self, pointer: &str, parse: impl Fn(&Value) -> Result<T, InvalidQuantity>) {
        if let Some(Err(why)) = self.get(pointer).map(parse) {
            let written = self.root.pointer(pointer).map(ToString::to_string).unwrap_or_default();
            self.push(
                pointer,
                format!("{} {why}", written.trim_matches('"').escape_debug()),
                None,
            );
        }
    }

    /// JSON Schema takes 5.0 for an integer; we want it written as one, so that every reader agrees.
    pub(super) fn whole_number(&mut self, pointer: &str) {
        if let Some(Value::Number(number)) = self.get(pointer)
            && number.as_u64().is_none()
        {
            self.push(pointer, format!("expected a whole number, found {number}"), None);
        }
    }

    fn site(&mut self, pointer: &str) {
        if let Some(text) = self.text(pointer)
            && let Err(why) = SitePattern::new(text)
        {
            let hint = "segments joined by \"/\", for example plant-7/line-2/**".to_owned();
            self.push(pointer, format!("the site pattern {}: {why}", quoted(text)), Some(hint));
        }
    }

    fn spread(&mut self, at: &str) {
        let pointer = format!("{at}/placement/spread");
        if self.get(&pointer) == Some(&Value::Bool(false)) {
            let message = "false is not possible: a node runs a workload at most once".to_owned();
            self.push(&pointer, message, Some("remove the line".to_owned()));
        }
    }

    fn file_path(&mut self, pointer: &str) {
        if let Some(text) = self.text(pointer)
            && (text.ends_with('/') || text.contains('\\'))
        {
            let message = format!("{} does not name a file", quoted(text));
            self.push(
                pointer,
                message,
                Some("a path with forward slashes, relative to the manifest".to_owned()),
            );
        }
    }

    pub(super) fn mount_path(&mut self, pointer: &str) {
        if let Some(text) = self.text(pointer)
            && text.split('/').any(|s| s == "." || s == "..")
        {
            self.push(
                pointer,
                format!("{} must not contain \".\" or \"..\"", quoted(text)),
                None,
            );
        }
    }

    fn peer(&mut self, pointer: &str) {
        let port = self
            .text(pointer)
            .and_then(|t| t.rsplit_once(':'))
            .map(|(_, port)| port);
        if let Some(port) = port
            && port != "*"
            && !port.parse::<u16>().is_ok_and(|p| p > 0)
        {
            self.push(
                pointer,
                format!("the port {} is not between 1 and 65535", quoted(port)),
                None,
            );
        }
    }

    pub(super) fn unique(&mut self, pointers: &[String], what: &str) {
        self.unique_from(pointers, what, 0);
    }

    /// The same, where the pointers before `first` are only compared with and were judged before.
    pub(super) fn unique_from(&mut self, pointers: &[String], what: &str, first: usize) {
        let judged: BTreeSet<&String> = pointers.iter().skip(first).collect();
        let mut seen: BTreeMap<&str, &String> = BTreeMap::new();
        for pointer in pointers {
            let Some(text) = self.text(pointer) else { continue };
            if let Some(first) = seen.get(text) {
                if !judged.contains(pointer) {
                    continue;
                }
                let line = self.tree.position_of(first).line;
                let message = format!("the {what} {} is already used in line {line}", quoted(text));
                self.push(pointer, message, None);
            } else {
                seen.insert(text, pointer);
            }
        }
    }
}

pub(super) fn positive_duration(value: &Value) -> Result<u64, InvalidQuantity> {
    quantity::duration(value).and_then(|ms| if ms == 0 { Err(InvalidQuantity::Zero) } else { Ok(ms) })
}
