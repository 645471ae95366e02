//! The hub's API on one connection that is kept.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::wrong;
use crate::demo::DemoError;
use crate::demo::fleet::Fleet;

/// The longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at a timeline.
const POLL: Duration = Duration::from_micros(500);
const MODULE: &str = "vibration_watch.wasm";
const SIGNAL: &str = "signal.gse2";

/// The hub, over HTTP.
pub(super) struct Hub {
    agent: ureq::Agent,
    url: String,
    bearer: String,
    digests: std::sync::OnceLock<Value>,
}

/// An application for one node.
pub(super) struct App {
    name: &'static str,
    site: &'static str,
    workloads: usize,
}

impl App {
    pub(super) fn at(name: &'static str, site: &'static str, workloads: usize) -> Self {
        Self { name, site, workloads }
    }

    fn manifest(&self, value: usize) -> String {
        let mut text = format!(
            "apiVersion: cnova/v1\nkind: Application\nmetadata: {{name: {}}}\nworkloads:\n",
            self.name
        );
        for n in 0..self.workloads {
            text.push_str(&format!(
                "  - name: detector-{n}\n    runtime: wasm\n    artifact: {{file: {MODULE}}}\n    files:\n      \
                 - {{path: /data/signal.gse2, artifact: {{file: {SIGNAL}}}}}\n    \
                 env: {{VERSION: \"{value}\", STA_LTA_ON: \"3.0\", REPLAY_HZ: \"100\"}}\n    \
                 resources: {{memory: 16MiB, cpu: 100m}}\n    grants: {{clocks: true, random: false}}\n    \
                 restart: {{policy: always, backoffMin: 1s, backoffMax: 30s, crashLoopAfter: 5}}\n    \
                 placement: {{site: {}, replicas: each}}\n",
                self.site
            ));
        }
        text
    }
}

impl Hub {
    pub(super) fn new(fleet: &Fleet) -> Self {
        let config = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).build();
        Self {
            agent: config.into(),
            url: format!("http://127.0.0.1:{}/v1", fleet.port("api")),
            bearer: format!("Bearer {}", fleet.token()),
            digests: std::sync::OnceLock::new(),
        }
    }

    fn get(&self, path: &str) -> Result<Value, DemoError> {
        let request = self
            .agent
            .get(format!("{}{path}", self.url))
            .header("authorization", &self.bearer);
        request.call().map_err(wrong)?.body_mut().read_json().map_err(wrong)
    }

    /// Uploads the module and its data.
    pub(super) fn upload(&self, fleet: &Fleet) -> Result<(), DemoError> {
        let mut digests = serde_json::Map::new();
        for name in [MODULE, SIGNAL] {
            let path = fleet.options().examples.join("vibration-watch/build").join(name);
            let bytes = fs::read(&path).map_err(|source| DemoError::File { path, source })?;
            let request = self
                .agent
                .post(format!("{}/artifacts", self.url))
                .header("authorization", &self.bearer);
            let request = request.header("content-type", "application/octet-stream");
            let answer: Value = request
                .send(&bytes[..])
                .map_err(wrong)?
                .body_mut()
                .read_json()
                .map_err(wrong)?;
            digests.insert(name.to_owned(), answer["digest"].clone());
        }
        let _ = self.digests.set(Value::Object(digests));
        Ok(())
    }

    /// Applies with this value in its environment; the generation.
    pub(super) fn apply(&self, app: &App, value: usize) -> Result<u64, DemoError> {
        let body = json!({"manifest": app.manifest(value), "source": "measure", "artifacts": self.digests.get()});
        let request = self
            .agent
            .post(format!("{}/applications", self.url))
            .header("authorization", &self.bearer);
        let answer: Value = request
            .send_json(&body)
            .map_err(wrong)?
            .body_mut()
            .read_json()
            .map_err(wrong)?;
        let find = |v: &Value| {
            v["generation"]
                .as_u64()
                .or_else(|| v.as_object()?.values().find_map(|v| v["generation"].as_u64()))
        };
        find(&answer).ok_or_else(|| wrong(format!("no generation in {answer}")))
    }

    pub(super) fn delete(&self, app: &App) -> Result<(), DemoError> {
        let request = self.agent.delete(format!("{}/applications/{}", self.url, app.name));
        request.header("authorization", &self.bearer).call().map_err(wrong)?;
        Ok(())
    }

    /// Waits until each workload of a generation is running and reported; the stages.
    pub(super) fn wait_reported(&self, app: &App, generation: u64) -> Result<Vec<Value>, DemoError> {
        let begin = Instant::now();
        let path = format!("/applications/{}/timeline?generation={generation}", app.name);
        loop {
            let answer = self.get(&path)?;
            let stages = answer["stages"].as_array().cloned().unwrap_or_default();
            let reported = stages.iter().filter(|s| s["stage"] == "reported").count();
            if reported >= app.workloads {
                return Ok(stages);
            }
            if begin.elapsed() > PATIENCE {
                return Err(wrong(format!(
                    "generation {generation} of {} was not reported: {answer}",
                    app.name
                )));
            }
            sleep(POLL);
        }
    }

    /// Has a node challenged now.
    pub(super) fn attest(&self, node: &str) -> Result<(), DemoError> {
        let request = self.agent.post(format!("{}/nodes/{node}/attestation", self.url));
        let request = request.header("authorization", &self.bearer);
        request.send_empty().map_err(wrong)?;
        Ok(())
    }

    /// Waits until so many nodes have said hello.
    pub(super) fn wait_nodes(&self, count: usize) -> Result<(), DemoError> {
        let begin = Instant::now();
        let mut last = String::new();
        while begin.elapsed() < PATIENCE {
            match self.get("/nodes") {
                Ok(answer) if answer["nodes"].as_array().is_some_and(|n| n.len() >= count) => return Ok(()),
                Ok(answer) => last = answer.to_string(),
                Err(e) => last = e.to_string(),
            }
            sleep(Duration::from_millis(50));
        }
        Err(wrong(format!("fewer than {count} nodes at the hub: {last}")))
    }
}
