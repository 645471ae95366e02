//! What the suite for all runtimes (`tests/conformance.rs`) does not ask.

use std::path::Path;
use std::time::Duration;

use crate::support::{RUNTIME, Workload, wait_for};
use cnova_ral::{CallError, Client, ExitReason, Phase, describe, is_alive, is_held};

const SLEEPER: &str = include_str!("wat/sleeper.wat");
const SPIN: &str = include_str!("wat/spin.wat");

#[test]
fn it_describes_itself() {
    let description = describe(Path::new(RUNTIME)).unwrap();
    assert_eq!((description.ral, description.runtime.as_str()), (1, "wasm"));
    assert_eq!(
        description.targets,
        [
            cnova_wasm_engine::HOST_TARGET.unwrap(),
            cnova_wasm_engine::PULLEY_TARGET
        ]
    );
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
