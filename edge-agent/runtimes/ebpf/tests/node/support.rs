//! Starts the real executable in a state folder, the way the agent does.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::thread::sleep;
use std::time::{Duration, Instant};

use cnova_ral::{Client, Exit, ExitReason, Health, Metrics, Spec, State, read_exit, read_state, spawn, write_spec};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::network::Namespace;

pub(crate) const RUNTIME: &str = env!("CARGO_BIN_EXE_cnova-runtime-ebpf");

/// Long enough that only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A state folder with a spec, and the process that runs it.
pub(crate) struct Workload {
    pub(crate) home: TempDir,
    pub(crate) spec: Spec,
    pub(crate) child: Option<Child>,
}

impl Workload {
    pub(crate) fn new(object: &[u8], settings: Value) -> Workload {
        let home = tempfile::tempdir().unwrap();
        let artifact = home.path().join("artifact.o");
        fs::write(&artifact, object).unwrap();
        let digest = ring::digest::digest(&ring::digest::SHA256, object);
        let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let spec = serde_json::from_value(json!({
            "ral": 1, "workload": "test", "generation": 7, "attempt": 1,
            "artifact": artifact, "digest": format!("sha256:{hex}"),
            "limits": { "memory_bytes": 16 << 20, "log_bytes": 256 << 10 },
            "settings": settings,
        }))
        .unwrap();
        Workload {
            home,
            spec,
            child: None,
        }
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.home.path().join("state")
    }

    pub(crate) fn start(&mut self) {
        write_spec(&self.dir(), &self.spec).unwrap();
        self.child = Some(spawn(Path::new(RUNTIME), &self.dir()).unwrap());
    }

    /// Starts it in another network namespace, and waits until it runs.
    pub(crate) fn start_in(&mut self, namespace: &Namespace) -> State {
        write_spec(&self.dir(), &self.spec).unwrap();
        let dir = self.dir();
        self.child = Some(namespace.run(move || spawn(Path::new(RUNTIME), &dir).unwrap()));
        self.state()
    }

    pub(crate) fn start_and_wait(&mut self) -> State {
        self.start();
        self.state()
    }

    /// The state file, once it is there.
    pub(crate) fn state(&mut self) -> State {
        wait_for("a state file", || {
            let state = read_state(&self.dir()).unwrap();
            let ended = self
                .child
                .as_mut()
                .is_some_and(|child| child.try_wait().unwrap().is_some());
            assert!(state.is_some() || !ended, "ended: {:?}", read_exit(&self.dir()));
            state
        })
    }

    /// Waits for the end of the process; the exit file if it left one.
    pub(crate) fn end(&mut self) -> (ExitStatus, Option<Exit>) {
        let mut child = self.child.take().unwrap();
        let status = wait_for("the end", || child.try_wait().unwrap());
        (status, read_exit(&self.dir()).unwrap())
    }

    /// Starts it and waits for its end.
    pub(crate) fn run(&mut self) -> Exit {
        self.start();
        let (status, exit) = self.end();
        assert_eq!(status.signal(), None, "the runtime itself died");
        exit.unwrap()
    }

    /// Starts it, and says why it is refused.
    pub(crate) fn refusal(&mut self) -> String {
        let exit = self.run();
        assert_eq!(exit.reason, ExitReason::Refused, "{exit:?}");
        exit.detail.unwrap()
    }

    pub(crate) fn stop(&mut self) -> Exit {
        Client::connect(&self.dir()).unwrap().stop(None).unwrap();
        self.end().1.unwrap()
    }

    pub(crate) fn metrics(&self) -> Metrics {
        Client::connect(&self.dir()).unwrap().metrics().unwrap()
    }

    pub(crate) fn health(&self) -> Health {
        Client::connect(&self.dir()).unwrap().health().unwrap()
    }

    pub(crate) fn counter(&self, name: &str) -> f64 {
        self.metrics().counters.get(name).copied().unwrap_or(0.0)
    }

    /// The texts of the log.
    pub(crate) fn log(&self) -> Vec<String> {
        let lines = cnova_ral::tail_log(&self.dir(), 1 << 20).unwrap();
        lines.into_iter().map(|line| line.text).collect()
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Settings with one program.
pub(crate) fn one(name: &str, kind: &str, attach: &str) -> Value {
    json!({ "programs": [{ "name": name, "kind": kind, "attach": attach }] })
}

/// The same, with the map `seen` as metric `seen`.
pub(crate) fn one_counted(name: &str, kind: &str, attach: &str) -> Value {
    let mut settings = one(name, kind, attach);
    settings["metrics"] = json!({ "seen": "sum" });
    settings
}

/// Asks until there is an answer.
pub(crate) fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "waited too long for {what}");
        sleep(Duration::from_millis(5));
    }
}

/// Whether this test can do what it needs; says why not.
pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root() && cnova_runtime_ebpf::confine::has(21);
    if !root {
        eprintln!("skipped: only root can load programs here");
    }
    root
}
