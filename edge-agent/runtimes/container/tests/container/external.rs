//! `isolation: sandbox` and `vm`, through the OCI runtimes that Debian has.

use cnova_ral::ExitReason;
use serde_json::json;

use crate::support::{Workload, group_folders, missing, wait_for};

fn lifecycle(kind: &str, variable: &'static str, program: &str) {
    let make = |script: &str| {
        let settings = json!({"isolation": kind, "tmpfs": [{"path": "/tmp"}]});
        Workload::shell(script).settings(settings).variable(variable, program)
    };
    let script = "echo out; echo err >&2; id -u; cat /proc/self/uid_map; grep -E '^(CapEff|NoNewPrivs|Seccomp:)' /proc/self/status; \
        touch /x; unshare -U true; exit 42";
    let mut workload = make(script);
    let exit = workload.run();
    let log = workload.log().join("\n");
    assert_eq!(
        (exit.code, exit.reason),
        (Some(42), ExitReason::Finished),
        "{exit:?} {log} {}",
        workload.complaints()
    );
    for expected in [
        "out",
        "err",
        "1000000",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "Read-only",
    ] {
        assert!(log.contains(expected), "{expected}: {log}");
    }
    assert!(group_folders(&workload).is_empty());
    let mut workload = make("trap '' TERM; echo up; while :; do sleep 0.1; done");
    workload.start_and_wait();
    workload.says("up");
    assert!(workload.health().healthy);
    workload.stop(10);
    let exit = workload.exit();
    assert_eq!((exit.signal, exit.reason), (Some(9), ExitReason::Stopped), "{exit:?}");
    let mut workload =
        make("exec dd if=/dev/zero of=/dev/null bs=200M count=2").with(|spec| spec.limits.memory_bytes = 32 << 20);
    let exit = workload.run();
    assert_eq!(exit.reason, ExitReason::Memory, "{exit:?} {:?}", workload.log());
}

#[test]
fn a_sandbox_through_crun() {
    if missing(&["/usr/bin/crun"]) {
        return;
    }
    lifecycle("sandbox", "CNOVA_OCI_SANDBOX", "crun");
}

#[test]
fn a_machine_through_runc() {
    if missing(&["/usr/sbin/runc"]) {
        return;
    }
    lifecycle("vm", "CNOVA_OCI_VM", "runc");
}

#[test]
fn a_probe_runs_through_it() {
    if missing(&["/usr/bin/crun"]) {
        return;
    }
    let settings = json!({"isolation": "sandbox", "probe": {"exec": ["/bin/sh", "-c", "exit 0"]}});
    let mut workload = Workload::shell("exec sleep 1000")
        .settings(settings)
        .variable("CNOVA_OCI_SANDBOX", "crun");
    workload.start_and_wait();
    wait_for(|| workload.health().healthy.then_some(()));
}

#[test]
fn what_is_not_installed_is_named() {
    if missing(&[]) {
        return;
    }
    for (kind, variable) in [("sandbox", "CNOVA_OCI_SANDBOX"), ("vm", "CNOVA_OCI_VM")] {
        let settings = json!({"isolation": kind});
        let mut workload = Workload::shell("true")
            .settings(settings)
            .variable(variable, "no-such-runtime");
        let exit = workload.run();
        assert_eq!(exit.reason, ExitReason::Refused);
        let detail = exit.detail.unwrap();
        assert!(
            detail.contains("`no-such-runtime`") && detail.contains("install it"),
            "{detail}"
        );
    }
}

#[test]
fn it_describes_what_it_can() {
    let described = cnova_ral::describe(std::path::Path::new(crate::support::RUNTIME)).unwrap();
    assert_eq!(described.runtime, "container");
    assert!(described.features.contains(&"oci-image".to_owned()), "{described:?}");
}
