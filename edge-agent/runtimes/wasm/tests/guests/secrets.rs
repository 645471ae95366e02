//! Secrets: what the workload reads, and where they are not.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use cnova_ral::{ExitReason, Handle, SecretSlot, Secrets, is_in_memory, spawn_with, write_spec};

use crate::support::{RUNTIME, Workload, wait_for};

const ENV_VALUE: &str = "planted-in-a-variable-5f2c";
const FILE_VALUE: &str = "planted-in-a-file-91ab";

fn fnv(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    format!("{hash:08x}")
}

fn expected() -> String {
    let env = fnv(format!("DB={ENV_VALUE}\0").as_bytes());
    format!("env {env} file {}", fnv(FILE_VALUE.as_bytes()))
}

fn slots() -> Vec<SecretSlot> {
    vec![
        SecretSlot::Env("DB".into()),
        SecretSlot::File("/run/secrets/key".into()),
    ]
}

fn secrets() -> Secrets {
    let values = [ENV_VALUE, FILE_VALUE].map(|v| v.as_bytes().to_vec().into());
    Secrets::new(slots().into_iter().zip(values).collect()).unwrap()
}

/// Starts it as the agent does, with these secrets handed over.
fn start(workload: &mut Workload, secrets: Secrets) {
    write_spec(&workload.dir(), &workload.spec).unwrap();
    let input = secrets.into_input().unwrap();
    workload.child = Some(spawn_with(Path::new(RUNTIME), &workload.dir(), None, input).unwrap());
}

fn reader() -> Workload {
    let mut workload = Workload::new(include_str!("wat/secrets.wat"));
    workload.spec.secrets = slots();
    workload
}

/// Whether one of the values is in a file below a folder.
fn is_planted(dir: &Path) -> Option<String> {
    let holds = |bytes: &[u8]| {
        [ENV_VALUE, FILE_VALUE]
            .iter()
            .any(|v| bytes.windows(v.len()).any(|w| w == v.as_bytes()))
    };
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            if let Some(found) = is_planted(&path) {
                return Some(found);
            }
        } else if kind.is_file() && holds(&fs::read(&path).unwrap()) {
            return Some(path.display().to_string());
        }
    }
    None
}

#[test]
fn a_workload_reads_its_secrets_and_nothing_of_them_is_on_the_disk() {
    let mut workload = reader();
    workload.spec.args = vec!["stay".into()];
    start(&mut workload, secrets());
    workload.state();
    wait_for(|| (!workload.log().is_empty()).then_some(()));
    assert_eq!(workload.log(), [expected()], "and it cannot write the file");
    // Where this process cannot mount a place of its own for them, they are in the folder, and it has to be in memory.
    let is_root = fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
    if is_root {
        assert_eq!(is_planted(workload.home.path()), None);
    }
    let pid = workload.child.as_ref().unwrap().id();
    for file in ["environ", "cmdline"] {
        let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        assert!(!bytes.windows(7).any(|w| w == b"planted"), "{file}");
    }
    let input = fs::read_link(format!("/proc/{pid}/fd/0")).unwrap();
    assert_eq!(input, Path::new("/dev/null"), "the pipe is given back");
    workload.child.as_mut().unwrap().kill().unwrap();
    workload.end();
    assert_eq!(is_planted(workload.home.path()), None, "also when it was killed");
}

#[test]
fn the_next_attempt_in_the_folder_reads_the_new_value() {
    let mut workload = reader();
    start(&mut workload, secrets());
    let (_, exit) = workload.end();
    assert_eq!(exit.unwrap().reason, ExitReason::Finished);
    let other = ["another-value", "and-file"].map(|v| v.as_bytes().to_vec().into());
    start(
        &mut workload,
        Secrets::new(slots().into_iter().zip(other).collect()).unwrap(),
    );
    workload.end();
    let second = format!("env {} file {}", fnv(b"DB=another-value\0"), fnv(b"and-file"));
    assert_eq!(workload.log(), [expected(), second]);
}

#[test]
fn without_its_secrets_it_is_refused() {
    let mut workload = reader();
    let exit = workload.run();
    assert_eq!(exit.reason, ExitReason::Refused);
    assert!(exit.detail.unwrap().contains("there are fewer than it names"));
    let mut workload = reader();
    workload.spec.secrets.truncate(1);
    start(&mut workload, secrets());
    let exit = workload.end().1.unwrap();
    assert_eq!(exit.reason, ExitReason::Refused);
    let detail = exit.detail.unwrap();
    assert!(
        detail.contains("there are more than it names") && !detail.contains("planted"),
        "{detail}"
    );
    let mut workload = reader();
    workload.spec.settings = serde_json::json!({"coreDump": true});
    start(&mut workload, secrets());
    let exit = workload.end().1.unwrap();
    assert!(exit.detail.unwrap().contains("core dump would hold the secrets"));
}

/// Starts it without the right to mount anything, as an agent that is not root does.
fn start_without_mounts(workload: &mut Workload) -> bool {
    write_spec(&workload.dir(), &workload.spec).unwrap();
    let mut command = Command::new("setpriv");
    command.arg("--bounding-set=-sys_admin").arg(RUNTIME);
    command.args(["run", "--state"]).arg(workload.dir());
    command.stdin(secrets().into_input().unwrap().unwrap());
    match command.stdout(Stdio::null()).stderr(Stdio::null()).spawn() {
        Ok(child) => workload.child = Some(child),
        Err(error) => eprintln!("skipped: setpriv (util-linux): {error}"),
    }
    workload.child.is_some()
}

#[test]
fn without_the_right_to_mount_the_folder_must_be_in_memory() {
    let shm = Path::new("/dev/shm");
    if !is_in_memory(shm).unwrap_or(false) {
        return eprintln!("skipped: /dev/shm is no tmpfs here");
    }
    let mut workload = reader();
    workload.spec.args = vec!["stay".into()];
    let artifact = std::mem::replace(&mut workload.home, tempfile::tempdir_in(shm).unwrap());
    if !start_without_mounts(&mut workload) {
        return;
    }
    workload.state();
    wait_for(|| (!workload.log().is_empty()).then_some(()));
    assert_eq!(workload.log(), [expected()]);
    let file = workload.dir().join("secrets/run/secrets/key");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o400);
    Handle::open(&workload.state()).unwrap().terminate().unwrap();
    workload.end();
    assert!(!workload.dir().join("secrets").exists(), "it goes with the workload");
    drop(artifact);

    let mut workload = reader();
    if is_in_memory(workload.home.path()).unwrap() {
        return eprintln!("skipped: the temporary folder is in memory, too");
    }
    assert!(start_without_mounts(&mut workload));
    let exit = workload.end().1.unwrap();
    assert_eq!(exit.reason, ExitReason::Refused);
    assert!(exit.detail.unwrap().contains("is not on a tmpfs"));
    assert_eq!(is_planted(workload.home.path()), None);
}
