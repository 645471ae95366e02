//! Capacity in trees of both versions of control groups.

use cnova_devices::{Capacity, CapacityError, Groups, available_memory, available_memory_in, measure, measure_in};

use crate::fixture::Node;

const V2: &str = "35 24 0:30 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw";
const V1: &str = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                  35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory";

/// A machine of 1000 KiB, 600 of them available, that may use four CPUs.
fn node(groups: &str, mounts: &str) -> Node {
    let node = Node::new();
    node.file(
        "/proc/meminfo",
        "MemTotal:        1000 kB\nMemFree: 1 kB\nMemAvailable:     600 kB",
    );
    node.file(
        "/proc/self/status",
        "Name:\tx\nCpus_allowed:\t1b\nCpus_allowed_list:\t0-1,3-4",
    );
    node.file("/proc/self/cgroup", groups)
        .file("/proc/self/mountinfo", mounts);
    node
}

fn capacity(memory_kib: u64, cpu_millis: u64) -> Capacity {
    Capacity {
        memory_bytes: memory_kib << 10,
        cpu_millis,
    }
}

#[test]
fn without_groups_the_machine_counts() {
    let node = node("", "");
    assert_eq!(measure(node.root()).unwrap(), capacity(1000, 4000));
    assert_eq!(available_memory(node.root()).unwrap(), 600 << 10);
}

#[test]
fn version_2_is_bounded_by_every_group_above() {
    let node = node("0::/a/b", V2);
    node.files(
        "/sys/fs/cgroup/a/b",
        &[
            ("memory.max", "max"),
            ("memory.high", "700000"),
            ("memory.current", "300000"),
        ],
    );
    node.file(
        "/sys/fs/cgroup/a/b/memory.stat",
        "anon 1\ninactive_file 100000\nactive_file 5",
    );
    node.file("/sys/fs/cgroup/a/b/cpu.max", "max 100000");
    node.files(
        "/sys/fs/cgroup/a",
        &[
            ("memory.max", "600000"),
            ("memory.current", "550000"),
            ("cpu.max", "150000 100000"),
        ],
    );
    let found = measure(node.root()).unwrap();
    assert_eq!((found.memory_bytes, found.cpu_millis), (600_000, 1500));
    assert_eq!(available_memory(node.root()).unwrap(), 50_000);

    // Without the group of the agent itself.
    node.file("/sys/fs/cgroup/a/b/memory.max", "1000")
        .file("/sys/fs/cgroup/a/b/cpu.max", "1000 100000");
    let own = measure(node.root()).unwrap();
    assert_eq!((own.memory_bytes, own.cpu_millis), (1000, 10));
    let parent = Groups::own(node.root()).parent();
    assert_eq!(measure_in(node.root(), &parent).unwrap(), found);
    assert_eq!(available_memory_in(node.root(), &parent).unwrap(), 50_000);
}

#[test]
fn version_1_is_bounded_too_and_by_groups_that_are_not_seen() {
    let node = node("4:memory:/x\n2:cpu,cpuacct:/x\n0::/", V1);
    let memory = "/sys/fs/cgroup/memory/x";
    node.files(
        memory,
        &[
            ("memory.limit_in_bytes", "9223372036854771712"),
            ("memory.usage_in_bytes", "400000"),
        ],
    );
    node.files(
        "/sys/fs/cgroup/cpu/x",
        &[("cpu.cfs_quota_us", "-1"), ("cpu.cfs_period_us", "100000")],
    );
    assert_eq!(measure(node.root()).unwrap(), capacity(1000, 4000));
    assert_eq!(available_memory(node.root()).unwrap(), 600 << 10);
    let stat = "cache 5\nhierarchical_memory_limit 500000\ninactive_file 1\ntotal_inactive_file 100000";
    node.file(&format!("{memory}/memory.stat"), stat);
    node.file("/sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "25000");
    let found = measure(node.root()).unwrap();
    assert_eq!((found.memory_bytes, found.cpu_millis), (500_000, 250));
    assert_eq!(available_memory(node.root()).unwrap(), 200_000);
}

#[test]
fn odd_files_count_as_no_limit_or_are_named() {
    let node = node("0::/a", V2);
    node.files(
        "/sys/fs/cgroup/a",
        &[("memory.max", "-1"), ("cpu.max", "x y"), ("memory.current", "")],
    );
    node.file("/sys/fs/cgroup/cpu.max", "100000 0");
    let found = measure(node.root()).unwrap();
    assert_eq!(found.memory_bytes, 1000 << 10);
    assert_eq!(found.cpu_millis, 4000);
    node.file("/proc/self/status", "");
    assert_eq!(measure(node.root()).unwrap().cpu_millis, 1000);
    node.file("/proc/meminfo", "MemTotal: many kB");
    assert!(matches!(
        measure(node.root()),
        Err(CapacityError::Field { field: "MemTotal" })
    ));
    node.remove("/proc/meminfo");
    let error = measure(node.root()).unwrap_err();
    assert!(error.to_string().contains("set capacity.memory"), "{error}");
}
