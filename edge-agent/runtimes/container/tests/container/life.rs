//! Starting and ending.

use std::time::Duration;

use cnova_ral::{ExitReason, Phase};
use serde_json::json;

use crate::support::{Workload, missing, wait_for};

/// Ignores the request to stop, as the first process of a container does by itself.
const STUBBORN: &str = "trap '' TERM; echo up; while :; do sleep 1; done";

#[test]
fn a_program_ends_with_its_code() {
    if missing(&[]) {
        return;
    }
    let mut workload = Workload::shell("echo hello $FROM_IMAGE; echo oops >&2; exit 42");
    let exit = workload.run();
    assert_eq!(
        (exit.code, exit.signal, exit.reason),
        (Some(42), None, ExitReason::Finished),
        "{exit:?}"
    );
    let mut log = workload.log();
    log.sort();
    assert_eq!(log, ["hello 1", "oops"]);
}

#[test]
fn a_fatal_signal_is_reported() {
    if missing(&[]) {
        return;
    }
    // The first process of a namespace is immune to its own signals, so a real fault is needed.
    let mut workload = Workload::shell("exec /bin/busybox dd if=/dev/zero of=/dev/null bs=1M count=1 2>/dev/null");
    assert_eq!(workload.run().code, Some(0));
    let mut workload = Workload::shell("echo up; exec sleep 1000");
    workload.start_and_wait();
    workload.says("up");
    // From outside, as the kernel's own killer would do it.
    let pid = crate::support::find_process(&workload, "sleep");
    crate::support::kill(pid);
    let exit = workload.exit();
    assert_eq!(
        (exit.code, exit.signal, exit.reason),
        (None, Some(9), ExitReason::Killed),
        "{exit:?}"
    );
}

#[test]
fn a_stop_asks_first() {
    if missing(&[]) {
        return;
    }
    let mut workload = Workload::shell("trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.1; done");
    workload.start_and_wait();
    workload.says("up");
    assert_eq!(workload.health().phase, Phase::Running);
    workload.stop(60_000);
    let exit = workload.exit();
    assert_eq!(
        (exit.code, exit.signal, exit.reason),
        (Some(3), None, ExitReason::Stopped),
        "{exit:?}"
    );
    assert!(workload.log().contains(&"bye".to_owned()));
}

#[test]
fn who_ignores_a_stop_is_killed_after_the_grace_time() {
    if missing(&[]) {
        return;
    }
    let mut workload = Workload::shell(STUBBORN);
    workload.start_and_wait();
    workload.says("up");
    workload.stop(100_000);
    assert_eq!(workload.health().phase, Phase::Stopping);
    // A repeated stop shortens the time.
    workload.stop(50);
    let exit = workload.exit();
    assert_eq!(
        (exit.code, exit.signal, exit.reason),
        (None, Some(9), ExitReason::Stopped),
        "{exit:?}"
    );
    assert!(exit.detail.unwrap().contains("by force"));
}

#[test]
fn the_wall_clock_ends_it() {
    if missing(&[]) {
        return;
    }
    let mut workload = Workload::shell(STUBBORN).with(|spec| {
        spec.limits.wall_seconds = Some(1);
        spec.stop_grace_ms = 10;
    });
    let exit = workload.run();
    assert_eq!((exit.signal, exit.reason), (Some(9), ExitReason::Budget), "{exit:?}");
}

#[test]
fn too_much_memory_is_reported_as_such() {
    if missing(&[]) {
        return;
    }
    let script = "exec dd if=/dev/zero of=/dev/null bs=200M count=2";
    let mut workload = Workload::shell(script).with(|spec| spec.limits.memory_bytes = 16 << 20);
    let exit = workload.run();
    assert_eq!(
        (exit.oom, exit.reason),
        (true, ExitReason::Memory),
        "{exit:?} {:?}",
        workload.log()
    );
    assert!(exit.detail.unwrap().contains("16777216"));
}

#[test]
fn metrics_are_those_of_the_group() {
    if missing(&[]) {
        return;
    }
    let mut workload = Workload::shell("x=$(seq 1 200000 | wc -c); echo up; sleep 1000 & sleep 1000");
    workload.start_and_wait();
    workload.says("up");
    wait_for(|| (workload.metrics().counters["processes"] >= 2.0).then_some(()));
    let metrics = workload.metrics();
    assert!(metrics.memory_bytes > 0 && metrics.cpu_ms > 0, "{metrics:?}");
    assert_eq!(metrics.counters["oom_kills"], 0.0);
    assert!(metrics.log_bytes > 0);
}

#[test]
fn a_program_that_is_none_is_refused() {
    if missing(&[]) {
        return;
    }
    let mut workload = Workload::shell("").settings(json!({"entrypoint": ["/bin/nothing"]}));
    let exit = workload.run();
    assert_eq!(exit.reason, ExitReason::Refused);
    assert!(exit.detail.as_ref().unwrap().contains("/bin/nothing"), "{exit:?}");
}

#[test]
fn what_the_settings_ask_wrongly_is_named() {
    if missing(&[]) {
        return;
    }
    for (settings, expected) in [
        (json!({"capabilities": ["NET_BIND_SERVICES"]}), "NET_BIND_SERVICES"),
        (json!({"seccomp": {"allow": ["rm -rf"]}}), "rm -rf"),
        (json!({"workdir": "rel"}), "workdir"),
        (json!({"tmpfs": [{"path": "/a/../b"}]}), "/a/../b"),
        (json!({"privileged": true}), "privileged"),
        (json!({"user": "nobody-here"}), "nobody-here"),
        (json!({"probe": {"http": {"port": 1, "path": "/ HTTP/1.1"}}}), "no path"),
        (
            json!({"network": {"own": {"address": "10.1.1.1", "prefix": 24, "gateway": "10.1.2.1"}}}),
            "one network",
        ),
    ] {
        let mut workload = Workload::shell("true").settings(settings);
        let exit = workload.run();
        assert_eq!(exit.reason, ExitReason::Refused);
        assert!(exit.detail.as_ref().unwrap().contains(expected), "{exit:?}");
    }
    let mut workload = Workload::shell("true").with(|spec| spec.grants.network = vec!["a:1".into()]);
    assert_eq!(workload.run().reason, ExitReason::Refused);
    let mut workload = Workload::shell("true").with(|spec| spec.cache = None);
    assert!(workload.run().detail.unwrap().contains("cache"));
}

#[test]
fn a_stop_while_it_starts_leaves_nothing() {
    if missing(&[]) {
        return;
    }
    for pause in [0, 5, 20, 40, 80] {
        let mut workload = Workload::shell(STUBBORN).with(|spec| spec.stop_grace_ms = 1);
        workload.start();
        std::thread::sleep(Duration::from_millis(pause));
        let child = workload.child.as_ref().unwrap();
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let (_, exit) = workload.end();
        // Killed before it could take the folder, or stopped after.
        assert!(exit.is_none_or(|exit| exit.reason == ExitReason::Stopped));
    }
}
