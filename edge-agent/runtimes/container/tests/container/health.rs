//! Probes.

use cnova_ral::ExitReason;
use serde_json::json;

use crate::support::{Workload, find_process, missing, wait_for};

fn well(workload: &Workload) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !workload.health().healthy {
        assert!(
            std::time::Instant::now() < end,
            "{:?} {:?} {}",
            workload.health(),
            workload.log(),
            workload.complaints()
        );
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn ill(workload: &Workload) -> String {
    wait_for(|| {
        let health = workload.health();
        let detail = health.detail.filter(|detail| !detail.contains("not answered yet"));
        detail.filter(|_| !health.healthy)
    })
}

#[test]
fn without_a_probe_running_is_well() {
    if missing(&[]) {
        return;
    }
    let mut workload = Workload::shell("exec sleep 1000");
    workload.start_and_wait();
    well(&workload);
}

#[test]
fn a_port_is_asked_inside_the_containers_network() {
    if missing(&[]) {
        return;
    }
    let script = "echo up; sleep 0.2; while :; do nc -l -p 8123 </dev/null; done";
    let mut workload = Workload::shell(script).settings(json!({"probe": {"tcp": 8123}}));
    workload.start_and_wait();
    well(&workload);
    let mut workload = Workload::shell("exec sleep 1000").settings(json!({"probe": {"tcp": 8123}}));
    workload.start_and_wait();
    assert!(ill(&workload).contains("8123"));
}

#[test]
fn a_page_is_asked_for() {
    if missing(&[]) {
        return;
    }
    let script = "mkdir /www; echo fine > /www/health; exec httpd -f -p 8080 -h /www";
    let settings = |path: &str| json!({"tmpfs": [{"path": "/www"}], "probe": {"http": {"port": 8080, "path": path}}});
    let mut workload = Workload::shell(script).settings(settings("/health"));
    workload.start_and_wait();
    well(&workload);
    let mut workload = Workload::shell(script).settings(settings("/missing"));
    workload.start_and_wait();
    wait_for(|| ill(&workload).contains("404").then_some(()));
}

#[test]
fn a_command_is_run_with_all_that_confines_the_container() {
    if missing(&[]) {
        return;
    }
    let probe = "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp:|Uid)' /proc/self/status > /state/seen; \
        unshare -U true 2> /state/refused; mount -t tmpfs x /state 2>> /state/refused; ls -l /proc/self/fd >> /state/fds; id -u >> /state/seen";
    let script = "echo up; while :; do [ -s /state/seen ] && grep -q '^1000$' /state/seen && break; sleep 0.05; done; cat /state/seen /state/refused; sleep 1000";
    let settings = json!({"tmpfs": [{"path": "/state"}], "user": "app", "probe": {"exec": ["/bin/sh", "-c", format!("{probe}; true")]}});
    let mut workload = Workload::shell(script).settings(settings);
    workload.start_and_wait();
    well(&workload);
    workload.says("Uid");
    wait_for(|| (workload.log().len() >= 8).then_some(()));
    let log = workload.log().join("\n");
    for expected in [
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "Uid:\t1000",
    ] {
        assert!(log.contains(expected), "{expected}: {log}");
    }
    let refusals = log.matches("not permitted").count() + log.matches("permission denied").count();
    assert_eq!(refusals, 2, "{log}");
}

#[test]
fn a_failing_command_is_not_well() {
    if missing(&[]) {
        return;
    }
    let mut workload =
        Workload::shell("exec sleep 1000").settings(json!({"probe": {"exec": ["/bin/sh", "-c", "exit 7"]}}));
    workload.start_and_wait();
    // On a busy machine it may have been too slow at first, and said so.
    wait_for(|| ill(&workload).contains("code 7").then_some(()));
}

#[test]
fn a_command_that_hangs_holds_up_neither_stop_nor_death() {
    if missing(&[]) {
        return;
    }
    let hanging = json!({
        "tmpfs": [{"path": "/state"}], "probe": {"exec": ["/bin/sh", "-c", "touch /state/asked; exec sleep 1000"]},
    });
    let asked = "while [ ! -e /state/asked ]; do sleep 0.05; done; echo asked";
    let patient = format!("{asked}; trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; done");
    let mut workload = Workload::shell(&patient).settings(hanging.clone());
    workload.start_and_wait();
    workload.says("ready");
    workload.stop(60_000);
    assert_eq!(workload.exit().code, Some(0));
    // Its own death, with a command that nobody has reaped yet inside.
    let mut workload = Workload::shell(&format!("{asked}; exec sleep 999")).settings(hanging);
    workload.start_and_wait();
    workload.says("asked");
    crate::support::kill(find_process(&workload, "999"));
    assert_eq!(workload.exit().reason, ExitReason::Killed);
}
