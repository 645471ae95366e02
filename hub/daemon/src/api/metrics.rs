//! `/metrics` in the text format of Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use cnova_hub_core::Hub;

use super::App;
use super::error::ApiError;

const LINKS: [&str; 3] = ["connected", "disconnected", "unknown"];

#[derive(Default)]
struct Seen {
    links: BTreeMap<String, u64>,
    states: BTreeMap<String, u64>,
    in_sync: u64,
    applications: u64,
}

pub(super) async fn metrics(State(app): State<App>) -> Result<Response, ApiError> {
    let seen = app.hub.query(look).await?;
    let text = render(&app, &seen);
    Ok((
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        text,
    )
        .into_response())
}

fn look(hub: &Hub) -> Seen {
    let mut seen = Seen {
        applications: hub.applications().len() as u64,
        ..Seen::default()
    };
    for link in LINKS {
        seen.links.insert(link.to_owned(), 0);
    }
    for node in hub.nodes() {
        *seen.links.entry(node.link).or_default() += 1;
        seen.in_sync += u64::from(node.in_sync);
    }
    for workload in hub.workloads() {
        // The name that it has everywhere else: that of its JSON.
        let state = serde_json::to_value(workload.state)
            .ok()
            .and_then(|v| v.as_str().map(str::to_owned));
        *seen.states.entry(state.unwrap_or_default()).or_default() += 1;
    }
    seen
}

fn render(app: &App, seen: &Seen) -> String {
    let mut text = String::new();
    labelled(&mut text, "cnova_hub_nodes", "Nodes by link.", "link", &seen.links);
    labelled(
        &mut text,
        "cnova_hub_workloads",
        "Workloads by state.",
        "state",
        &seen.states,
    );
    for (name, help, value) in gauges(app, seen) {
        metric(&mut text, name, "gauge", help, value);
    }
    for (name, help, value) in counters(app) {
        metric(&mut text, name, "counter", help, value);
    }
    text
}

type Metric = (&'static str, &'static str, u64);

fn gauges(app: &App, seen: &Seen) -> [Metric; 6] {
    let writable = u64::from(!app.traffic.outage.is_on());
    let (key_end, certificate_end) = (app.signer.not_after(), app.certificate_not_after_s);
    [
        (
            "nodes_in_sync",
            "Nodes that have the twin that they should.",
            seen.in_sync,
        ),
        ("applications", "Applications.", seen.applications),
        (
            "artifact_bytes",
            "Bytes of all artifacts.",
            app.library.artifacts().used(),
        ),
        ("store_writable", "0 while the store cannot be written.", writable),
        (
            "signing_key_not_after_seconds",
            "Nodes take no new twins then.",
            key_end,
        ),
        (
            "certificate_not_after_seconds",
            "When the hub's certificate ends.",
            certificate_end,
        ),
    ]
}

fn counters(app: &App) -> [Metric; 12] {
    let t = &app.traffic;
    let (commits, store_bytes) = app.store.written();
    let artifact_bytes = app.library.artifacts().bytes_written();
    [
        ("twins_signed_total", "Twins signed.", t.twins_signed.get()),
        (
            "mqtt_received_bytes_total",
            "Payload bytes from children.",
            t.bytes_in.get(),
        ),
        ("mqtt_sent_bytes_total", "Payload bytes to children.", t.bytes_out.get()),
        (
            "mqtt_received_messages_total",
            "Messages from children.",
            t.messages_in.get(),
        ),
        (
            "mqtt_sent_messages_total",
            "Messages to children.",
            t.messages_out.get(),
        ),
        (
            "mqtt_unsent_messages_total",
            "Messages not sent at once.",
            t.messages_unsent.get(),
        ),
        ("mqtt_refused_peers_total", "Peers turned away.", t.peers_refused.get()),
        ("api_requests_total", "Requests to the API.", t.requests.get()),
        ("store_commits_total", "Transactions.", commits),
        (
            "store_written_bytes_total",
            "Bytes written to the store's log.",
            store_bytes,
        ),
        (
            "artifact_written_bytes_total",
            "Bytes of artifacts written.",
            artifact_bytes,
        ),
        (
            "rebuilds_total",
            "Times that the store could not be written.",
            t.rebuilds.get(),
        ),
    ]
}

fn metric(text: &mut String, name: &str, kind: &str, help: &str, value: u64) {
    let _ = write!(
        text,
        "# HELP cnova_hub_{name} {help}\n# TYPE cnova_hub_{name} {kind}\ncnova_hub_{name} {value}\n"
    );
}

fn labelled(text: &mut String, name: &str, help: &str, label: &str, values: &BTreeMap<String, u64>) {
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n");
    for (value, count) in values {
        let _ = writeln!(text, "{name}{{{label}=\"{value}\"}} {count}");
    }
}
