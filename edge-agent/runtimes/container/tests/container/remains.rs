//! What is left when the shim is killed: nothing that runs, and nothing after the next start.

use std::fs;

use cnova_ral::{ExitReason, is_alive};
use serde_json::json;

use crate::support::{Workload, find_process, group_folders, missing, wait_for};

#[test]
fn a_killed_shim_takes_its_container_with_it() {
    if missing(&[]) {
        return;
    }
    let own = json!({"network": {"own": {"address": "10.213.79.2", "prefix": 30, "gateway": "10.213.79.1"}}});
    let mut workload = Workload::shell("echo up; (exec sleep 998) & exec sleep 999").settings(own);
    let state = workload.start_and_wait();
    workload.says("up");
    let pids = [find_process(&workload, "998"), find_process(&workload, "999")];
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        !mounts.contains("cnova-container"),
        "mounts of the container are seen outside: {mounts}"
    );
    let mut child = workload.child.take().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!is_alive(&state));
    for pid in pids {
        wait_for(|| (!fs::exists(format!("/proc/{pid}")).unwrap()).then_some(()));
    }
    assert!(
        !group_folders(&workload).is_empty(),
        "a group remains, which the next start takes over"
    );
    let exit = workload.with(|spec| spec.args = vec!["exit 5".into()]).run_again();
    assert_eq!(
        (exit.0.code, exit.0.reason),
        (Some(5), ExitReason::Finished),
        "{exit:?}"
    );
    assert!(exit.1.is_empty(), "{exit:?}");
}

#[test]
fn nothing_is_left_after_an_ordinary_end() {
    if missing(&[]) {
        return;
    }
    let mut workload = Workload::shell("(exec sleep 997) & true");
    assert_eq!(workload.run().code, Some(0));
    assert!(group_folders(&workload).is_empty());
    assert!(fs::read_dir("/run/cnova-container").unwrap().next().is_none());
}

#[test]
fn a_killed_keeper_is_a_killed_container() {
    if missing(&[]) {
        return;
    }
    let mut workload = Workload::shell("echo up; exec sleep 999");
    let state = workload.start_and_wait();
    workload.says("up");
    let shim = state.pid;
    let keeper = fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).unwrap();
    crate::support::kill(keeper.trim().parse().unwrap());
    let exit = workload.exit();
    assert_eq!((exit.signal, exit.reason), (Some(9), ExitReason::Killed), "{exit:?}");
    assert!(group_folders(&workload).is_empty());
}

#[test]
fn the_shim_itself_stays_as_it_was() {
    if missing(&[]) {
        return;
    }
    let mut workload = Workload::shell("exec sleep 999");
    let state = workload.start_and_wait();
    let own = |file: &str| fs::read_to_string(format!("/proc/self/{file}")).unwrap();
    let of_shim = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", state.pid)).unwrap();
    assert_eq!(of_shim("oom_score_adj"), own("oom_score_adj"));
    let cwd = fs::read_link(format!("/proc/{}/cwd", state.pid)).unwrap();
    assert_eq!(cwd, fs::canonicalize(workload.dir()).unwrap());
    // It sleeps as soon as it has nothing to do.
    wait_for(|| {
        let stat = of_shim("stat");
        stat.rsplit(')').next()?.trim_start().starts_with('S').then_some(())
    });
}
