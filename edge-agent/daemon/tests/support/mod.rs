//! A parent with a real endpoint, and a real agent below it.

// Every test file uses another part of it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

#[path = "../../../../shared/link/tests/support/mod.rs"]
pub mod tree;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use cnova_broker::{Endpoint, EndpointEvent};
use cnova_link::Identity;
use cnova_ral::cgroup::{GroupError, Parent};
use cnova_shared::envelope::{self, Claims, Untrusted};
use cnova_shared::ids::Digest;
use cnova_shared::keys::PublicKey;
use cnova_shared::topics::Kind;
use cnova_shared::wire::v1::{
    self, Ack, Artifact, Body, Chunk, ChunkRequest, Command as HubCommand, Grants, Hello, Operation, Reply, Report,
    Restart, RestartPolicy, Stream, Twin, Workload, WorkloadReport, WorkloadState,
};
use serde::Serialize;
use tokio::sync::mpsc;
use tree::{Files, Pki, endpoint, node};

pub const AGENT: &str = env!("CARGO_BIN_EXE_cnova-agent");
pub const NODE: &str = "plc-1";

pub struct Rig {
    pub pki: Pki,
    pub gateway: Identity,
    pub endpoint: Endpoint,
    events: mpsc::Receiver<EndpointEvent>,
    agent_key: PublicKey,
    pub state_dir: PathBuf,
    pub config: PathBuf,
    pub agent: Option<Child>,
    pub artifacts: BTreeMap<Digest, Vec<u8>>,
    /// The newest word on each subject.
    pub said: BTreeMap<String, Body>,
    pub hellos: Vec<Hello>,
    pub replies: Vec<Reply>,
    pub twin: Vec<u8>,
    pub answers_hellos: bool,
    dir: tempfile::TempDir,
}

/// The runtime of `examples/`, which is built with the tests of the package.
fn fake_runtime() -> PathBuf {
    let path = Path::new(AGENT).with_file_name("examples").join("cnova-runtime-fake");
    assert!(
        path.exists(),
        "{} is missing: build it with `cargo build -p cnova-agent --examples`",
        path.display()
    );
    path
}

pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

impl Rig {
    pub async fn new() -> Self {
        Self::with_state_dir(|dir| dir.join("state")).await
    }

    pub async fn with_state_dir(state: impl FnOnce(&Path) -> PathBuf) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::new(dir.path());
        let gateway = pki.issue("gw-1");
        let (endpoint, events) = endpoint(&gateway, "127.0.0.1:0").await;
        let files = pki.issue(NODE);
        let agent_key = cnova_shared::certificate::read(&files.load().chain()[0]).unwrap().key;
        let runtimes = dir.path().join("runtimes");
        fs::create_dir(&runtimes).unwrap();
        std::os::unix::fs::symlink(fake_runtime(), runtimes.join("cnova-runtime-fake")).unwrap();
        let state_dir = state(dir.path());
        let config = dir.path().join("agent.toml");
        fs::write(
            &config,
            config_text(&files, &state_dir, &runtimes, &endpoint.local_addr().to_string()),
        )
        .unwrap();
        Self {
            gateway: gateway.load(),
            pki,
            endpoint,
            events,
            agent_key,
            state_dir,
            config,
            agent: None,
            artifacts: BTreeMap::new(),
            said: BTreeMap::new(),
            hellos: Vec::new(),
            replies: Vec::new(),
            twin: Vec::new(),
            answers_hellos: true,
            dir,
        }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn start_agent(&mut self) {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir().join("agent.log"))
            .unwrap();
        // Another build, for a measurement.
        let agent = std::env::var_os("CNOVA_AGENT").unwrap_or_else(|| AGENT.into());
        let mut command = Command::new(agent);
        command
            .args(["run", "--config"])
            .arg(&self.config)
            .stdin(Stdio::null())
            .stderr(log);
        self.agent = Some(command.spawn().unwrap());
    }

    /// Adds to the configuration of an agent that is yet to start.
    pub fn configure(&self, text: &str) {
        let all = fs::read_to_string(&self.config).unwrap();
        fs::write(&self.config, format!("{all}\n{text}\n")).unwrap();
    }

    /// The state folder of an instance.
    pub fn folder(&self, instance: &str) -> PathBuf {
        self.state_dir.join("run").join(instance)
    }

    pub fn kill_agent(&mut self) {
        let mut agent = self.agent.take().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir().join("agent.log")).unwrap_or_default()
    }

    fn publish<T: Serialize>(&self, kind: Kind, value: &T) {
        let bytes = self
            .gateway
            .seal(kind, &node(NODE), now_s(), None, value, true)
            .unwrap();
        let _ = self
            .endpoint
            .publisher()
            .publish(NODE, kind.as_str(), Bytes::from(bytes));
    }

    fn seal_as_hub<T: Serialize>(&self, kind: Kind, value: &T) -> Vec<u8> {
        let claims = Claims {
            iss: node("hub"),
            aud: node(NODE),
            iat: now_s(),
            exp: Some(now_s() + 600),
        };
        let claims = if kind == Kind::Twin {
            Claims { exp: None, ..claims }
        } else {
            claims
        };
        envelope::seal(kind, &claims, value, &[], &self.pki.hub_key).unwrap()
    }

    /// Signs a twin, to be sent whenever the agent says that it has another one.
    pub fn desire(&mut self, generation: u64, workloads: Vec<Workload>) {
        let twin = Twin {
            v: 1,
            node: node(NODE),
            epoch: 1,
            generation,
            workloads,
            system: None,
            secrets: Vec::new(),
        };
        self.twin = self.seal_as_hub(Kind::Twin, &twin);
        self.send_twin();
    }

    pub fn send_twin(&self) {
        self.send_raw_twin(self.twin.clone());
    }

    pub fn send_raw_twin(&self, bytes: Vec<u8>) {
        let _ = self.endpoint.publisher().publish(NODE, "twin", Bytes::from(bytes));
    }

    pub fn command(&self, id: u64, op: Operation) {
        let bytes = self.seal_as_hub(Kind::Command, &HubCommand { v: 1, id, op });
        self.endpoint
            .publisher()
            .publish(NODE, "command", Bytes::from(bytes))
            .unwrap();
    }

    /// Does a parent's work until `done` holds.
    pub async fn until<T>(&mut self, what: &str, mut done: impl FnMut(&Self) -> Option<T>) -> T {
        let log = self.dir().join("agent.log");
        let work = async {
            loop {
                if let Some(found) = done(self) {
                    return found;
                }
                if let Ok(event) = tokio::time::timeout(std::time::Duration::from_millis(200), self.events.recv()).await
                {
                    self.take(event.expect("the endpoint runs"));
                }
            }
        };
        match tokio::time::timeout(tree::PATIENCE, work).await {
            Ok(found) => found,
            Err(_) => panic!(
                "{what}: not within {:?}; the agent said:\n{}",
                tree::PATIENCE,
                fs::read_to_string(log).unwrap()
            ),
        }
    }

    fn take(&mut self, event: EndpointEvent) {
        let EndpointEvent::Message { kind, payload, .. } = event else {
            return;
        };
        let kind = Kind::parse(&kind).unwrap();
        let verified = Untrusted::read(&payload)
            .unwrap()
            .verify(kind, &self.agent_key)
            .unwrap();
        match kind {
            Kind::Hello => {
                let hello = verified.decode::<Hello>().unwrap().into_value();
                if self.answers_hellos {
                    let ack = Ack {
                        away_s: 0,
                        v: 1,
                        stream: Stream::Report,
                        incarnation: hello.incarnation,
                        seq: 0,
                        hello: Some(hello.boot.clone()),
                    };
                    self.publish(Kind::Ack, &ack);
                    if !self.twin.is_empty() {
                        self.send_twin();
                    }
                }
                self.hellos.push(hello);
            }
            Kind::Report => {
                let report = verified.decode::<Report>().unwrap().into_value();
                let ack = Ack {
                    away_s: 0,
                    v: 1,
                    stream: Stream::Report,
                    incarnation: report.incarnation,
                    seq: report.to,
                    hello: None,
                };
                self.publish(Kind::Ack, &ack);
                for entry in report.entries {
                    self.said.insert(entry.key, entry.body);
                }
            }
            Kind::ChunkRequest => {
                let request = verified.decode::<ChunkRequest>().unwrap().into_value();
                self.publish(Kind::Chunk, &self.chunk(&request));
            }
            Kind::Reply => self.replies.push(verified.decode::<Reply>().unwrap().into_value()),
            other => panic!("{other:?}"),
        }
    }

    fn chunk(&self, request: &ChunkRequest) -> Chunk {
        let all = self.artifacts.get(&request.digest).cloned().unwrap_or_default();
        let from = usize::try_from(request.offset).unwrap().min(all.len());
        let to = (from + usize::try_from(request.length).unwrap()).min(all.len());
        let missing = all.is_empty().then(|| "not here".to_owned());
        let total = all.len() as u64;
        Chunk {
            v: 1,
            digest: request.digest,
            offset: request.offset,
            total,
            data: all[from..to].to_vec(),
            missing,
        }
    }

    pub fn artifact(&mut self, bytes: Vec<u8>) -> Artifact {
        let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
        self.artifacts.insert(digest, bytes);
        Artifact { digest, size }
    }

    /// A workload of the fake runtime.
    pub fn workload(&mut self, id: &str, arguments: &[&str]) -> Workload {
        let artifact = self.artifact(vec![b'w'; 300_000]);
        Workload {
            id: id.parse().unwrap(),
            app_generation: 1,
            runtime: "fake".into(),
            source: artifact.digest,
            artifact,
            files: Vec::new(),
            args: arguments.iter().map(|a| (*a).to_owned()).collect(),
            env: BTreeMap::new(),
            memory_bytes: 1 << 20,
            cpu_millis: 10,
            log_bytes: 1 << 16,
            wall_seconds: None,
            grants: Grants::default(),
            restart: Restart {
                policy: RestartPolicy::Always,
                backoff_min_ms: 50,
                backoff_max_ms: 100,
                crash_loop_after: 3,
            },
            stop_grace_ms: 1000,
            priority: 1,
            settings: String::new(),
            parts: Vec::new(),
            volumes: Vec::new(),
            needs: Vec::new(),
            accelerators: Vec::new(),
            devices: Vec::new(),
            schedule: None,
            power: cnova_shared::wire::v1::PowerLevel::default(),
            health: cnova_shared::wire::v1::Health::default(),
            on_bad_update: cnova_shared::wire::v1::OnBadUpdate::default(),
            trust: cnova_shared::wire::v1::TrustRequirement::default(),
            provenance: Vec::new(),
            attestation: None,
            secrets: Vec::new(),
        }
    }

    pub fn report(&self, id: &str) -> Option<&WorkloadReport> {
        match self.said.get(&format!("w/{id}")) {
            Some(Body::Workload(report)) => Some(report),
            _ => None,
        }
    }

    pub async fn running(&mut self, id: &str) -> WorkloadReport {
        self.in_state(id, WorkloadState::Running).await
    }

    pub async fn in_state(&mut self, id: &str, state: WorkloadState) -> WorkloadReport {
        self.until(&format!("{id} {state:?}"), |rig| {
            rig.report(id).filter(|r| r.state == state).cloned()
        })
        .await
    }

    pub fn refusal(&self) -> Option<&str> {
        self.said.values().find_map(|b| match b {
            Body::Refused { code, .. } => Some(code.as_str()),
            _ => None,
        })
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        // What a failed test left running.
        for pid in processes_below(&self.state_dir) {
            let _ = kill(pid, "KILL");
        }
        let _ = remove_groups(&self.state_dir);
    }
}

/// Removes the control groups that this agent made, with all that is in them; their names end with a mark of its own.
fn remove_groups(state_dir: &Path) -> Result<(), GroupError> {
    let digest = Digest::of(state_dir.as_os_str().as_encoded_bytes()).hex();
    let mark = format!("@{}", &digest[..8]);
    let parent = Parent::find(Some("cnova"))?;
    for name in parent.names()?.iter().filter(|n| n.ends_with(&mark)) {
        if let Some(group) = parent.open(name)? {
            group.kill()?;
            group.remove()?;
        }
    }
    Ok(())
}

pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ")
        .next()
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

pub fn kill(pid: u32, signal: &str) -> std::io::Result<()> {
    Command::new("kill")
        .arg(format!("-{signal}"))
        .arg(pid.to_string())
        .status()
        .map(|_| ())
}

/// Processes that were given a folder below this one.
pub fn processes_below(folder: &Path) -> Vec<u32> {
    let all = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let wanted = format!("{}/run/", folder.display());
    all.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&wanted)
    })
    .collect()
}

pub fn config_text(files: &Files, state_dir: &Path, runtimes: &Path, address: &str) -> String {
    format!(
        r#"
state_dir = "{}"
runtime_dir = "{}"
[parent]
node = "gw-1"
address = "{address}"
[identity]
certificate = "{}"
key = "{}"
trust_bundle = "{}"
[labels]
line = "2"
[capacity]
memory = "64MiB"
cpu_millis = 1000
"#,
        state_dir.display(),
        runtimes.display(),
        files.certificate.display(),
        files.key.display(),
        files.trust_bundle.display(),
    )
}

pub type State = v1::WorkloadState;
