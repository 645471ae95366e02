//! Starts the real executable in a state folder, the way the agent does, with images made of this machine's packages.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use cnova_oci::testing::{BuiltImage, ImageBuilder, LayerBuilder};
use cnova_ral::cgroup::{Group, Parent};
use cnova_ral::{Client, Exit, Health, Metrics, Spec, State, read_exit, read_state, run_command, write_spec};
use cnova_ral_conformance::guest;
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) const RUNTIME: &str = env!("CARGO_BIN_EXE_cnova-runtime-container");

/// Long enough that only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same in a guest, which is emulated.
const PATIENCE_IN_GUEST: Duration = Duration::from_secs(240);
/// Below which group those of the tests are made.
const GROUP_PARENT: &str = "cnova-container-tests";

/// Commands that the busybox image has.
const COMMANDS: [&str; 34] = [
    "sh", "sleep", "echo", "cat", "id", "ls", "mount", "umount", "unshare", "touch", "kill", "dd", "head", "nc", "wc",
    "true", "false", "ping", "hostname", "stat", "httpd", "mkdir", "rm", "grep", "env", "pwd", "tail", "test", "mknod",
    "ip", "chmod", "seq", "nslookup", "ps",
];

/// Why a test cannot run here, if it cannot.
pub(crate) fn missing(programs: &[&str]) -> bool {
    let is_root = fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0);
    if !is_root {
        assert!(!in_guest(), "who made the guest did not make it well");
        eprintln!("skipped: containers need root");
        return true;
    }
    for program in programs.iter().chain(&["/bin/busybox"]) {
        if !Path::new(program).exists() {
            eprintln!("skipped: {program} is not installed");
            return true;
        }
    }
    false
}

/// Whether this is a virtual machine that a test has started.
pub(crate) fn in_guest() -> bool {
    std::env::var_os(guest::INSIDE).is_some()
}

pub(crate) fn busybox_layer() -> LayerBuilder {
    LayerBuilder::new().busybox(&COMMANDS).unwrap()
}

/// A state folder with a spec, and the process that runs it.
pub(crate) struct Workload {
    pub(crate) home: TempDir,
    pub(crate) spec: Spec,
    pub(crate) child: Option<Child>,
    pub(crate) variables: Vec<(&'static str, String)>,
    /// Where it is started, as the agent does it.
    pub(crate) group: Option<Group>,
    /// What it finds on its standard input.
    pub(crate) input: Option<OwnedFd>,
}

impl Workload {
    /// A shell script in the busybox image.
    pub(crate) fn shell(script: &str) -> Workload {
        static IMAGE: OnceLock<BuiltImage> = OnceLock::new();
        let image = IMAGE.get_or_init(|| {
            let config = json!({"Entrypoint": ["/bin/sh", "-c"], "Env": ["FROM_IMAGE=1"]});
            ImageBuilder::new().layer(busybox_layer()).config(config).build()
        });
        Workload::of(image).with(|spec| spec.args = vec![script.into()])
    }

    /// Any image, with a spec that grants nothing.
    pub(crate) fn of(image: &BuiltImage) -> Workload {
        let home = tempfile::tempdir().unwrap();
        let blobs = home.path().join("blobs");
        fs::create_dir(&blobs).unwrap();
        image.write_blobs(&blobs).unwrap();
        let path = |digest: &cnova_oci::Digest| blobs.join(digest.hex());
        let part = |digest| json!({"digest": digest, "path": path(digest)});
        let parts: Vec<Value> = image.parts.iter().map(part).collect();
        let spec = serde_json::from_value(json!({
            "ral": 1, "workload": "test", "generation": 7, "attempt": 1,
            "artifact": path(&image.digest), "digest": image.digest, "parts": parts,
            "cache": home.path().join("cache"),
            "limits": { "memory_bytes": 64 << 20, "log_bytes": 256 << 10 },
            "stop_grace_ms": 100,
        }))
        .unwrap();
        Workload {
            home,
            spec,
            child: None,
            variables: Vec::new(),
            group: group(),
            input: None,
        }
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut Spec)) -> Workload {
        change(&mut self.spec);
        self
    }

    pub(crate) fn settings(self, settings: Value) -> Workload {
        self.with(|spec| spec.settings = settings)
    }

    pub(crate) fn variable(mut self, name: &'static str, value: &str) -> Workload {
        self.variables.push((name, value.to_owned()));
        self
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.home.path().join("state")
    }

    pub(crate) fn start(&mut self) {
        write_spec(&self.dir(), &self.spec).unwrap();
        let mut command = run_command(Path::new(RUNTIME), &self.dir()).unwrap();
        command.envs(self.variables.clone());
        if let Some(group) = &self.group {
            group.enter_command(&mut command).unwrap();
        }
        if let Some(input) = self.input.take() {
            command.stdin(input);
        }
        self.child = Some(command.spawn().unwrap());
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
            let exit = read_exit(&self.dir());
            assert!(state.is_some() || !ended, "ended: {exit:?} {}", self.complaints());
            state
        })
    }

    /// Waits for the end of the process; the exit file if it left one.
    pub(crate) fn end(&mut self) -> (ExitStatus, Option<Exit>) {
        let mut child = self.child.take().unwrap();
        let status = wait_for(|| child.try_wait().unwrap());
        (status, read_exit(&self.dir()).unwrap())
    }

    /// Waits for the end; it must have left an exit file.
    pub(crate) fn exit(&mut self) -> Exit {
        let (status, exit) = self.end();
        assert_eq!(status.signal(), None, "the runtime itself died: {}", self.complaints());
        exit.unwrap_or_else(|| panic!("no exit file: {}", self.complaints()))
    }

    /// Starts it and waits for its end.
    pub(crate) fn run(&mut self) -> Exit {
        self.start();
        self.exit()
    }

    /// Runs it to an end with code 0; what it printed.
    pub(crate) fn output(&mut self) -> Vec<String> {
        let exit = self.run();
        assert_eq!(exit.code, Some(0), "{exit:?} {:?} {}", self.log(), self.complaints());
        self.log()
    }

    /// The texts of the log.
    pub(crate) fn log(&self) -> Vec<String> {
        let lines = cnova_ral::tail_log(&self.dir(), 1 << 20).unwrap();
        lines.into_iter().map(|line| line.text).collect()
    }

    /// Waits for a line.
    pub(crate) fn says(&self, text: &str) {
        wait_for(|| self.log().iter().any(|line| line.contains(text)).then_some(()));
    }

    pub(crate) fn health(&self) -> Health {
        let client = Client::connect(&self.dir());
        client
            .unwrap_or_else(|error| panic!("{error} {:?} {:?}", read_exit(&self.dir()), self.log()))
            .health()
            .unwrap()
    }

    pub(crate) fn metrics(&self) -> Metrics {
        Client::connect(&self.dir()).unwrap().metrics().unwrap()
    }

    pub(crate) fn stop(&self, grace_ms: u64) {
        Client::connect(&self.dir())
            .unwrap()
            .stop(Some(Duration::from_millis(grace_ms)))
            .unwrap();
    }

    pub(crate) fn complaints(&self) -> String {
        fs::read_to_string(self.dir().join(cnova_ral::file::RUNTIME_ERR)).unwrap_or_default()
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Politely, so that the control group goes too.
            let _ =
                rustix::process::kill_process(rustix::process::Pid::from_child(child), rustix::process::Signal::TERM);
            let end = Instant::now() + Duration::from_secs(15);
            while child.try_wait().is_ok_and(|status| status.is_none()) && Instant::now() < end {
                sleep(Duration::from_millis(5));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some(group) = &self.group {
            let _ = group.kill();
            let _ = group.remove();
        }
    }
}

/// A group of its own, where the system permits one.
fn group() -> Option<Group> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let made = Parent::find(Some(GROUP_PARENT)).and_then(|parent| Group::create(&parent, &name));
    made.inspect_err(|error| assert!(!in_guest(), "{error}")).ok()
}

/// Asks until there is an answer.
pub(crate) fn wait_for<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + if in_guest() { PATIENCE_IN_GUEST } else { PATIENCE };
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "waited too long");
        sleep(Duration::from_millis(2));
    }
}

impl Workload {
    /// Starts it once more in the same folder; how it ended, and what is left of its group.
    pub(crate) fn run_again(mut self) -> (Exit, Vec<PathBuf>) {
        if let Some(group) = &self.group {
            group.kill().unwrap();
        }
        let exit = self.run();
        let left = group_folders(&self);
        (exit, left)
    }
}

/// A process of this workload with this word in its command line, as the node sees it.
pub(crate) fn find_process(workload: &Workload, word: &str) -> i32 {
    wait_for(|| {
        let group = group_folders(workload).into_iter().next()?;
        let pids = fs::read_to_string(group.join("cgroup.procs")).ok()?;
        pids.lines().filter_map(|pid| pid.parse().ok()).find(|pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let exact = line.split(|byte| *byte == 0).any(|part| part == word.as_bytes());
            exact && !line.starts_with(b"/bin/sh")
        })
    })
}

pub(crate) fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// The folders of the workload's control group, in every hierarchy.
pub(crate) fn group_folders(workload: &Workload) -> Vec<PathBuf> {
    let dir = std::path::absolute(workload.dir()).unwrap();
    let id = cnova_oci::Digest::of(dir.as_os_str().as_encoded_bytes()).hex()[..12].to_owned();
    let name = format!("workload-{id}");
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name() == name.as_str() {
                    found.push(entry.path());
                }
                folders.push(entry.path());
            }
        }
    }
    found
}
