//! Starts the real executable in a state folder, the way the agent does.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::thread::sleep;
use std::time::{Duration, Instant};

use cnova_ral::{Exit, Spec, State, read_exit, read_state, spawn, write_spec};
use tempfile::TempDir;

pub(crate) const RUNTIME: &str = env!("CARGO_BIN_EXE_cnova-runtime-wasm");

/// Long enough that only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A state folder with a spec, and the process that runs it.
pub(crate) struct Workload {
    pub(crate) home: TempDir,
    pub(crate) spec: Spec,
    pub(crate) child: Option<Child>,
}

impl Workload {
    /// A guest in the text format, compiled as the hub does, with a spec that grants nothing.
    pub(crate) fn new(wat: &str) -> Workload {
        let wasm = wat::parse_str(wat).unwrap();
        let target = cnova_wasm_engine::HOST_TARGET.unwrap();
        Workload::of_artifact(&cnova_wasm_engine::precompile(target, &wasm).unwrap())
    }

    /// Any bytes as artifact, with the right digest.
    pub(crate) fn of_artifact(bytes: &[u8]) -> Workload {
        let home = tempfile::tempdir().unwrap();
        let artifact = home.path().join("artifact.cwasm");
        fs::write(&artifact, bytes).unwrap();
        let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
        let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let spec = serde_json::from_value(serde_json::json!({
            "ral": 1, "workload": "test", "generation": 7, "attempt": 1,
            "artifact": artifact, "digest": format!("sha256:{hex}"),
            "limits": { "memory_bytes": 4 << 20, "log_bytes": 64 << 10 },
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

    /// Starts it and waits until it runs.
    pub(crate) fn start_and_wait(&mut self) -> State {
        self.start();
        self.state()
    }

    /// The state file, once it is there.
    pub(crate) fn state(&mut self) -> State {
        wait_for(|| {
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
        let status = wait_for(|| child.try_wait().unwrap());
        (status, read_exit(&self.dir()).unwrap())
    }

    /// Starts it and waits for its end.
    pub(crate) fn run(&mut self) -> Exit {
        self.start();
        let (status, exit) = self.end();
        assert_eq!(status.signal(), None, "the runtime itself died: {}", self.complaints());
        exit.unwrap_or_else(|| panic!("no exit file: {}", self.complaints()))
    }

    /// The texts of the log.
    pub(crate) fn log(&self) -> Vec<String> {
        let lines = cnova_ral::tail_log(&self.dir(), 1 << 20).unwrap();
        lines.into_iter().map(|line| line.text).collect()
    }

    fn complaints(&self) -> String {
        fs::read_to_string(self.dir().join(cnova_ral::file::RUNTIME_ERR)).unwrap_or_default()
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

/// Asks until there is an answer.
pub(crate) fn wait_for<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "waited too long");
        sleep(Duration::from_millis(2));
    }
}
