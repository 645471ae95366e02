//! Does the runtime keep the Runtime Abstraction Layer? Every test drives the real executable.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;

use crate::support::{RUNTIME, Workload, wait_for};
use cnova_ral::{CallError, Client, ExitReason, Handle, Phase, describe, file, is_alive, is_held, spawn, write_spec};

const SLEEPER: &str = include_str!("wat/sleeper.wat");
const SPIN: &str = include_str!("wat/spin.wat");

#[test]
fn it_describes_itself() {
    let description = describe(Path::new(RUNTIME)).unwrap();
    assert_eq!((description.ral, description.runtime.as_str()), (1, "wasm"));
    assert_eq!(description.targets, [cnova_wasm_engine::HOST_TARGET.unwrap()]);
    assert_eq!(description.engine, cnova_wasm_engine::ENGINE);
}

#[test]
fn a_life_from_start_to_stop() {
    let mut workload = Workload::new(SLEEPER);
    let state = workload.start_and_wait();
    assert_eq!(
        (state.workload.as_str(), state.generation, state.attempt),
        ("test", 7, 1)
    );
    assert_eq!((state.phase, &state.digest), (Phase::Running, &workload.spec.digest));
    assert!(is_alive(&state) && is_held(&workload.dir()).unwrap());
    assert_eq!(state.pid, workload.child.as_ref().unwrap().id());

    let mut client = Client::connect(&workload.dir()).unwrap();
    let health = client.health().unwrap();
    assert!(health.healthy && health.phase == Phase::Running);
    let metrics = wait_for(|| client.metrics().ok().filter(|metrics| !metrics.counters.is_empty()));
    assert_eq!(metrics.counters["naps"], 1.0);
    assert_eq!(metrics.memory_bytes, 2 * 65_536);
    assert!(metrics.log_bytes > 0 && metrics.log_writes > 0);
    assert_eq!(workload.log(), ["awake"]);

    client.stop(None).unwrap();
    let (status, exit) = workload.end();
    let exit = exit.unwrap();
    assert_eq!(
        (exit.reason, exit.code, exit.signal, exit.oom),
        (ExitReason::Stopped, None, None, false)
    );
    assert!(status.code().is_some());
    assert!(!is_alive(&state) && !is_held(&workload.dir()).unwrap());
    assert_eq!(
        workload.log(),
        ["awake", "no newlin"],
        "what was printed without a new line comes at the end"
    );
    assert!(matches!(client.health(), Err(CallError::Connect { .. })));
}

#[test]
fn sigterm_stops_what_sleeps_and_what_computes() {
    for guest in [SLEEPER, SPIN] {
        let mut workload = Workload::new(guest);
        let state = workload.start_and_wait();
        let handle = Handle::open(&state).unwrap();
        handle.terminate().unwrap();
        assert!(handle.wait(Duration::from_secs(60)).unwrap());
        assert_eq!(workload.end().1.unwrap().reason, ExitReason::Stopped);
    }
}

#[test]
fn a_runaway_loop_answers_and_stops() {
    for cpu_millis in [0, 50] {
        let mut workload = Workload::new(SPIN);
        workload.spec.limits.cpu_millis = cpu_millis;
        workload.start_and_wait();
        let mut client = Client::connect(&workload.dir()).unwrap();
        assert!(client.health().unwrap().healthy);
        wait_for(|| client.metrics().ok().filter(|metrics| metrics.cpu_ms > 20));
        client.stop(Some(Duration::from_secs(30))).unwrap();
        assert_eq!(workload.end().1.unwrap().reason, ExitReason::Stopped);
    }
}

#[test]
fn the_runtime_outlives_whoever_started_it_and_is_adopted() {
    let mut workload = Workload::new(SLEEPER);
    let dir = workload.dir();
    write_spec(&dir, &workload.spec).unwrap();
    // A starter that ends at once, as an agent that is killed; the runtime must already be in a session of its own.
    let status = std::process::Command::new("sh")
        .args(["-c", "\"$0\" run --state \"$1\" >/dev/null 2>&1 & exit 0", RUNTIME])
        .arg(&dir)
        .status()
        .unwrap();
    assert!(status.success());
    let state = workload.state();
    assert!(is_alive(&state));
    let handle = Handle::open(&state).unwrap();
    Client::connect(&dir).unwrap().stop(None).unwrap();
    assert!(handle.wait(Duration::from_secs(60)).unwrap());
    let exit = wait_for(|| cnova_ral::read_exit(&dir).unwrap());
    assert_eq!(exit.reason, ExitReason::Stopped);
}

#[test]
fn a_killed_runtime_leaves_no_exit_file_and_is_not_alive() {
    let mut workload = Workload::new(SLEEPER);
    let state = workload.start_and_wait();
    let handle = Handle::open(&state).unwrap();
    handle.kill().unwrap();
    assert!(handle.wait(Duration::from_secs(60)).unwrap());
    assert!(!is_alive(&state), "not even while it is a zombie");
    let (status, exit) = workload.end();
    assert_eq!((status.signal(), exit), (Some(9), None));
    assert!(Handle::open(&state).is_err());
    // The folder is free again, and what the dead one left does not stand in the way.
    workload.start_and_wait();
    assert!(Client::connect(&workload.dir()).unwrap().health().unwrap().healthy);
}

#[test]
fn another_process_with_the_same_pid_is_not_adopted() {
    let mut workload = Workload::new(SLEEPER);
    let state = workload.start_and_wait();
    let mut other = state.clone();
    other.start_time -= 1;
    assert!(!is_alive(&other) && Handle::open(&other).is_err());
    let mut other = state;
    other.boot_id = "00000000-0000-0000-0000-000000000000".to_owned();
    assert!(!is_alive(&other) && Handle::open(&other).is_err());
}

#[test]
fn two_runtimes_never_share_a_folder() {
    let mut workload = Workload::new(SLEEPER);
    let state = workload.start_and_wait();
    assert!(write_spec(&workload.dir(), &workload.spec).is_err());
    let second = spawn(Path::new(RUNTIME), &workload.dir()).unwrap().wait().unwrap();
    assert_eq!(second.code(), Some(3));
    assert!(is_alive(&state));
    assert!(cnova_ral::read_exit(&workload.dir()).unwrap().is_none());
    assert!(Client::connect(&workload.dir()).unwrap().health().unwrap().healthy);
}

#[test]
fn garbage_on_the_socket_harms_nothing() {
    let mut workload = Workload::new(SLEEPER);
    workload.start_and_wait();
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 9000],
        b"{\"op\":\"stop\",\"grace_ms\":-1}\n",
    ] {
        let mut stream = BufReader::new(UnixStream::connect(workload.dir().join(file::SOCKET)).unwrap());
        // The runtime may close before it has read everything.
        let _ = stream.get_mut().write_all(garbage);
        let mut answer = String::new();
        stream.read_line(&mut answer).unwrap();
        assert!(answer.contains("\"ok\":false"), "{answer}");
    }
    assert!(Client::connect(&workload.dir()).unwrap().health().unwrap().healthy);
}

#[test]
fn wrong_usage_is_explained() {
    for arguments in [&[][..], &["run"], &["run", "--state"], &["fly"]] {
        let output = std::process::Command::new(RUNTIME).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("usage"));
    }
}

#[test]
fn a_spec_of_another_version_is_refused() {
    let mut workload = Workload::new(SLEEPER);
    write_spec(&workload.dir(), &workload.spec).unwrap();
    let path = workload.dir().join(file::SPEC);
    let text = fs::read_to_string(&path).unwrap().replace("\"ral\":1", "\"ral\":2");
    fs::write(&path, text).unwrap();
    workload.child = Some(spawn(Path::new(RUNTIME), &workload.dir()).unwrap());
    let exit = workload.end().1.unwrap();
    assert_eq!(exit.reason, ExitReason::Refused);
    assert!(exit.detail.unwrap().contains("RAL 2"));
}
