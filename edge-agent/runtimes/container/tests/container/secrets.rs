//! Secrets: what the container reads, who else may, and where they are not.

use std::fs;
use std::path::Path;

use cnova_ral::{ExitReason, SecretSlot, Secrets, write_spec};
use serde_json::json;

use crate::support::{Workload, missing};

const ENV_VALUE: &str = "planted in a variable 5f2c";
const FILE_VALUE: &str = "planted in a file 91ab\n";

fn slots() -> Vec<SecretSlot> {
    vec![
        SecretSlot::Env("DB".into()),
        SecretSlot::File("/run/secrets/key".into()),
        SecretSlot::File("/etc/app/second".into()),
    ]
}

fn with_secrets(script: &str) -> Workload {
    let values = [ENV_VALUE, FILE_VALUE, "2"].map(|v| v.as_bytes().to_vec().into());
    let secrets = Secrets::new(slots().into_iter().zip(values).collect()).unwrap();
    let mut workload = Workload::shell(script).with(|spec| spec.secrets = slots());
    workload.input = secrets.into_input().unwrap();
    workload
}

/// Files below a folder that hold one of the values.
fn planted(dir: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => planted(&path, found),
            Ok(kind) if kind.is_file() => {
                let bytes = fs::read(&path).unwrap_or_default();
                if bytes.windows(10).any(|w| w == b"planted in") {
                    found.push(path.display().to_string());
                }
            }
            _ => {}
        }
    }
}

#[test]
fn variables_and_files_are_the_users_alone_and_on_no_disk() {
    if missing(&[]) {
        return;
    }
    let script = "cd /run/secrets; stat -c '%a %u %g' key; wc -c < key; cat /etc/app/second; echo; \
        case \"$DB\" in planted*5f2c) echo env;; esac; grep -q 'file 91ab' key && echo file; \
        touch key 2>&1; rm key 2>&1; echo x > key; grep -c ' /run/secrets/key .*tmpfs' /proc/self/mountinfo; exec sleep 1000";
    let mut workload = with_secrets(script).settings(json!({"user": "7:8"}));
    let state = workload.start_and_wait();
    workload.says("1");
    workload.says("Read-only");
    let log = workload.log();
    assert_eq!(log[..5], ["400 7 8", "23", "2", "env", "file"], "{log:?}");
    assert!(
        log.iter()
            .filter(|l| l.contains("ead-only") || l.contains("usy"))
            .count()
            >= 2,
        "{log:?}"
    );
    let mut found = Vec::new();
    planted(workload.home.path(), &mut found);
    assert!(found.is_empty(), "{found:?}");
    for file in ["environ", "cmdline"] {
        let bytes = fs::read(format!("/proc/{}/{file}", state.pid)).unwrap_or_default();
        assert!(!bytes.windows(7).any(|w| w == b"planted"), "{file} of the shim");
    }
    assert_eq!(
        fs::read_link(format!("/proc/{}/fd/0", state.pid)).unwrap(),
        Path::new("/dev/null")
    );
    workload.stop(10);
    workload.exit();
}

#[test]
fn another_user_of_the_container_does_not_read_the_file() {
    if missing(&[]) {
        return;
    }
    // Root in the container, without the right to pass over modes, is another user than 7.
    let mut workload = with_secrets("cat /run/secrets/key | wc -c").settings(json!({"user": "7"}));
    assert_eq!(workload.output(), ["23"]);
    let mut workload = Workload::shell("echo ${DB-none}; ls /run/secrets 2>&1 | head -1");
    let log = workload.output();
    assert_eq!(log[0], "none", "another container has nothing of it");
    assert!(log[1].contains("No such file"), "{log:?}");
}

#[test]
fn a_probe_and_an_installed_runtime_find_them() {
    if missing(&["/usr/bin/crun"]) {
        return;
    }
    let settings = json!({"isolation": "sandbox", "user": "7"});
    let mut workload = with_secrets("echo ${#DB}; wc -c < /run/secrets/key; echo x 2>&1 > /run/secrets/key; true")
        .settings(settings)
        .variable("CNOVA_OCI_SANDBOX", "crun");
    let log = workload.output();
    assert_eq!(log[..2], ["26", "23"], "{log:?}");
    let mut found = Vec::new();
    planted(workload.home.path(), &mut found);
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn without_its_secrets_it_is_refused() {
    if missing(&[]) {
        return;
    }
    let mut workload = Workload::shell("true").with(|spec| spec.secrets = slots());
    write_spec(&workload.dir(), &workload.spec).unwrap();
    let exit = workload.run();
    assert_eq!(exit.reason, ExitReason::Refused);
    assert!(exit.detail.unwrap().contains("there are fewer than it names"));
}
