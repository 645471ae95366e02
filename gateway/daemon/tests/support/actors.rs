//! Who plays in a process test: a parent over a real endpoint, children over real uplinks, and the gateway's process.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child as Process, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cnova_broker::{Endpoint, EndpointConfig, EndpointEvent, Limits, Publisher, TlsMaterial};
use cnova_link::{FloorClock, Identity, Uplink, UplinkConfig, UplinkEvent, client_tls};
use cnova_shared::envelope::{self, Claims, Untrusted};
use cnova_shared::ids::{Digest, NodeId};
use cnova_shared::keys::SoftKey;
use cnova_shared::parent::Parent as ParentLink;
use cnova_shared::time::Now;
use cnova_shared::topics::Kind;
use cnova_shared::tree::{Clock, Said, StoredTree, Tree, TreeEvent};
use cnova_shared::trust::TrustState;
use cnova_shared::wire::v1;
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::{Files, Issued, PATIENCE, Plant, hello, node, now_s, soon};

/// A port that is free now.
pub fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// What a parent heard.
#[allow(clippy::large_enum_variant, reason = "of a test, taken apart at once")]
#[derive(Clone, Debug)]
pub enum Heard {
    Said { author: NodeId, said: Said, raw: Vec<u8> },
    ChunkRequest(v1::ChunkRequest),
    Link { node: String, up: bool },
}

/// The hub, played with the tree that the real one has, and without a store.
pub struct Parent {
    endpoint: Endpoint,
    pub publisher: Publisher,
    heard: Arc<Mutex<Vec<Heard>>>,
    task: tokio::task::JoinHandle<Tree>,
}

impl Parent {
    /// One that knows nobody yet.
    pub async fn start(plant: &Plant, address: SocketAddr, artifacts: &[&[u8]]) -> Self {
        let tree = Tree::new(node("hub"), StoredTree::default(), &plant.trust.clone().into());
        Self::resume(plant, address, artifacts, tree).await
    }

    /// One that knows what it knew when it stopped.
    pub async fn resume(plant: &Plant, address: SocketAddr, artifacts: &[&[u8]], tree: Tree) -> Self {
        let issued = plant.issue("hub", "plant-7");
        let tls = TlsMaterial {
            own: cnova_broker::fixed(
                vec![issued.certificate.clone().into()],
                rustls_pki_types::PrivatePkcs8KeyDer::from(issued.key_der.clone()).into(),
            )
            .unwrap(),
            client_ca: vec![plant.authority.clone().into()],
        };
        let config = EndpointConfig {
            listen: address,
            tls,
            limits: Limits::default(),
        };
        let (endpoint, events) = Endpoint::start(config).await.unwrap();
        let (publisher, heard) = (endpoint.publisher(), Arc::<Mutex<Vec<Heard>>>::default());
        let play = Play {
            tree,
            key: SoftKey::ed25519_from_seed(&[2; 32]),
            publisher: publisher.clone(),
            heard: heard.clone(),
            artifacts: artifacts.iter().map(|a| (Digest::of(a), a.to_vec())).collect(),
            trust: plant.trust.clone().into(),
        };
        let task = tokio::spawn(play.run(events));
        Self {
            endpoint,
            publisher,
            heard,
            task,
        }
    }

    /// The first thing heard that `wanted` recognises.
    pub async fn wait<T>(&self, what: &str, wanted: impl Fn(&Heard) -> Option<T>) -> T {
        soon(what, async {
            loop {
                if let Some(found) = self.heard().iter().find_map(&wanted) {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.endpoint.local_addr()
    }

    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }

    pub fn forget(&self) {
        self.heard.lock().unwrap().clear();
    }

    /// Waits for the gateway's hello.
    pub async fn hello_of(&self, name: &str) -> v1::Hello {
        self.wait(&format!("hello of {name}"), |h| match h {
            Heard::Said {
                author,
                said: Said::Hello(hello),
                ..
            } if author.as_str() == name => Some(hello.clone()),
            _ => None,
        })
        .await
    }

    /// Waits for these exact signed bytes.
    pub async fn raw(&self, what: &str, bytes: &[u8]) {
        self.wait(what, |h| {
            matches!(h, Heard::Said { raw, .. } if raw == bytes).then_some(())
        })
        .await;
    }

    pub fn send_twin(&self, gateway: &str, twin: &[u8]) {
        self.publisher.publish(gateway, "twin", twin.to_vec().into()).unwrap();
    }

    pub async fn stop(self) -> Tree {
        self.endpoint.shutdown().await;
        soon("the parent's end", self.task).await.unwrap()
    }
}

struct Play {
    tree: Tree,
    key: SoftKey,
    publisher: Publisher,
    heard: Arc<Mutex<Vec<Heard>>>,
    artifacts: BTreeMap<Digest, Vec<u8>>,
    trust: TrustState,
}

impl Play {
    async fn run(mut self, mut events: mpsc::Receiver<EndpointEvent>) -> Tree {
        while let Some(event) = events.recv().await {
            match event {
                EndpointEvent::Connected { node } => self.push(Heard::Link { node, up: true }),
                EndpointEvent::Disconnected { node, .. } => self.push(Heard::Link { node, up: false }),
                EndpointEvent::Message {
                    node: child,
                    kind,
                    payload,
                } => {
                    let kind = Kind::parse(&kind).unwrap();
                    let clock = Clock {
                        trust: &self.trust,
                        now_s: now_s(),
                        mono_ms: 0,
                    };
                    self.tree.on_message(&node(&child), kind, &payload, &clock);
                    self.settle();
                }
                other => panic!("{other:?}"),
            }
        }
        self.tree
    }

    fn push(&self, heard: Heard) {
        self.heard.lock().unwrap().push(heard);
    }

    fn settle(&mut self) {
        self.tree.poll_twins(Now::default());
        while let Some(event) = self.tree.poll_event() {
            match event {
                TreeEvent::Heard { author, said, raw, .. } => self.push(Heard::Said { author, said, raw }),
                TreeEvent::Ack { child, ack, .. } => self.say(&child, Kind::Ack, &ack),
                TreeEvent::ChunkWanted { child, request } => self.chunk(&child, &request),
                TreeEvent::Note(text) => eprintln!("parent: {text}"),
                TreeEvent::Persist(_)
                | TreeEvent::Forward { .. }
                | TreeEvent::Trust { .. }
                | TreeEvent::Enrol { .. } => {}
            }
        }
    }

    fn chunk(&self, child: &NodeId, request: &v1::ChunkRequest) {
        self.push(Heard::ChunkRequest(request.clone()));
        let Some(artifact) = self.artifacts.get(&request.digest) else {
            return;
        };
        let (from, total) = (request.offset as usize, artifact.len() as u64);
        let to = (from + request.length as usize).min(artifact.len());
        let data = artifact[from..to].to_vec();
        let (v, digest, offset) = (v1::VERSION, request.digest, request.offset);
        self.say(
            child,
            Kind::Chunk,
            &v1::Chunk {
                v,
                digest,
                offset,
                total,
                data,
                missing: None,
            },
        );
    }

    fn say<T: serde::Serialize>(&self, child: &NodeId, kind: Kind, value: &T) {
        let claims = Claims {
            iss: node("hub"),
            aud: child.clone(),
            iat: now_s(),
            exp: None,
        };
        let bytes = envelope::seal(kind, &claims, value, &[], &self.key).unwrap();
        if let Err(error) = self.publisher.publish(child.as_str(), kind.as_str(), bytes.into()) {
            eprintln!("parent: {error}");
        }
    }
}

/// An agent.
pub struct Child {
    pub issued: Issued,
    link: ParentLink,
    plant_trust: TrustState,
    config: UplinkConfig,
    uplink: Uplink,
    events: mpsc::Receiver<UplinkEvent>,
    /// How often the link came up.
    pub connections: u32,
    _files: TempDir,
}

impl Child {
    /// Connects to the gateway `gw-1`; says nothing yet.
    pub async fn connect(plant: &Plant, name: &str, gateway: SocketAddr) -> Self {
        let issued = plant.issue(name, &format!("plant-7/line-2/{name}"));
        let folder = tempfile::tempdir().unwrap();
        let files = Files::write(folder.path(), &issued, plant);
        let identity = Identity::load(&files.certificate, &files.key, &files.trust_bundle).unwrap();
        let clock = Arc::new(FloorClock::of(&identity));
        let tls = client_tls(&identity, &node("gw-1"), clock).unwrap();
        let config = UplinkConfig::new(gateway.into(), issued.node.clone(), node("gw-1"), tls);
        let (uplink, events) = Uplink::start(config.clone());
        let link = ParentLink::new(node("gw-1"));
        let plant_trust = plant.trust.clone().into();
        let mut child = Self {
            issued,
            link,
            plant_trust,
            config,
            uplink,
            events,
            connections: 0,
            _files: folder,
        };
        child.connected().await;
        child
    }

    /// Connects anew, without the pause that a link makes which breaks again and again.
    pub async fn reconnect(&mut self) {
        (self.uplink, self.events) = Uplink::start(self.config.clone());
        self.connected().await;
    }

    /// Waits until the link is up (again).
    pub async fn connected(&mut self) {
        self.event("the child's connection", |e| {
            matches!(e, UplinkEvent::Connected).then_some(())
        })
        .await;
    }

    async fn event<T>(&mut self, what: &str, wanted: impl Fn(UplinkEvent) -> Option<T>) -> T {
        soon(what, async {
            loop {
                let event = self.events.recv().await.expect("the uplink runs");
                self.connections += u32::from(event == UplinkEvent::Connected);
                if let Some(found) = wanted(event) {
                    return found;
                }
            }
        })
        .await
    }

    pub fn say(&self, kind: Kind, bytes: Vec<u8>) {
        self.uplink.send(kind, bytes).unwrap();
    }

    /// The next message of a kind; others are passed over.
    pub async fn next(&mut self, wanted: Kind) -> Vec<u8> {
        let what = format!("a {} for {}", wanted.as_str(), self.issued.node);
        self.event(&what, |e| match e {
            UplinkEvent::Message { kind, bytes } if kind == wanted => Some(bytes),
            _ => None,
        })
        .await
    }

    /// Says hello until it is answered, as an agent does, and believes who answers.
    pub async fn greet(&mut self, boot: &str) -> (v1::Ack, Vec<u8>) {
        let hello = self.issued.seal(Kind::Hello, "hub", &hello(&self.issued, boot), true);
        let begun = Instant::now();
        loop {
            self.say(Kind::Hello, hello.clone());
            match tokio::time::timeout(Duration::from_secs(2), self.next(Kind::Ack)).await {
                Ok(bytes) => {
                    let ack: v1::Ack = self.open(Kind::Ack, &bytes);
                    if ack.hello.as_deref() == Some(boot) {
                        return (ack, bytes);
                    }
                }
                Err(_) => assert!(begun.elapsed() < PATIENCE, "the hello was not answered"),
            }
        }
    }

    /// Opens what the gateway signed for this child.
    pub fn open<T: serde::de::DeserializeOwned + cnova_shared::wire::v1::Versioned>(
        &mut self,
        kind: Kind,
        bytes: &[u8],
    ) -> T {
        let opened = self
            .link
            .open(kind, bytes, &self.issued.node, &self.plant_trust.clone(), now_s());
        opened.unwrap().decode::<T>().unwrap().into_value()
    }

    /// Sends a report and waits until it is acknowledged; says its bytes.
    pub async fn report(&mut self, from: u64, key: &str) -> Vec<u8> {
        let bytes = self
            .issued
            .seal(Kind::Report, "hub", &super::report(from, key, "detail"), false);
        self.say(Kind::Report, bytes.clone());
        loop {
            let ack = self.next(Kind::Ack).await;
            let ack: v1::Ack = self.open(Kind::Ack, &ack);
            if ack.seq > from {
                return bytes;
            }
        }
    }

    /// How far the gateway acknowledged before its connection ended.
    pub async fn acknowledged_before_the_end(&mut self) -> Option<u64> {
        let mut acked = None;
        loop {
            let next = self.event("the end of the connection", |e| match e {
                UplinkEvent::Message { kind: Kind::Ack, bytes } => Some(Some(bytes)),
                UplinkEvent::Disconnected { .. } => Some(None),
                _ => None,
            });
            let Some(bytes) = next.await else { return acked };
            let ack: v1::Ack = self.open(Kind::Ack, &bytes);
            acked = acked.max(Some(ack.seq));
        }
    }

    /// Fetches an artifact, one piece after another.
    pub async fn fetch(&mut self, digest: Digest) -> Vec<u8> {
        let mut held = Vec::new();
        loop {
            let (v, length) = (v1::VERSION, cnova_shared::limits::CHUNK_BYTES);
            let request = v1::ChunkRequest {
                v,
                digest,
                offset: held.len() as u64,
                length,
                base: None,
            };
            self.say(
                Kind::ChunkRequest,
                self.issued.seal(Kind::ChunkRequest, "gw-1", &request, false),
            );
            let bytes = self.next(Kind::Chunk).await;
            let chunk: v1::Chunk = self.open(Kind::Chunk, &bytes);
            assert_eq!((chunk.digest, chunk.missing), (digest, None));
            assert_eq!(chunk.offset, held.len() as u64);
            held.extend(chunk.data);
            if held.len() as u64 == chunk.total {
                return held;
            }
        }
    }

    pub async fn leave(self) {
        self.uplink.shutdown().await;
    }
}

/// Whether these bytes carry their author's certificate.
pub fn introduces(bytes: &[u8]) -> bool {
    !Untrusted::read(bytes).unwrap().x5chain.is_empty()
}

/// The gateway's process, `gw-1`.
pub struct Gateway {
    pub address: SocketAddr,
    pub config: PathBuf,
    _folder: TempDir,
    process: Option<Process>,
}

impl Gateway {
    /// Installs and starts one below `parent`, with its state in a folder of its own or in `state_dir`.
    pub fn start(plant: &Plant, parent: SocketAddr, state_dir: Option<&Path>) -> Self {
        let mut gateway = Self::install(plant, parent, state_dir);
        gateway.run();
        gateway
    }

    pub fn install(plant: &Plant, parent: SocketAddr, state_dir: Option<&Path>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let issued = plant.issue("gw-1", "plant-7/line-2");
        let files = Files::write(folder.path(), &issued, plant);
        let state = state_dir.map_or_else(|| folder.path().join("state"), Path::to_owned);
        let address = free_port();
        let text = format!(
            "site = \"plant-7/line-2\"\nstate_dir = {state:?}\n\
             [parent]\nnode = \"hub\"\naddress = \"{parent}\"\n\
             [identity]\ncertificate = {:?}\nkey = {:?}\ntrust_bundle = {:?}\n\
             [labels]\nzone = \"a\"\n[listen]\naddress = \"{address}\"\n",
            files.certificate, files.key, files.trust_bundle
        );
        let config = folder.path().join("gateway.toml");
        std::fs::write(&config, text).unwrap();
        Self {
            address,
            config,
            _folder: folder,
            process: None,
        }
    }

    /// Its children, and it itself, use a broker at its address.
    pub fn use_external_broker(&self) {
        let text = std::fs::read_to_string(&self.config).unwrap();
        let common = text.split("[listen]").next().unwrap();
        let (host, port) = (self.address.ip(), self.address.port());
        let text = format!("{common}[external_broker]\nhost = \"{host}\"\nport = {port}\n");
        std::fs::write(&self.config, text).unwrap();
    }

    pub fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cnova-gateway"));
        command.arg(verb).arg("--config").arg(&self.config).stdin(Stdio::null());
        command
    }

    pub fn run(&mut self) {
        let level = std::env::var("RUST_LOG").unwrap_or_else(|_| "debug,rumqttd=warn".into());
        self.process = Some(self.command("run").env("RUST_LOG", level).spawn().unwrap());
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().unwrap().id()
    }

    /// Asks it to stop and says how it ended.
    pub async fn terminate(&mut self) -> ExitStatus {
        let mut process = self.process.take().unwrap();
        let status = Command::new("kill").arg(process.id().to_string()).status().unwrap();
        assert!(status.success());
        soon("the end of the gateway", async {
            loop {
                if let Some(status) = process.try_wait().unwrap() {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A mosquitto, configured as the gateway says.
pub struct Mosquitto {
    process: Process,
    _folder: TempDir,
}

impl Mosquitto {
    /// Starts one at the gateway's address; says loudly when there is none.
    pub fn start(gateway: &Gateway) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let print = |part: &str| {
            let output = gateway
                .command("print-mosquitto-config")
                .args(["--part", part])
                .output()
                .unwrap();
            assert!(output.status.success());
            String::from_utf8(output.stdout).unwrap()
        };
        let conf = print("conf").replace("/etc/mosquitto/cnova", folder.path().to_str().unwrap()) + "user root\n";
        for (name, text) in [("conf", conf), ("acl", print("acl")), ("ca.pem", print("ca"))] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let programs = ["mosquitto", "/usr/sbin/mosquitto"];
        let spawn = |p: &&str| Command::new(p).arg("-c").arg(folder.path().join("conf")).spawn().ok();
        match programs.iter().find_map(spawn) {
            Some(process) => Some(Self {
                process,
                _folder: folder,
            }),
            None => {
                eprintln!("SKIPPED: there is no mosquitto here");
                None
            }
        }
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
