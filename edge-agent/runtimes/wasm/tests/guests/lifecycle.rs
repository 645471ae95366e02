//! Components that answer for themselves.

use std::time::Duration;

use cnova_ral::{Client, ExitReason, Phase};

use crate::support::{Workload, wait_for};

const GUEST: &str = include_str!("wat/lifecycle.wat");
const SPIN: &str = "(loop $on (br $on))";

#[test]
fn a_workload_is_asked_how_it_is_and_told_to_stop() {
    let mut workload = Workload::new(GUEST);
    workload.start_and_wait();
    let mut client = Client::connect(&workload.dir()).unwrap();
    wait_for(|| {
        client
            .metrics()
            .ok()
            .filter(|metrics| metrics.counters.get("steps") >= Some(&4.0))
    });
    let health = client.health().unwrap();
    assert_eq!(
        (health.healthy, health.phase, health.detail.as_deref()),
        (false, Phase::Running, Some("too hot"))
    );
    client.stop(None).unwrap();
    let exit = workload.end().1.unwrap();
    assert_eq!(
        (exit.reason, exit.signal, exit.detail),
        (ExitReason::Stopped, None, None)
    );
}

#[test]
fn a_workload_that_feels_well_says_so() {
    let mut workload = Workload::new(&GUEST.replace("(;HEALTH;)", "(return (i32.const 0))"));
    workload.start_and_wait();
    let health = Client::connect(&workload.dir()).unwrap().health().unwrap();
    assert_eq!((health.healthy, health.detail), (true, None));
}

#[test]
fn a_workload_ends_by_its_own_words() {
    let no_sensor = "(return (call $complain (i32.const 32) (i32.const 140) (i32.const 9)))";
    let exit = Workload::new(&GUEST.replace("(;START;)", no_sensor)).run();
    assert_eq!((exit.reason, exit.code), (ExitReason::Finished, Some(1)));
    assert_eq!(exit.detail.as_deref(), Some("start: no sensor"));

    let exit = Workload::new(&GUEST.replace("(;STEP;)", no_sensor)).run();
    assert_eq!((exit.code, exit.detail.as_deref()), (Some(1), Some("step: no sensor")));

    let done = "(i64.store (i32.const 16) (i64.const 0)) (return (i32.const 16))";
    let exit = Workload::new(&GUEST.replace("(;STEP;)", done)).run();
    assert_eq!(
        (exit.reason, exit.code, exit.detail),
        (ExitReason::Finished, Some(0), None)
    );
}

#[test]
fn a_step_that_hangs_is_named_and_interrupted_after_the_grace_time() {
    let mut workload = Workload::new(&GUEST.replace("(;STEP;)", SPIN));
    workload.start_and_wait();
    let mut client = Client::connect(&workload.dir()).unwrap();
    let health = client.health().unwrap();
    assert!(!health.healthy);
    assert!(health.detail.unwrap().contains("`step` has been running"));
    client.stop(Some(Duration::from_millis(100))).unwrap();
    let exit = workload.end().1.unwrap();
    assert_eq!((exit.reason, exit.signal), (ExitReason::Stopped, Some(9)));
    assert!(exit.detail.unwrap().contains("grace time"));
}

#[test]
fn a_workload_may_take_its_time_to_stop_but_not_for_ever() {
    let mut workload = Workload::new(&GUEST.replace("(;STOP;)", SPIN));
    workload.start_and_wait();
    let mut client = Client::connect(&workload.dir()).unwrap();
    client.stop(Some(Duration::from_millis(100))).unwrap();
    assert_eq!(workload.end().1.unwrap().signal, Some(9));
}

#[test]
fn a_trap_in_a_question_ends_the_workload() {
    let mut workload = Workload::new(&GUEST.replace("(;HEALTH;)", "unreachable"));
    workload.start_and_wait();
    assert!(
        !Client::connect(&workload.dir())
            .unwrap()
            .health()
            .is_ok_and(|health| health.healthy)
    );
    let exit = workload.end().1.unwrap();
    assert_eq!(exit.reason, ExitReason::Trap);
    assert!(exit.detail.unwrap().contains("unreachable"));
}
