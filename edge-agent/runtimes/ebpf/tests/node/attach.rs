//! Every kind of program, attached for real and seeing what it should.

use std::fs;
use std::net::UdpSocket;
use std::process::Command;

use cnova_ral::ExitReason;
use serde_json::json;

use crate::kernel;
use crate::network::Namespace;
use crate::objects::{COUNTER, compile, counter};
use crate::support::{Workload, is_root, one_counted, wait_for};

/// Sends packets from east to west until the program has counted.
fn sees_packets(section: &str, kind: &str, name: &str, result: i32) {
    let Some(object) = counter(section, name, result) else {
        return;
    };
    let Some((west, east)) = is_root().then(Namespace::pair).flatten() else {
        return;
    };
    let mut workload = Workload::new(&object, one_counted(name, kind, "west"));
    workload.start_in(&west);
    let socket = east.run(|| UdpSocket::bind("10.77.0.2:0").unwrap());
    wait_for("packets", || {
        let _ = socket.send_to(b"hello", "10.77.0.1:9");
        (workload.counter("seen") > 2.0).then_some(())
    });
    assert!(workload.counter(&format!("{name}.runs")) > 2.0);
    assert_eq!(workload.stop().reason, ExitReason::Stopped);
    wait_for("the program to go", || kernel::programs(name).is_empty().then_some(()));
}

#[test]
fn a_socket_filter_sees_packets() {
    sees_packets("socket", "socket-filter", "a_socket", 0);
}

#[test]
fn tc_ingress_sees_packets() {
    sees_packets("classifier", "tc-ingress", "a_tc", -1);
}

#[test]
fn xdp_sees_packets() {
    sees_packets("xdp", "xdp", "a_xdp", 2);
}

#[test]
fn what_a_socket_filter_lets_through_goes_nowhere() {
    // It accepts every packet whole; nobody reads the socket, and the workload goes on.
    sees_packets("socket", "socket-filter", "a_greedy", -1);
}

#[test]
fn a_program_at_tc_can_drop() {
    let Some(object) = counter("classifier", "a_drop", 2) else {
        return;
    };
    let Some((west, east)) = is_root().then(Namespace::pair).flatten() else {
        return;
    };
    let server = west.run(|| UdpSocket::bind("10.77.0.1:7000").unwrap());
    server.set_nonblocking(true).unwrap();
    let mut workload = Workload::new(&object, one_counted("a_drop", "tc-ingress", "west"));
    workload.start_in(&west);
    let socket = east.run(|| UdpSocket::bind("10.77.0.2:0").unwrap());
    wait_for("packets", || {
        let _ = socket.send_to(b"hello", "10.77.0.1:7000");
        (workload.counter("seen") > 2.0).then_some(())
    });
    assert!(server.recv(&mut [0; 16]).is_err(), "all was dropped");
    workload.stop();
    wait_for("a packet after the stop", || {
        let _ = socket.send_to(b"hello", "10.77.0.1:7000");
        server.recv(&mut [0; 16]).ok()
    });
}

#[test]
fn a_tracepoint_sees_events() {
    let Some(object) = counter("tracepoint", "a_trace", 0) else {
        return;
    };
    if !is_root() {
        return;
    }
    let mut workload = Workload::new(
        &object,
        one_counted("a_trace", "tracepoint", "sched/sched_process_exec"),
    );
    workload.start();
    let running = wait_for("a start or a refusal", || {
        let dir = workload.dir();
        let exit = cnova_ral::read_exit(&dir).unwrap();
        if let Some(exit) = exit {
            eprintln!("skipped: {}", exit.detail.unwrap_or_default());
            assert!(
                !std::path::Path::new("/sys/kernel/tracing").exists(),
                "this kernel has tracepoints"
            );
            return Some(false);
        }
        cnova_ral::read_state(&dir).unwrap().map(|_| true)
    });
    if !running {
        return;
    }
    wait_for("events", || {
        Command::new("true").status().unwrap();
        (workload.counter("seen") > 2.0).then_some(())
    });
    workload.stop();
    wait_for("the program to go", || {
        kernel::programs("a_trace").is_empty().then_some(())
    });
}

/// Where control groups of version 2 are mounted, alone or beside version 1.
fn cgroup2() -> Option<&'static str> {
    let there = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
    let found = there
        .into_iter()
        .find(|path| fs::exists(format!("{path}/cgroup.controllers")).unwrap_or(false));
    if found.is_none() {
        eprintln!("skipped: no control groups of version 2 are mounted");
    }
    found
}

#[test]
fn cgroup_skb_sees_the_packets_of_a_group_and_of_no_other() {
    let Some(object) = counter("cgroup_skb/egress", "a_cgroup", 1) else {
        return;
    };
    let Some(root) = is_root().then(cgroup2).flatten() else {
        return;
    };
    let group = format!("{root}/cnova-test-{}", std::process::id());
    if let Err(error) = fs::create_dir(&group) {
        eprintln!("skipped: {group}: {error}");
        return;
    }
    let mut workload = Workload::new(&object, one_counted("a_cgroup", "cgroup-skb", &group));
    workload.start_and_wait();
    let send = |group: &str| {
        let script = format!("echo $$ > {group}/cgroup.procs; echo hello > /dev/udp/127.0.0.1/9");
        let status = Command::new("bash").args(["-c", &script]).status().unwrap();
        assert!(status.success());
    };
    send(root);
    assert_eq!(workload.counter("seen"), 0.0);
    send(&group);
    assert_eq!(workload.counter("seen"), 1.0);
    fs::remove_dir(&group).unwrap();
    let exit = workload.end().1.unwrap();
    assert_eq!(exit.reason, ExitReason::Killed, "the group is gone: {exit:?}");
}

#[test]
fn several_programs_share_the_maps_of_one_object() {
    let source = format!(
        "{COUNTER}\nSEC(\"socket\") int a_one(void *c) {{ count(); return 0; }}\n\
         SEC(\"xdp\") int a_two(void *c) {{ count(); return 2; }}\n\
         SEC(\"classifier\") int a_unused(void *c) {{ count(); return -1; }}\n"
    );
    let Some(object) = compile(&source) else { return };
    let Some((west, east)) = is_root().then(Namespace::pair).flatten() else {
        return;
    };
    let settings = json!({
        "programs": [
            {"name": "a_one", "kind": "socket-filter", "attach": "west", "promiscuous": true},
            {"name": "a_two", "kind": "xdp", "attach": "west"},
        ],
        "metrics": {"seen": "sum"},
    });
    let mut workload = Workload::new(&object, settings);
    workload.start_in(&west);
    let socket = east.run(|| UdpSocket::bind("10.77.0.2:0").unwrap());
    wait_for("packets", || {
        let _ = socket.send_to(b"hello", "10.77.0.1:9");
        let metrics = workload.metrics();
        (metrics.counters["a_one.runs"] > 2.0 && metrics.counters["a_two.runs"] > 2.0).then_some(())
    });
    assert!(workload.counter("seen") > 4.0);
    assert!(
        kernel::programs("a_unused").is_empty(),
        "what is not named is not loaded"
    );
    workload.stop();
}
