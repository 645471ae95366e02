//! From start to end, and what is left: rights, programs, maps.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;

use cnova_ral::{ExitReason, Phase, read_exit};
use cnova_runtime_ebpf::confine::NOBODY;
use serde_json::json;

use crate::kernel;
use crate::network::Namespace;
use crate::objects::{compile, counter};
use crate::support::{Workload, is_root, one, one_counted, wait_for};

/// The fields of `/proc/PID/status`.
fn status(pid: u32) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect()
}

#[test]
fn rights_are_given_away() {
    let Some(object) = counter("socket", "l_rights", 0) else {
        return;
    };
    if !is_root() {
        return;
    }
    let mut workload = Workload::new(&object, one("l_rights", "socket-filter", "lo"));
    let state = workload.start_and_wait();
    let status = status(state.pid);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&status[set], 16), Ok(0), "{set}");
    }
    assert_eq!((status["NoNewPrivs"].as_str(), status["Seccomp"].as_str()), ("1", "2"));
    // The thread that answers the agent has the filter and the rights of the first.
    for task in fs::read_dir(format!("/proc/{}/task", state.pid)).unwrap() {
        let text = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        assert!(
            text.contains("Seccomp:\t2") && text.contains("CapEff:\t0000000000000000"),
            "{text}"
        );
    }
    let programs = kernel::programs("l_rights");
    assert_eq!(programs.len(), 1);
    assert_eq!(programs[0].created_by_uid, NOBODY, "it was loaded without root");
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", state.pid)).unwrap_or_default();
    assert_eq!(children, "", "the helpers are gone");
    workload.stop();
}

#[test]
fn neither_the_runtime_nor_its_loader_reads_the_types_of_the_whole_kernel() {
    let Some(object) = counter("socket", "l_memory", 0) else {
        return;
    };
    if !is_root() {
        return;
    }
    let mut workload = Workload::new(&object, one("l_memory", "socket-filter", "lo"));
    let state = workload.start_and_wait();
    let kilobytes = |text: &str| text.trim_end_matches(" kB").parse::<u64>().unwrap();
    assert!(kilobytes(&status(state.pid)["VmHWM"]) < 16 << 10);
    // SAFETY: plain numbers, and a structure that lives through the call.
    let helpers = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        let _ = libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    workload.stop();
    // Ended children of ended children count too, here clang; the runtime itself was not waited for yet.
    let before = helpers.ru_maxrss;
    // SAFETY: as above.
    let after = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        let _ = libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage.ru_maxrss
    };
    assert!(after <= before.max(16 << 10), "a helper took {after} kB");
}

#[test]
fn nothing_is_left_after_a_stop_and_after_a_kill() {
    let Some(object) = counter("socket", "l_nothing", 0) else {
        return;
    };
    if !is_root() {
        return;
    }
    for by_force in [false, true] {
        let mut workload = Workload::new(&object, one("l_nothing", "socket-filter", "lo"));
        workload.start_and_wait();
        assert_eq!(kernel::programs("l_nothing").len(), 1);
        let maps = kernel::maps_of("l_nothing");
        if by_force {
            workload.child.as_mut().unwrap().kill().unwrap();
            let (status, exit) = workload.end();
            assert_eq!((status.signal(), exit), (Some(9), None));
        } else {
            let exit = workload.stop();
            assert_eq!((exit.reason, exit.code, exit.signal), (ExitReason::Stopped, None, None));
        }
        // The kernel frees them after the last user, a moment later.
        wait_for("the program to go", || {
            kernel::programs("l_nothing").is_empty().then_some(())
        });
        wait_for("the maps to go", || kernel::maps_left(&maps).is_empty().then_some(()));
    }
}

#[test]
fn the_time_limit_ends_it() {
    let Some(object) = counter("socket", "l_wall", 0) else {
        return;
    };
    if !is_root() {
        return;
    }
    let mut workload = Workload::new(&object, one("l_wall", "socket-filter", "lo"));
    workload.spec.limits.wall_seconds = Some(1);
    assert_eq!(workload.run().reason, ExitReason::Budget);
}

#[test]
fn records_are_lines_and_maps_are_counters() {
    let source = r#"
        struct { UINT(type, 27); UINT(max_entries, 4096); } events SEC(".maps");
        struct { UINT(type, 6); UINT(max_entries, 2); TYPE(key, u32); TYPE(value, u64); } totals SEC(".maps");
        struct { UINT(type, 1); UINT(max_entries, 8); TYPE(key, u32); TYPE(value, u16); } by_length SEC(".maps");
        struct { UINT(type, 1); UINT(max_entries, 8); TYPE(key, u32); TYPE(value, u64); } wanted SEC(".maps");
        SEC("socket") int l_records(struct { u32 len; } *c) {
            u32 one = 1, length = c->len; u16 n = 1; char text[16] = "packet seen";
            if (!map_lookup(&wanted, &length)) return 0;
            u64 *total = map_lookup(&totals, &one);
            if (total) *total += 1;
            map_update(&by_length, &length, &n, 0);
            ring_output(&events, text, sizeof(text), 0);
            return 0;
        }"#;
    let Some(object) = compile(source) else { return };
    let Some(namespace) = is_root().then(Namespace::new).flatten() else {
        return;
    };
    let mut settings = one("l_records", "socket-filter", "lo");
    settings["log"] = json!("events");
    settings["metrics"] = json!({
        "totals": {"elements": ["nothing", "packets"]}, "by_length": "by-key", "wanted": {"format": "of.{0:u32}"},
    });
    // Only packets of 142 bytes: 100 of UDP, with its header, that of IP and that of Ethernet.
    let length: String = 142u32.to_ne_bytes().iter().map(|b| format!("{b:02x}")).collect();
    settings["init"] = json!({ "wanted": { length.as_str(): "0300000000000000" } });
    let mut workload = Workload::new(&object, settings);
    let state = workload.start_in(&namespace);
    assert_eq!(state.phase, Phase::Running);
    namespace.run(|| {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for bytes in [10, 100, 50] {
            socket.send_to(&vec![0; bytes], "127.0.0.1:9").unwrap();
        }
    });
    // The loopback shows each packet as it goes and as it comes.
    wait_for("two lines", || (workload.log().len() == 2).then_some(()));
    assert_eq!(workload.log(), ["packet seen", "packet seen"]);
    let metrics = workload.metrics();
    let counter = |name: &str| metrics.counters.get(name).copied();
    assert_eq!((counter("packets"), counter("nothing")), (Some(2.0), Some(0.0)));
    assert_eq!(counter(&format!("by_length{{{length}}}")), Some(1.0));
    assert_eq!(counter("wanted.of.142"), Some(3.0));
    assert!(counter("l_records.runs") >= Some(6.0), "{metrics:?}");
    assert!(counter("l_records.run_ns") > Some(0.0), "{metrics:?}");
    assert!(metrics.log_bytes > 0 && metrics.memory_bytes > 4096, "{metrics:?}");
    workload.stop();
}

#[test]
fn an_interface_that_is_down_is_trouble_and_one_that_goes_is_the_end() {
    let kinds = [
        ("socket", "socket-filter", 0),
        ("classifier", "tc-ingress", 0),
        ("xdp", "xdp", 2),
    ];
    for (section, kind, result) in kinds {
        let Some(object) = counter(section, "l_vanish", result) else {
            return;
        };
        let Some((west, _east)) = is_root().then(Namespace::pair).flatten() else {
            return;
        };
        let mut workload = Workload::new(&object, one_counted("l_vanish", kind, "west"));
        workload.start_in(&west);
        assert!(workload.health().healthy);
        west.ip("link set west down");
        let health = workload.health();
        assert_eq!(
            health.detail.as_deref(),
            Some("interface `west` of program `l_vanish` is down")
        );
        assert!(!health.healthy);
        west.ip("link set west up");
        assert!(workload.health().healthy);
        west.ip("link del west");
        let exit = workload.end().1.unwrap();
        assert_eq!(exit.reason, ExitReason::Killed);
        assert_eq!(
            exit.detail.as_deref(),
            Some("`west`, where program `l_vanish` was attached, is gone"),
            "{kind}"
        );
    }
}

#[test]
fn a_stop_while_the_helpers_work_is_a_stop() {
    let Some(object) = counter("socket", "l_early", 0) else {
        return;
    };
    let mut workload = Workload::new(&object, one("l_early", "socket-filter", "lo"));
    workload.start();
    let pid = rustix::process::Pid::from_child(workload.child.as_ref().unwrap());
    wait_for("the socket", || workload.dir().join("ral.sock").exists().then_some(()));
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    workload.end();
    let exit = read_exit(&workload.dir()).unwrap().unwrap();
    assert!(
        exit.reason == ExitReason::Stopped || !is_root(),
        "stopped before or after it was attached: {exit:?}"
    );
}
