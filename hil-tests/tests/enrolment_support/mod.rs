//! Real daemons on loopback, in a temporary folder, that end with their test.

// Every test file uses another part of it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cnova_root_of_trust::testing::Maker;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(90);
/// What a daemon that was asked to stop gets.
const POLITE: Duration = Duration::from_secs(10);
/// Below the ports that the system gives to outgoing connections, above those of other tests.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
const PROGRAMS: [&str; 4] = ["cnova", "cnova-hub", "cnova-gateway", "cnova-agent"];

pub(crate) const HUB: &str = "hub-1";
pub(crate) const GATEWAY: &str = "line-gw";
/// Another gateway, above the first where a test wants two.
pub(crate) const PLANT_GATEWAY: &str = "plant-gw";
pub(crate) const AGENT: &str = "plc-1";

/// What holds a node's key.
pub(crate) enum Root {
    Soft,
    /// A TPM, and how it is reached.
    Tpm(String),
}

pub(crate) struct Plant {
    dir: TempDir,
    bin: PathBuf,
    ports: BTreeMap<String, u16>,
    running: BTreeMap<String, Child>,
    /// What a daemon's next start gets beside this process's environment.
    environment: BTreeMap<String, Vec<(String, String)>>,
    token: String,
}

fn programs() -> PathBuf {
    let me = std::env::current_exe().unwrap();
    let bin = me.parent().and_then(Path::parent).unwrap().to_owned();
    let missing: Vec<&str> = PROGRAMS.into_iter().filter(|p| !bin.join(p).is_file()).collect();
    assert!(
        missing.is_empty(),
        "{} are not in {}: `make test` builds them first (cargo build --workspace --bins)",
        missing.join(", "),
        bin.display()
    );
    bin
}

fn free_port() -> u16 {
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    (0..100)
        .map(|_| fastrand::u16(PORTS))
        .find(free)
        .expect("no free port on loopback")
}

fn is_gateway(node: &str) -> bool {
    matches!(node, GATEWAY | PLANT_GATEWAY)
}

impl Plant {
    /// Trust, a hub with `[enrolment]` that says `more` beside the usual, and whose TPMs it takes. Nothing is started.
    pub(crate) fn new(more: &str, makers: &[&Maker]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["logs", "makers"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        for (i, maker) in makers.iter().enumerate() {
            fs::write(dir.path().join(format!("makers/{i}.der")), maker.certificate()).unwrap();
        }
        let names = [
            "api",
            HUB,
            GATEWAY,
            PLANT_GATEWAY,
            "door-hub-1",
            "door-line-gw",
            "door-plant-gw",
        ];
        let ports = names.map(|name| (name.to_owned(), free_port())).into();
        let mut plant = Self {
            dir,
            bin: programs(),
            ports,
            running: BTreeMap::new(),
            environment: BTreeMap::new(),
            token: String::new(),
        };
        let (trust, tokens) = (plant.at("trust"), plant.at("tokens.toml"));
        plant.cnova(&["trust", "init", &trust, "--tree", "test"]);
        plant.cnova(&["trust", "issuer", &trust]);
        plant.issue(HUB, "hub");
        let token = plant.cnova(&["token", "new", "--name", "boss", "--role", "admin", "--tokens", &tokens]);
        plant.token = token.trim().to_owned();
        let at = |name: &str| plant.at(name);
        let text = format!(
            "state_dir = \"{}\"\ntokens = \"{tokens}\"\n# Nothing is compiled here.\naot_worker = \"/bin/true\"\n{}[signing]\nkey = \"{trust}/hub-signing.key\"\n\
             [api]\nlisten = \"127.0.0.1:{}\"\n[mqtt]\nlisten = \"127.0.0.1:{}\"\n\
             [enrolment]\nlisten = \"127.0.0.1:{}\"\nissuer_certificate = \"{trust}/hub-issuer.pem\"\n\
             issuer_key = \"{trust}/hub-issuer.key\"\ntpm_roots = \"{}\"\n{more}",
            at("state/hub-1"),
            plant.certified(HUB),
            plant.ports["api"],
            plant.ports[HUB],
            plant.ports["door-hub-1"],
            at("makers"),
        );
        plant.write("hub-1.toml", text.as_bytes());
        plant
    }

    /// The hub compiles from its next start on, which most of these tests do not need.
    pub(crate) fn let_it_compile(&self) {
        let path = self.at("hub-1.toml");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("aot_worker = \"/bin/true\"\n", "")).unwrap();
    }

    pub(crate) fn at(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path.display().to_string()
    }

    /// Certifies a node by hand.
    pub(crate) fn issue(&self, node: &str, site: &str) {
        self.cnova(&["trust", "issue", node, "--site", site, "--dir", &self.at("trust")]);
    }

    fn certified(&self, node: &str) -> String {
        let folder = self.at(&format!("trust/nodes/{node}"));
        format!(
            "[identity]\ncertificate = \"{folder}/node.pem\"\nkey = \"{folder}/node.key\"\n\
             trust_bundle = \"{folder}/trust-bundle.cose\"\n"
        )
    }

    fn shape(&self, node: &str, parent: &str) -> String {
        let up = format!(
            "[parent]\nnode = \"{parent}\"\naddress = \"127.0.0.1:{}\"\n",
            self.ports[parent]
        );
        let state = self.at(&format!("state/{node}"));
        if is_gateway(node) {
            let listen = self.ports[node];
            return format!("state_dir = \"{state}\"\n{up}[listen]\naddress = \"127.0.0.1:{listen}\"\n");
        }
        format!(
            "node = \"{node}\"\nstate_dir = \"{state}\"\nruntime_dir = \"{}\"\n{up}",
            self.bin.display()
        )
    }

    fn own_door(&self, node: &str) -> String {
        match self.ports.get(&format!("door-{node}")) {
            Some(port) => format!("listen = \"127.0.0.1:{port}\"\n"),
            None => String::new(),
        }
    }

    /// A node that was certified by hand; a gateway has a door.
    pub(crate) fn configure_certified(&self, node: &str, parent: &str) {
        let text = format!(
            "{}{}[enrolment]\n{}",
            self.shape(node, parent),
            self.certified(node),
            self.own_door(node)
        );
        self.write(&format!("{node}.toml"), text.as_bytes());
    }

    /// A node that enrols at its parent's door.
    pub(crate) fn configure(&self, node: &str, parent: &str, root: &Root, token: Option<&str>) {
        let identity = match root {
            Root::Soft => format!("root = \"soft\"\nkey = \"{}\"\n", self.at(&format!("{node}/node.key"))),
            Root::Tpm(tcti) => format!("root = \"tpm\"\ntcti = \"{tcti}\"\n"),
        };
        let token = token.map(|text| {
            let file = self.write(&format!("{node}/token"), text.as_bytes());
            format!("token_file = \"{file}\"\n")
        });
        let text = format!(
            "{}[identity]\ncertificate = \"{}\"\ntrust_bundle = \"{}\"\n{identity}[enrolment]\n\
             endpoints = [\"127.0.0.1:{}\"]\n{}{}",
            self.shape(node, parent),
            self.at(&format!("{node}/node.pem")),
            self.at("trust/trust-bundle.cose"),
            self.ports[&format!("door-{parent}")],
            token.unwrap_or_default(),
            self.own_door(node)
        );
        self.write(&format!("{node}.toml"), text.as_bytes());
    }

    /// The node's certificate file, when it has one.
    pub(crate) fn certificate(&self, node: &str) -> Option<String> {
        fs::read_to_string(self.at(&format!("{node}/node.pem"))).ok()
    }

    pub(crate) fn forget_certificate(&self, node: &str) {
        fs::remove_file(self.at(&format!("{node}/node.pem"))).unwrap();
    }

    /// Makes an enrolment token.
    pub(crate) fn token(&self, arguments: &[&str]) -> String {
        let all = [&["enroll", "token"], arguments].concat();
        self.cnova(&all).trim().to_owned()
    }

    /// Runs `cnova`, which must succeed.
    pub(crate) fn cnova(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "cnova {arguments:?}: {said}{}", self.logs());
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs `cnova`, which must not succeed; what it complains of.
    pub(crate) fn cnova_refused(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert!(!output.status.success(), "cnova {arguments:?} was taken");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.bin.join("cnova"));
        command
            .args(arguments)
            .env("HOME", self.dir.path())
            .env("CNOVA_TOKEN", &self.token)
            .env(
                "CNOVA_HUB",
                format!("http://127.0.0.1:{}", self.ports.get("api").copied().unwrap_or(1)),
            )
            .stdin(Stdio::null());
        command
    }

    fn ask(&self, arguments: &[&str]) -> Option<Value> {
        let output = self.command(arguments).output().unwrap();
        output
            .status
            .success()
            .then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    fn node(&self, node: &str) -> Option<Value> {
        let nodes = self.ask(&["get", "nodes", "-o", "json"])?;
        nodes.as_array()?.iter().find(|n| n["node"] == node).cloned()
    }

    /// What `cnova get nodes` shows as a node's trust, once it has said hello.
    pub(crate) fn trust_of(&self, node: &str) -> Option<String> {
        self.node(node)?["trust"].as_str().map(str::to_owned)
    }

    /// What the agent on a node says of it, while it runs.
    pub(crate) fn agent_status(&self, node: &str) -> Option<Value> {
        let config = self.at(&format!("{node}.toml"));
        let output = Command::new(self.bin.join("cnova-agent"))
            .args(["status", "--json", "--config", &config])
            .output()
            .unwrap();
        output
            .status
            .success()
            .then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    /// When the hub heard of a node last.
    pub(crate) fn heard_ms(&self, node: &str) -> Option<u64> {
        self.node(node)?["heard_ms"].as_u64()
    }

    pub(crate) fn now_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        u64::try_from(since.as_millis()).unwrap()
    }

    /// What `cnova enroll list` knows.
    pub(crate) fn enrolment(&self) -> Value {
        self.ask(&["enroll", "list", "-o", "json"]).unwrap()
    }

    pub(crate) fn log(&self, name: &str) -> String {
        fs::read_to_string(self.at(&format!("logs/{name}.log"))).unwrap_or_default()
    }

    fn logs(&self) -> String {
        let all = self
            .running
            .keys()
            .map(|name| format!("\n--- {name}\n{}", self.log(name)));
        all.collect()
    }

    /// Starts a daemon; a log of its own for each start.
    pub(crate) fn start(&mut self, name: &str) {
        let program = match name {
            HUB => "cnova-hub",
            node if is_gateway(node) => "cnova-gateway",
            _ => "cnova-agent",
        };
        let log = File::create(self.at(&format!("logs/{name}.log"))).unwrap();
        let child = Command::new(self.bin.join(program))
            .args(["run", "--config", &self.at(&format!("{name}.toml"))])
            .envs(self.environment.get(name).cloned().unwrap_or_default())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        assert!(
            self.running.insert(name.to_owned(), child).is_none(),
            "{name} runs already"
        );
        if name == HUB {
            self.wait("the hub is ready", |p| p.log(HUB).contains("the hub is ready"));
        }
    }

    /// What a daemon's next starts get beside this process's environment.
    pub(crate) fn set_environment(&mut self, name: &str, more: impl IntoIterator<Item = (String, String)>) {
        self.environment.insert(name.to_owned(), more.into_iter().collect());
    }

    /// Any other signal.
    pub(crate) fn signal(&self, name: &str, signal: Signal) {
        let pid = i32::try_from(self.running[name].id()).ok().and_then(Pid::from_raw);
        kill_process(pid.unwrap(), signal).unwrap();
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, name: &str) {
        let mut child = self.running.remove(name).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, and the end of it.
    pub(crate) fn stop(&mut self, name: &str) {
        let mut child = self.running.remove(name).unwrap();
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).unwrap();
        let _ = kill_process(pid, Signal::TERM);
        let until = Instant::now() + POLITE;
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        let ended = matches!(child.try_wait(), Ok(Some(_)));
        let _ = child.kill();
        let _ = child.wait();
        assert!(ended, "{name} did not stop{}", self.log(name));
    }

    pub(crate) fn wait(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(Instant::now() < until, "not within {PATIENCE:?}: {what}{}", self.logs());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Plant {
    /// Workloads outlive their agents by design, but not their test.
    pub(crate) fn end_workloads(&self) {
        let state = self.at("state");
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let Some(pid) = pid.and_then(Pid::from_raw) else {
                continue;
            };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            if line.contains("cnova-runtime-") && line.contains(&state) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

impl Drop for Plant {
    fn drop(&mut self) {
        for child in self.running.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.end_workloads();
    }
}

/// One that sleeps, `app/w`, in its `n`th version; `more` is what it asks for besides.
pub(crate) fn apply_sleeper(plant: &Plant, n: u32, more: &str) {
    let guest = include_str!("../support/guest.wat").replace('#', &n.to_string());
    plant.write("app/w.wasm", &wat::parse_str(guest).unwrap());
    let manifest = format!(
        "apiVersion: cnova/v1\nkind: Application\nmetadata: {{name: app}}\nworkloads:\n\
         - {{name: w, runtime: wasm, artifact: {{file: w.wasm}}, resources: {{memory: 16MiB}}, {more}}}\n"
    );
    let manifest = plant.write("app/app.yaml", manifest.as_bytes());
    plant.cnova(&["apply", &manifest]);
}

/// Two that sleep: one asks for nothing, the other for attestation.
pub(crate) fn apply_plain_and_gated(plant: &Plant) {
    let wasm = wat::parse_str(include_str!("../support/guest.wat").replace('#', "1")).unwrap();
    plant.write("app/w.wasm", &wasm);
    let workload = |name: &str, more: &str| {
        format!(
            "- {{name: {name}, runtime: wasm, artifact: {{file: w.wasm}}, resources: {{memory: 16MiB}},\n   \
             grants: {{clocks: true}}{more}}}\n"
        )
    };
    let manifest = format!(
        "apiVersion: cnova/v1\nkind: Application\nmetadata: {{name: app}}\nworkloads:\n{}{}",
        workload("plain", ""),
        workload("gated", ", placement: {trust: attested}")
    );
    let manifest = plant.write("app/app.yaml", manifest.as_bytes());
    plant.cnova(&["apply", &manifest]);
}
