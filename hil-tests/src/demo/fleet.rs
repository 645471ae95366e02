//! The demo's processes: their folders, configurations, ports and ends.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{DemoError, Options};

/// The tree: node, site path, parent.
pub(crate) const TREE: [(&str, &str, &str); 6] = [
    ("hub-1", "hub", ""),
    ("area-gw", "plant-7", "hub-1"),
    ("line-gw", "plant-7/line-2", "area-gw"),
    ("plc-1", "plant-7/line-2/plc-1", "line-gw"),
    ("plc-2", "plant-7/line-2/plc-2", "line-gw"),
    ("plc-3", "plant-7/line-2/plc-3", "line-gw"),
];
/// The agents.
pub(crate) const AGENTS: [&str; 3] = ["plc-1", "plc-2", "plc-3"];
/// The application of the demo.
pub(crate) const APP: &str = "vibration-watch";

/// All processes of the demo.
pub(crate) struct Fleet {
    options: Options,
    ports: BTreeMap<&'static str, u16>,
    running: BTreeMap<String, Child>,
    token: String,
}

fn write(path: &Path, text: &str) -> Result<(), DemoError> {
    fs::write(path, text).map_err(|source| DemoError::File {
        path: path.to_owned(),
        source,
    })
}

fn free_port() -> Result<u16, DemoError> {
    let fail = |e: std::io::Error| DemoError::Wrong(format!("no free port on loopback: {e}"));
    let listener = TcpListener::bind("127.0.0.1:0").map_err(fail)?;
    Ok(listener.local_addr().map_err(fail)?.port())
}

impl Fleet {
    /// Makes the folder anew.
    pub(crate) fn new(options: Options) -> Result<Self, DemoError> {
        let dir = &options.dir;
        let marker = dir.join(".cnova-demo");
        if dir.exists() {
            if !marker.exists() {
                let why = format!(
                    "{} exists and was not made by a demo; name another folder",
                    dir.display()
                );
                return Err(DemoError::Wrong(why));
            }
            fs::remove_dir_all(dir).map_err(|source| DemoError::File {
                path: dir.clone(),
                source,
            })?;
        }
        fs::create_dir_all(dir.join("logs")).map_err(|source| DemoError::File {
            path: dir.clone(),
            source,
        })?;
        write(&marker, "made by the demo, removed by the next one\n")?;
        let mut ports = BTreeMap::new();
        for name in ["api", "hub-1", "area-gw", "line-gw"] {
            ports.insert(name, free_port()?);
        }
        Ok(Self {
            options,
            ports,
            running: BTreeMap::new(),
            token: String::new(),
        })
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.options.dir
    }

    pub(crate) fn port(&self, name: &str) -> u16 {
        self.ports.get(name).copied().unwrap_or(0)
    }

    /// Where a node's certificate, key and trust bundle lie.
    pub(crate) fn identity(&self, node: &str) -> PathBuf {
        self.dir().join("trust/nodes").join(node)
    }

    /// Root of trust, certificates, token and configurations.
    pub(crate) fn set_up(&mut self) -> Result<(), DemoError> {
        let trust = self.dir().join("trust");
        let trust = trust.display().to_string();
        self.cnova(&["trust", "init", &trust, "--tree", "demo"])?;
        for (node, site, _) in TREE {
            self.cnova(&["trust", "issue", node, "--site", site, "--dir", &trust])?;
        }
        let tokens = self.dir().join("tokens.toml").display().to_string();
        let token = self.cnova(&["token", "new", "--name", "demo", "--role", "admin", "--tokens", &tokens])?;
        self.token = token.trim().to_owned();
        for (node, site, parent) in TREE {
            let text = self.configuration(node, site, parent);
            write(&self.dir().join(format!("{node}.toml")), &text)?;
        }
        Ok(())
    }

    fn configuration(&self, node: &str, site: &str, parent: &str) -> String {
        let dir = self.dir().display();
        let id = self.identity(node);
        let id = id.display();
        let identity = format!(
            "[identity]\ncertificate = \"{id}/node.pem\"\nkey = \"{id}/node.key\"\ntrust_bundle = \"{id}/trust-bundle.cose\"\n"
        );
        let state = format!("state_dir = \"{dir}/state/{node}\"\n");
        let up = format!(
            "[parent]\nnode = \"{parent}\"\naddress = \"127.0.0.1:{}\"\n",
            self.port(parent)
        );
        match node {
            "hub-1" => format!(
                "{state}tokens = \"{dir}/tokens.toml\"\n{identity}[signing]\nkey = \"{dir}/trust/hub-signing.key\"\n\
                 [api]\nlisten = \"127.0.0.1:{}\"\n[mqtt]\nlisten = \"127.0.0.1:{}\"\n",
                self.port("api"),
                self.port("hub-1")
            ),
            "area-gw" | "line-gw" => format!(
                "site = \"{site}\"\n{state}{up}{identity}[listen]\naddress = \"127.0.0.1:{}\"\n",
                self.port(node)
            ),
            _ => format!(
                "site = \"{site}\"\n{state}runtime_dir = \"{}\"\n{up}{identity}[labels]\nrole = \"plc\"\n\
                 [capacity]\nmemory = \"64MiB\"\ncpu_millis = 500\n",
                self.options.bin.display()
            ),
        }
    }

    fn program(node: &str) -> &'static str {
        match node {
            "hub-1" => "cnova-hub",
            "area-gw" | "line-gw" => "cnova-gateway",
            _ => "cnova-agent",
        }
    }

    /// Starts a node's daemon; its log goes to `logs/`.
    pub(crate) fn start(&mut self, node: &str) -> Result<(), DemoError> {
        let program = Self::program(node);
        let fail = |reason: String| DemoError::Program {
            program: format!("{program} for {node}"),
            reason,
        };
        let path = self.dir().join("logs").join(format!("{node}.log"));
        let log = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(|e| fail(e.to_string()))?;
        let config = self.dir().join(format!("{node}.toml"));
        let child = Command::new(self.options.bin.join(program))
            .args(["run", "--config"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(|e| fail(e.to_string()))?)
            .stderr(log)
            .spawn()
            .map_err(|e| fail(e.to_string()))?;
        self.running.insert(node.to_owned(), child);
        Ok(())
    }

    /// The daemon's process.
    pub(crate) fn pid(&self, node: &str) -> u32 {
        self.running.get(node).map_or(0, Child::id)
    }

    /// Ends a daemon with SIGKILL.
    pub(crate) fn kill(&mut self, node: &str) {
        if let Some(mut child) = self.running.remove(node) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Ends every daemon: politely, then for certain.
    pub(crate) fn stop_all(&mut self) {
        for child in self.running.values() {
            let _ = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap_or(0))
                .map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::TERM));
        }
        let until = Instant::now() + Duration::from_secs(5);
        for (_, mut child) in std::mem::take(&mut self.running) {
            while Instant::now() < until && matches!(child.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        // Workloads outlive their agents by design; a demo that ends early ends them too.
        for pid in self.workload_pids() {
            let _ = rustix::process::Pid::from_raw(pid)
                .map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL));
        }
    }

    /// Writes the token where a person finds it.
    pub(crate) fn write_token(&self, path: &Path) -> Result<(), DemoError> {
        write(path, &self.token)
    }

    /// The token of the tree's administrator.
    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    /// Leaves everything running.
    pub(crate) fn leave(&mut self) {
        std::mem::take(&mut self.running);
    }

    /// Processes of runtimes whose state folder is this demo's.
    pub(crate) fn workload_pids(&self) -> Vec<i32> {
        let state = self.dir().join("state").display().to_string();
        let Ok(procs) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        let of_demo = |entry: std::io::Result<fs::DirEntry>| {
            let entry = entry.ok()?;
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).into_owned();
            (line.contains("cnova-runtime-") && line.contains(&state)).then_some(pid)
        };
        procs.filter_map(of_demo).collect()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.options.bin.join("cnova"));
        command
            .args(args)
            .env("CNOVA_HUB", format!("http://127.0.0.1:{}", self.port("api")))
            .env("CNOVA_TOKEN", &self.token)
            .stdin(Stdio::null());
        command
    }

    /// Runs `cnova` and returns what it printed.
    pub(crate) fn cnova(&self, args: &[&str]) -> Result<String, DemoError> {
        let fail = |reason: String| DemoError::Program {
            program: format!("cnova {}", args.join(" ")),
            reason,
        };
        let out = self.command(args).output().map_err(|e| fail(e.to_string()))?;
        if !out.status.success() {
            return Err(fail(String::from_utf8_lossy(&out.stderr).trim().to_owned()));
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Runs `cnova` and shows the command and what it prints, as it prints it.
    pub(crate) fn show(&self, args: &[&str]) -> Result<(), DemoError> {
        super::story::say(&format!("  $ cnova {}", args.join(" ")));
        let fail = |reason: String| DemoError::Program {
            program: format!("cnova {}", args.join(" ")),
            reason,
        };
        let status = self.command(args).status().map_err(|e| fail(e.to_string()))?;
        if status.success() {
            Ok(())
        } else {
            Err(fail(format!("ended with {status}")))
        }
    }

    /// Runs `cnova` and reads its JSON.
    pub(crate) fn json(&self, args: &[&str]) -> Result<Value, DemoError> {
        let mut all = args.to_vec();
        all.extend(["--output", "json"]);
        let text = self.cnova(&all)?;
        serde_json::from_str(&text).map_err(|e| DemoError::Wrong(format!("cnova {} is not JSON: {e}", all.join(" "))))
    }

    /// Waits until `done` says yes.
    pub(crate) fn wait(
        &self,
        seconds: u64,
        what: &str,
        mut done: impl FnMut(&Self) -> bool,
    ) -> Result<Duration, DemoError> {
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(seconds) {
            if done(self) {
                return Ok(begin.elapsed());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let logs = self.dir().join("logs").display().to_string();
        Err(DemoError::Waited {
            seconds,
            what: what.to_owned(),
            logs,
        })
    }

    /// The newest live instance of the demo's workload on an agent: process and the folder of the instance.
    pub(crate) fn instance(&self, node: &str) -> Option<(u32, PathBuf)> {
        let run = self.dir().join("state").join(node).join("run");
        let mut all: Vec<(u64, u32, PathBuf)> = fs::read_dir(run)
            .ok()?
            .filter_map(|e| {
                let path = e.ok()?.path();
                let text = fs::read_to_string(path.join("state.json")).ok()?;
                let state: Value = serde_json::from_str(&text).ok()?;
                let pid = u32::try_from(state["pid"].as_u64()?).ok()?;
                let alive = Path::new("/proc").join(pid.to_string()).exists() && !path.join("exit.json").exists();
                alive.then(|| (state["attempt"].as_u64().unwrap_or(0), pid, path))
            })
            .collect();
        all.sort();
        all.pop().map(|(_, pid, path)| (pid, path))
    }
}
