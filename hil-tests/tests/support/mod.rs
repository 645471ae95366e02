//! A line of real processes on loopback, in a temporary folder, that ends with its test.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a daemon that was asked to stop gets.
const POLITE: Duration = Duration::from_secs(10);
const MOSQUITTO: &str = "/usr/sbin/mosquitto";
const PROGRAMS: [&str; 6] = [
    "cnova",
    "cnova-hub",
    "cnova-aot",
    "cnova-gateway",
    "cnova-agent",
    "cnova-runtime-wasm",
];
/// Below the ports that the system gives to outgoing connections: none of them takes the port of a daemon that is down.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

pub(crate) const HUB: &str = "hub-1";
pub(crate) const GATEWAY: &str = "line-gw";
pub(crate) const AGENT: &str = "plc-1";
pub(crate) const APP: &str = "watch";
pub(crate) const WORKLOAD: &str = "watch/sleeper";

/// Which daemons there are, and what carries their messages.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Hub, gateway and agent, with the endpoints that are built in.
    Embedded,
    /// Hub, gateway and agent; a mosquitto under the hub and one under the gateway.
    Mosquitto,
    /// Hub and agent.
    NoGateway,
}

/// What a program said.
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

pub(crate) struct Line {
    dir: TempDir,
    bin: PathBuf,
    shape: Shape,
    ports: BTreeMap<String, u16>,
    running: BTreeMap<String, Child>,
    token: String,
}

/// The folder of the programs: that of this test's profile.
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

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

fn bounded(command: &mut Command) -> Said {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id();
    let (done, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(child.wait_with_output()));
    let Ok(output) = end.recv_timeout(PATIENCE + POLITE) else {
        signal(pid, Signal::KILL);
        panic!("{command:?} does not end");
    };
    let Output { status, stdout, stderr } = output.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Said {
        code: status.code(),
        out: text(stdout),
        err: text(stderr),
    }
}

impl Line {
    /// Root of trust, certificates, a token and configurations; nothing is started.
    pub(crate) fn new(shape: Shape) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("logs")).unwrap();
        let ports = ["api", HUB, GATEWAY].map(|name| (name.to_owned(), free_port())).into();
        let mut line = Self {
            dir,
            bin: programs(),
            shape,
            ports,
            running: BTreeMap::new(),
            token: String::new(),
        };
        let at = |name: &str| line.path(name).display().to_string();
        let (trust, tokens) = (at("trust"), at("tokens.toml"));
        line.cnova(&["trust", "init", &trust, "--tree", "test"]);
        for (node, site) in [
            (HUB, "hub"),
            (GATEWAY, "plant-7/line-2"),
            (AGENT, "plant-7/line-2/plc-1"),
        ] {
            line.cnova(&["trust", "issue", node, "--site", site, "--dir", &trust]);
        }
        let token = line.cnova(&["token", "new", "--name", "test", "--role", "admin", "--tokens", &tokens]);
        line.token = token.trim().to_owned();
        for node in [HUB, GATEWAY, AGENT] {
            line.write(&format!("{node}.toml"), line.configuration(node, node));
        }
        line
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    /// A node's configuration, with a state folder of that name.
    pub(crate) fn configuration(&self, node: &str, state: &str) -> String {
        let dir = self.dir.path().display();
        let port = |name: &str| self.ports[name];
        let identity = format!(
            "[identity]\ncertificate = \"{dir}/trust/nodes/{node}/node.pem\"\nkey = \"{dir}/trust/nodes/{node}/node.key\"\n\
             trust_bundle = \"{dir}/trust/nodes/{node}/trust-bundle.cose\"\n"
        );
        let state = format!("state_dir = \"{dir}/state/{state}\"\n");
        let up = |to: &str| format!("[parent]\nnode = \"{to}\"\naddress = \"127.0.0.1:{}\"\n", port(to));
        let children = |section: &str, key: &str| match self.shape {
            Shape::Mosquitto => format!("[external_broker]\nhost = \"127.0.0.1\"\nport = {}\n", port(node)),
            _ => format!("[{section}]\n{key} = \"127.0.0.1:{}\"\n", port(node)),
        };
        match node {
            HUB => format!(
                "{state}tokens = \"{dir}/tokens.toml\"\n{identity}[signing]\nkey = \"{dir}/trust/hub-signing.key\"\n\
                 [api]\nlisten = \"127.0.0.1:{}\"\n{}",
                port("api"),
                children("mqtt", "listen")
            ),
            GATEWAY => {
                format!(
                    "site = \"plant-7/line-2\"\n{state}{}{identity}{}",
                    up(HUB),
                    children("listen", "address")
                )
            }
            _ => format!(
                "site = \"plant-7/line-2/plc-1\"\n{state}runtime_dir = \"{}\"\n{}{identity}[labels]\nrole = \"plc\"\n\
                 [capacity]\nmemory = \"64MiB\"\ncpu_millis = 500\n",
                self.bin.display(),
                up(if self.shape == Shape::NoGateway { HUB } else { GATEWAY })
            ),
        }
    }

    fn spawn(&mut self, name: &str, command: &mut Command) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path(&format!("logs/{name}.log")))
            .unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("{name} does not start: {e}"));
        assert!(
            self.running.insert(name.to_owned(), child).is_none(),
            "{name} runs already"
        );
    }

    /// Starts a daemon with the configuration of that name.
    pub(crate) fn start(&mut self, name: &str) {
        let program = match name {
            HUB => "cnova-hub",
            GATEWAY => "cnova-gateway",
            _ => "cnova-agent",
        };
        let mut command = Command::new(self.bin.join(program));
        command
            .args(["run", "--config"])
            .arg(self.path(&format!("{name}.toml")));
        self.spawn(name, &mut command);
    }

    /// Everything of this shape; mosquittos first.
    pub(crate) fn start_all(&mut self) {
        if self.shape == Shape::Mosquitto {
            self.start_mosquitto(HUB);
            self.start_mosquitto(GATEWAY);
        }
        self.start(HUB);
        if self.shape != Shape::NoGateway {
            self.start(GATEWAY);
        }
        self.start(AGENT);
        let nodes = if self.shape == Shape::NoGateway { 1 } else { 2 };
        self.wait("every node has said hello", |l| l.nodes().len() == nodes);
    }

    /// Whether there is a mosquitto; says so loudly when there is none.
    pub(crate) fn has_mosquitto() -> bool {
        let there = Path::new(MOSQUITTO).is_file();
        if !there {
            eprintln!("SKIPPED: {MOSQUITTO} is not there (apt install mosquitto): nothing was tested over it");
        }
        there
    }

    /// The name in `running` and of the log of the mosquitto that serves a node's children.
    pub(crate) fn mosquitto_of(node: &str) -> String {
        format!("mosquitto-{node}")
    }

    /// Starts the mosquitto that serves a node's children, configured as the node prints.
    pub(crate) fn start_mosquitto(&mut self, node: &str) {
        let name = Self::mosquitto_of(node);
        let folder = self.path(&name);
        let print = |of: &str, args: &[&str]| {
            let program = if of == HUB { "cnova-hub" } else { "cnova-gateway" };
            let config = self.path(&format!("{of}.toml"));
            let mut command = Command::new(self.bin.join(program));
            let said = bounded(
                command
                    .args(["print-mosquitto-config", "--config"])
                    .arg(config)
                    .args(args),
            );
            assert_eq!(said.code, Some(0), "{program}: {}", said.err);
            said.out
        };
        let place = folder.display().to_string();
        let (conf, acl) = if node == HUB {
            (print(node, &["--folder", &place]), print(node, &["--acl"]))
        } else {
            (
                print(node, &[]).replace("/etc/mosquitto/cnova", &place),
                print(node, &["--part", "acl"]),
            )
        };
        let first = conf
            .lines()
            .find(|l| l.starts_with("listener "))
            .expect("no listener")
            .to_owned();
        let conf = conf.replace(&first, &format!("listener {} 127.0.0.1", self.ports[node])) + "user root\n";
        // The hub prints no authorities; those of the gateway are the same ones.
        let files = [
            ("conf", conf),
            ("acl", acl),
            ("ca.pem", print(GATEWAY, &["--part", "ca"])),
        ];
        for (file, text) in files {
            self.write(&format!("{name}/{file}"), text);
        }
        for (from, to) in [("node.pem", "cert.pem"), ("node.key", "key.pem")] {
            fs::copy(self.path(&format!("trust/nodes/{node}/{from}")), folder.join(to)).unwrap();
        }
        self.spawn(&name, Command::new(MOSQUITTO).arg("-c").arg(folder.join("conf")));
    }

    /// Whether the daemon still runs.
    pub(crate) fn runs(&mut self, name: &str) -> bool {
        self.running
            .get_mut(name)
            .is_some_and(|c| matches!(c.try_wait(), Ok(None)))
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, name: &str) {
        let mut child = self
            .running
            .remove(name)
            .unwrap_or_else(|| panic!("{name} does not run"));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, and the end of it.
    pub(crate) fn stop(&mut self, name: &str) {
        let mut child = self
            .running
            .remove(name)
            .unwrap_or_else(|| panic!("{name} does not run"));
        signal(child.id(), Signal::TERM);
        let until = Instant::now() + POLITE;
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        let ended = matches!(child.try_wait(), Ok(Some(_)));
        let _ = child.kill();
        let _ = child.wait();
        assert!(ended, "{name} does not end when asked");
    }

    /// Processes of runtimes whose state folder is in this line's.
    pub(crate) fn workload_pids(&self) -> Vec<u32> {
        let state = self.path("state").display().to_string();
        let of_line = |entry: std::io::Result<fs::DirEntry>| {
            let entry = entry.ok()?;
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line);
            (line.contains("cnova-runtime-") && line.contains(&state)).then_some(pid)
        };
        fs::read_dir("/proc").unwrap().filter_map(of_line).collect()
    }

    /// The process that the hub shows for the workload, which is the only one of the line.
    pub(crate) fn pid(&self) -> u32 {
        let pid = self.workload()["pid"]
            .as_u64()
            .and_then(|p| u32::try_from(p).ok())
            .unwrap();
        assert_eq!(self.workload_pids(), [pid]);
        pid
    }

    pub(crate) fn log(&self, name: &str) -> String {
        fs::read_to_string(self.path(&format!("logs/{name}.log"))).unwrap_or_default()
    }

    /// Runs `cnova`, whatever comes of it.
    pub(crate) fn try_cnova(&self, args: &[&str]) -> Said {
        bounded(
            Command::new(self.bin.join("cnova"))
                .args(args)
                .current_dir(self.dir.path())
                .env("CNOVA_HUB", format!("http://127.0.0.1:{}", self.ports["api"]))
                .env("CNOVA_TOKEN", &self.token)
                .env_remove("CNOVA_TOKEN_FILE"),
        )
    }

    /// Runs `cnova`, which must work.
    pub(crate) fn cnova(&self, args: &[&str]) -> String {
        let said = self.try_cnova(args);
        assert_eq!(said.code, Some(0), "cnova {}: {}{}", args.join(" "), said.out, said.err);
        said.out
    }

    fn rows(&self, what: &str) -> Vec<Value> {
        let said = self.try_cnova(&["get", what, "-o", "json"]);
        serde_json::from_str::<Value>(&said.out)
            .ok()
            .and_then(|v| v.as_array().cloned())
            .unwrap_or_default()
    }

    /// `cnova get nodes`; nothing when the hub does not answer.
    pub(crate) fn nodes(&self) -> Vec<Value> {
        self.rows("nodes")
    }

    pub(crate) fn node(&self, node: &str) -> Value {
        self.nodes().into_iter().find(|n| n["node"] == node).unwrap_or_default()
    }

    /// The workload on the agent; null when the hub does not know of it.
    pub(crate) fn workload(&self) -> Value {
        self.rows("workloads")
            .into_iter()
            .find(|w| w["node"] == AGENT)
            .unwrap_or_default()
    }

    /// Every node is connected and in sync, and the workload runs in this generation.
    pub(crate) fn has_converged(&self, generation: u64) -> bool {
        // A mosquitto tells a gateway nothing about who is connected to it.
        let is_up = |n: &Value| n["link"] == "connected" || self.shape == Shape::Mosquitto && n["link"] == "unknown";
        let w = self.workload();
        w["state"] == "running"
            && w["generation"] == generation
            && w["desired"] == generation
            && self.nodes().iter().all(|n| is_up(n) && n["in_sync"] == true)
    }

    pub(crate) fn wait(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !done(self) {
            let (nodes, workload) = (self.nodes(), self.workload());
            assert!(
                Instant::now() < until,
                "waited in vain: {what}\nnodes: {nodes:#?}\nworkload: {workload:#}"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Writes a version of the application and returns the manifest's path.
    pub(crate) fn version(&self, version: u32) -> String {
        let wasm = wat::parse_str(include_str!("guest.wat").replace('#', &version.to_string())).unwrap();
        self.write(&format!("v{version}/guest.wasm"), wasm);
        self.write(&format!("v{version}/{APP}.yaml"), include_str!("watch.yaml"))
            .display()
            .to_string()
    }

    /// Applies a version and waits until it is reported; it and nothing else runs then.
    pub(crate) fn apply(&self, version: u32) {
        let manifest = self.version(version);
        self.cnova(&["apply", &manifest, "--wait=60"]);
        self.wait_for_version(version);
    }

    pub(crate) fn wait_for_version(&self, version: u32) {
        self.wait(&format!("version {version} runs"), |l| l.has_converged(version.into()));
        let line = format!("version {version} is awake");
        self.wait(&format!("{line:?} in the log"), |l| {
            l.try_cnova(&["logs", WORKLOAD, "--node", AGENT]).out.contains(&line)
        });
    }

    /// Deletes the application and waits until nothing of it is left.
    pub(crate) fn delete(&self) {
        self.cnova(&["delete", APP, "--yes"]);
        self.wait("no workload process is left", |l| l.workload_pids().is_empty());
        self.wait("the hub shows no workload", |l| {
            l.try_cnova(&["get", "workloads", "-o", "json"]).out.trim() == "[]"
        });
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        for child in self.running.values() {
            signal(child.id(), Signal::TERM);
        }
        let until = Instant::now() + POLITE;
        for (_, mut child) in std::mem::take(&mut self.running) {
            while Instant::now() < until && matches!(child.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        // Workloads outlive their agents by design.
        for pid in self.workload_pids() {
            signal(pid, Signal::KILL);
        }
        if std::thread::panicking() {
            let logs = fs::read_dir(self.path("logs"))
                .into_iter()
                .flatten()
                .filter_map(Result::ok);
            for log in logs {
                let text = fs::read_to_string(log.path()).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                let last = lines[lines.len().saturating_sub(40)..].join("\n");
                eprintln!("== the end of {}\n{last}", log.path().display());
            }
        }
    }
}
