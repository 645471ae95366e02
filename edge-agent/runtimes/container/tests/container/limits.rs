//! Limits and accounting by control groups: what the kernel is told, and that it does it, in whichever version it has.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cnova_ral::ExitReason;
use serde_json::{Value, json};

use crate::support::{RUNTIME, Workload, find_process, group_folders, in_guest, missing, wait_for};

const MEMORY: u64 = 48 << 20;

/// What the runtime says of the limits that it can enforce.
fn version() -> String {
    let output = Command::new(RUNTIME).arg("describe").output().unwrap();
    let description: Value = serde_json::from_slice(&output.stdout).unwrap();
    let features = description["features"].as_array().unwrap().iter();
    let names = features.filter_map(Value::as_str);
    let found = names
        .filter(|name| name.starts_with("cgroup-"))
        .collect::<Vec<_>>()
        .join(" ");
    eprintln!("control groups: {found}");
    found
}

/// A file of the workload's group, in whichever hierarchy has it.
fn file(workload: &Workload, name: &str) -> Option<String> {
    let read = |dir: &PathBuf| fs::read_to_string(dir.join(name)).ok();
    Some(group_folders(workload).iter().find_map(read)?.trim().to_owned())
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap().parse().unwrap()
}

fn folders_below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.map(|entry| entry.path()).collect()
}

#[test]
fn what_is_asked_for_is_what_the_kernel_enforces() {
    if missing(&[]) {
        return;
    }
    let version = version();
    assert!(!in_guest() || version == "cgroup-v2", "{version}");
    let mut workload = Workload::shell("echo up; exec sleep 994").settings(json!({"pids": 17}));
    workload.spec.limits.memory_bytes = MEMORY;
    workload.spec.limits.cpu_millis = 250;
    workload.start_and_wait();
    workload.says("up");
    let expected: &[(&str, &str)] = match version.as_str() {
        "cgroup-v2" => &[
            ("memory.max", "50331648"),
            ("memory.oom.group", "1"),
            ("cpu.max", "25000 100000"),
        ],
        _ => &[
            ("memory.limit_in_bytes", "50331648"),
            ("cpu.cfs_quota_us", "25000"),
            ("cpu.cfs_period_us", "100000"),
        ],
    };
    for (name, value) in [("pids.max", "17")].iter().chain(expected) {
        assert_eq!(file(&workload, name).as_deref(), Some(*value), "{name}");
    }
    // Only where the kernel accounts swap.
    for (name, value) in [("memory.swap.max", "0"), ("memory.memsw.limit_in_bytes", "50331648")] {
        assert!(file(&workload, name).is_none_or(|found| found == value), "{name}");
    }
}

#[test]
fn the_shim_and_its_container_have_groups_of_their_own() {
    if missing(&[]) {
        return;
    }
    if version() != "cgroup-v2" {
        eprintln!("skipped: on v1 the shim stays where it was started");
        return;
    }
    let mut workload = Workload::shell("echo up; exec sleep 993");
    let state = workload.start_and_wait();
    workload.says("up");
    let own = workload.group.as_ref().unwrap().folders().next().unwrap().to_owned();
    let place = |pid: i64| {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        PathBuf::from(format!("/sys/fs/cgroup{}", text.trim().strip_prefix("0::").unwrap()))
    };
    assert_eq!(place(i64::from(state.pid)), own.join("shim"));
    let inside = find_process(&workload, "993");
    assert_eq!([place(i64::from(inside))][..], group_folders(&workload));
    assert_eq!(place(i64::from(inside)).parent(), Some(own.as_path()));
    assert_eq!(fs::read_to_string(own.join("cgroup.procs")).unwrap(), "");
    workload.stop(0);
    assert_eq!(workload.exit().reason, ExitReason::Stopped);
    // The shim cannot remove the group that it ends in: the agent does, with its parent.
    assert_eq!(folders_below(&own), [own.join("shim")]);
    let group = workload.group.take().unwrap();
    group.kill().unwrap();
    group.remove().unwrap();
    assert!(!own.exists());
}

#[test]
fn a_process_that_takes_too_much_memory_takes_all_with_it_where_the_kernel_can() {
    if missing(&[]) {
        return;
    }
    let on_v2 = version() == "cgroup-v2";
    // A child takes it, and its parent would go on.
    let script = "dd if=/dev/zero of=/dev/null bs=200M count=2; echo code $?; exit 5";
    let mut workload = Workload::shell(script).with(|spec| spec.limits.memory_bytes = 16 << 20);
    let exit = workload.run();
    if on_v2 {
        assert_eq!(
            (exit.oom, exit.signal, exit.reason),
            (true, Some(9), ExitReason::Memory),
            "{exit:?}"
        );
        assert_eq!(workload.log(), [""; 0]);
    } else {
        assert_eq!((exit.code, exit.reason), (Some(5), ExitReason::Finished), "{exit:?}");
        assert!(exit.detail.unwrap().contains("killed for lack of memory"));
    }
}

#[test]
fn a_fork_loop_stays_within_its_processes() {
    if missing(&[]) {
        return;
    }
    // This shell ends when it cannot fork; the first process, which must not, looks after nothing else.
    let script = "(while :; do sleep 992 & done) & echo up; wait $!; echo full; exec sleep 992";
    let mut workload = Workload::shell(script).settings(json!({"pids": 12}));
    workload.start_and_wait();
    workload.says("up");
    workload.says("full");
    assert!(
        workload.log().iter().any(|line| line.contains("fork")),
        "{:?}",
        workload.log()
    );
    // All but the shell that has given up.
    assert_eq!(workload.metrics().counters["processes"], 11.0);
    workload.stop(0);
    assert_eq!(workload.exit().reason, ExitReason::Stopped);
    assert!(group_folders(&workload).is_empty());
}

#[test]
fn a_share_of_the_cpu_is_not_exceeded() {
    if missing(&[]) {
        return;
    }
    // Two that would take a core each get half a core together.
    let script = "echo up; (while :; do :; done) & while :; do :; done";
    let mut workload = Workload::shell(script).with(|spec| spec.limits.cpu_millis = 500);
    workload.start_and_wait();
    workload.says("up");
    let periods = || field(&file(&workload, "cpu.stat").unwrap(), "nr_periods");
    let (first, used_first) = (periods(), workload.metrics().cpu_ms);
    wait_for(|| (periods() >= first + 30).then_some(()));
    let (used, last) = (workload.metrics().cpu_ms - used_first, periods());
    // A period has 100 ms. What lies between a look at the one and a look at the other, and what the kernel has handed
    // out to a CPU and not got back, is less than the half more that is allowed here.
    let most = (last - first) * 100 * 3 / 4;
    assert!(used <= most, "{used} ms in {} periods", last - first);
    assert!(used > 0 && workload.metrics().counters["throttled_periods"] > 0.0);
}

#[test]
fn time_and_memory_are_counted_by_the_agents_group_too() {
    if missing(&[]) {
        return;
    }
    let script =
        "dd if=/dev/zero of=/scratch/a bs=1M count=8 2>/dev/null; x=$(seq 1 100000 | wc -c); echo up; exec sleep 991";
    let settings = json!({"tmpfs": [{"path": "/scratch", "bytes": 16 << 20}]});
    let mut workload = Workload::shell(script).settings(settings);
    workload.start_and_wait();
    workload.says("up");
    let own = workload.metrics();
    assert!(own.cpu_ms > 0 && own.memory_bytes >= 8 << 20, "{own:?}");
    let Some(group) = workload.group.clone() else {
        eprintln!("skipped: no control group may be made here");
        return;
    };
    let seen = group.usage().unwrap();
    assert!(
        seen.cpu_ms.unwrap() > 0 && seen.memory_bytes.unwrap() >= 8 << 20,
        "{seen:?}"
    );
    assert!(seen.processes >= 3, "the shim, the keeper and the program: {seen:?}");
    workload.stop(0);
    workload.exit();
    let after = group.usage().unwrap();
    assert!(after.cpu_ms >= seen.cpu_ms && after.processes == 0, "{after:?}");
    assert!(after.memory_bytes.unwrap() < 8 << 20, "{after:?}");
}

#[test]
fn in_the_root_group_it_needs_no_place_of_its_own() {
    if missing(&[]) {
        return;
    }
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    if version() == "cgroup-v2" && own.trim() != "0::/" {
        eprintln!("skipped: these tests were not started in the root group");
        return;
    }
    let mut workload = Workload::shell("echo up; exec sleep 990");
    if let Some(group) = workload.group.take() {
        group.remove().unwrap();
    }
    workload.start_and_wait();
    workload.says("up");
    assert!(workload.metrics().memory_bytes > 0);
    workload.stop(0);
    assert_eq!(workload.exit().reason, ExitReason::Stopped);
    assert!(group_folders(&workload).is_empty());
}
