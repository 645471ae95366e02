use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::files::Version;
use super::layout::find_in;
use super::*;

/// A group on this machine's real hierarchies; nothing, and a word about it, where that is not permitted.
struct Real {
    parent: Parent,
    group: Group,
    children: Vec<Child>,
}

impl Real {
    fn new() -> Option<Real> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let parent = match Parent::find(Some("cnova-ral-tests")) {
            Ok(parent) => parent,
            Err(error) => {
                eprintln!("skipped: {error}");
                return None;
            }
        };
        let name = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let group = Group::create(&parent, &name).unwrap();
        Some(Real {
            parent,
            group,
            children: Vec::new(),
        })
    }

    fn sh(&mut self, script: &str) -> u32 {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::null());
        self.group.enter_command(&mut command).unwrap();
        let child = command.spawn().unwrap();
        let pid = child.id();
        self.children.push(child);
        pid
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.group.kill();
        for child in &mut self.children {
            let _ = child.wait();
        }
        let _ = self.group.remove();
    }
}

fn wait_for<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "waited too long");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_process_is_inside_before_its_first_instruction_and_its_children_too() {
    let Some(mut real) = Real::new() else { return };
    let pid = real.sh("sleep 3600 & wait");
    // The group is entered before the spawn returns.
    assert!(real.group.processes().unwrap().contains(&pid));
    wait_for(|| (real.group.processes().unwrap().len() >= 2).then_some(()));
    let own = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(own.contains(&format!("cnova-ral-tests/{}", real.group.name())), "{own}");
    assert!(
        !std::fs::read_to_string("/proc/self/cgroup")
            .unwrap()
            .contains("cnova-ral-tests")
    );
}

#[test]
fn usage_counts_time_and_memory_of_what_has_ended_too_and_is_found_again_by_name() {
    let Some(mut real) = Real::new() else { return };
    real.sh("i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; exec sleep 3600");
    let used = wait_for(|| Some(real.group.usage().unwrap()).filter(|u| u.cpu_ms.is_none_or(|ms| ms >= 20)));
    assert_eq!(used.processes, 1);
    assert!(used.memory_bytes.is_none_or(|bytes| bytes > 0));
    assert!(
        used.memory_peak
            .is_none_or(|peak| peak >= used.memory_bytes.unwrap_or(0))
    );
    let again = real.parent.open(real.group.name()).unwrap().unwrap();
    assert!(real.parent.names().unwrap().contains(&again.name().to_owned()));
    again.kill().unwrap();
    let after = again.usage().unwrap();
    assert_eq!(after.processes, 0);
    assert!(after.cpu_ms >= used.cpu_ms);
    again.remove().unwrap();
    assert_eq!(real.parent.open(real.group.name()).unwrap(), None);
    assert!(
        real.group.usage().is_err(),
        "what is gone uses not nothing but cannot be asked"
    );
}

#[test]
fn a_fork_bomb_and_what_ignores_signals_is_killed() {
    let Some(mut real) = Real::new() else { return };
    // Every process forks another one and forgets it, in sessions of their own, as fast as it can.
    let script = "trap '' TERM HUP; f() { setsid sh -c 'trap \"\" TERM; sleep 0.01; sleep 3600' & }; \
                  for i in 1 2 3 4 5 6 7 8; do f; done; while :; do f; sleep 0.01; done";
    let pid = real.sh(script);
    wait_for(|| (real.group.processes().unwrap().len() > 20).then_some(()));
    real.group.kill().unwrap();
    assert_eq!(real.group.processes().unwrap(), [0; 0]);
    let mut child = real.children.pop().unwrap();
    assert_eq!((child.id(), child.wait().unwrap().signal()), (pid, Some(9)));
    // It can be used again, and its processes may fork again.
    real.sh("sleep 3600 & wait");
    wait_for(|| (real.group.processes().unwrap().len() == 2).then_some(()));
}

#[test]
fn what_the_kernel_kills_for_memory_is_counted_in_groups_below_too() {
    let Some(mut real) = Real::new() else { return };
    let limits = ["memory.limit_in_bytes", "memory.max"];
    let found = real
        .group
        .folders()
        .flat_map(|dir| limits.map(|name| (dir.to_owned(), name)));
    let Some((dir, limit)) = found.into_iter().find(|(dir, name)| dir.join(name).exists()) else {
        eprintln!("skipped: this kernel has no control groups for memory");
        return;
    };
    let below = dir.join("workload");
    fs::create_dir(&below).unwrap();
    if !below.join(limit).exists() {
        eprintln!("skipped: v2 gives a group below one with processes no limits");
        return;
    }
    files::write(&below.join(limit), "16777216").unwrap();
    // `tail` keeps all of a line that never ends.
    let script = format!(
        "echo 0 > {}; head -c 256M /dev/zero | tail",
        below.join(files::PROCS).display()
    );
    real.sh(&script);
    wait_for(|| (real.group.usage().unwrap().oom_kills >= Some(1)).then_some(()));
}

#[test]
fn groups_below_are_killed_and_removed_with_it_and_others_are_not_touched() {
    let (Some(mut real), Some(mut other)) = (Real::new(), Real::new()) else {
        return;
    };
    let bystander = other.sh("exec sleep 3600");
    let pid = real.sh("exec sleep 3600");
    for dir in real.group.folders().map(Path::to_owned).collect::<Vec<_>>() {
        let below = dir.join("workload").join("deeper");
        fs::create_dir_all(&below).unwrap();
        files::write(&below.join(files::PROCS), &pid.to_string()).unwrap();
    }
    assert_eq!(real.group.processes().unwrap(), [pid]);
    let error = real.group.remove().unwrap_err().to_string();
    assert!(error.contains("cannot remove"), "{error}");
    real.group.kill().unwrap();
    real.group.remove().unwrap();
    assert!(real.group.folders().all(|dir| !dir.exists()));
    assert_eq!(other.group.processes().unwrap(), [bystander]);
}

/// Whether this machine's control groups are those of v2.
fn on_v2(group: &Group) -> bool {
    let found = group.hierarchies.iter().any(|h| h.version == Version::V2);
    if !found {
        eprintln!("skipped: this machine has control groups v1; `make test-cgroup2` has others");
    }
    found
}

#[test]
fn after_a_runtime_that_limited_groups_below_the_next_one_enters() {
    let Some(mut real) = Real::new() else { return };
    if !on_v2(&real.group) {
        return;
    }
    let dir = real.group.folders().next().unwrap().to_owned();
    fs::create_dir_all(dir.join("workload/deeper")).unwrap();
    files::write(&dir.join(files::SUBTREE_CONTROL), "+pids").unwrap();
    let pid = real.sh("exec sleep 3600");
    assert_eq!(real.group.processes().unwrap(), [pid]);
    assert!(!dir.join("workload").exists());
}

#[test]
fn a_controller_that_the_kernel_refuses_does_not_cost_the_others() {
    let Some(real) = Real::new() else { return };
    if !on_v2(&real.group) {
        return;
    }
    // A group with threads of its own below offers memory and does not hand it down.
    let dir = real.group.folders().next().unwrap().join("threads");
    fs::create_dir_all(dir.join("inner")).unwrap();
    files::write(&dir.join("inner/cgroup.type"), "threaded").unwrap();
    let path = format!("cnova-ral-tests/{}/threads", real.group.name());
    let parent = Parent::find(Some(&path)).unwrap();
    assert_eq!(parent.missing(), ["memory"]);
    let given = fs::read_to_string(dir.join(files::SUBTREE_CONTROL)).unwrap();
    assert_eq!(given.trim(), "cpu pids");
}

#[test]
fn killing_what_is_empty_or_gone_is_no_error() {
    let Some(real) = Real::new() else { return };
    real.group.kill().unwrap();
    real.group.remove().unwrap();
    real.group.kill().unwrap();
    real.group.remove().unwrap();
}

/// A hierarchy of v2 made of plain files. What the kernel would do of itself is done here before.
struct Fake {
    home: TempDir,
    mountinfo: String,
}

impl Fake {
    fn new() -> Fake {
        let home = tempfile::Builder::new().prefix("with blank").tempdir().unwrap();
        let fake = Fake {
            mountinfo: format!(
                "22 1 0:21 / /sys rw - sysfs sysfs rw\n30 22 0:26 / {} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n",
                home.path().to_str().unwrap().replace(' ', "\\040")
            ),
            home,
        };
        fake.group("", "cpuset cpu io memory hugetlb pids");
        fake
    }

    /// As the kernel makes one.
    fn group(&self, path: &str, controllers: &str) -> PathBuf {
        let dir = self.home.path().join(path);
        fs::create_dir_all(&dir).unwrap();
        for (name, text) in [
            (files::PROCS, ""),
            ("cgroup.controllers", controllers),
            ("cgroup.subtree_control", ""),
            (
                "cpu.stat",
                "usage_usec 1234567\nuser_usec 1000000\nsystem_usec 234567\n",
            ),
            ("memory.current", "1000000\n"),
            ("memory.peak", "2000000\n"),
            ("memory.stat", "anon 5\nfile 7\ninactive_anon 3\ninactive_file 400000\n"),
            (
                "memory.events",
                "low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\noom_group_kill 0\n",
            ),
            ("cgroup.kill", ""),
        ] {
            fs::write(dir.join(name), text).unwrap();
        }
        dir
    }
}

#[test]
fn on_v2_controllers_are_handed_down_and_usage_is_read() {
    let fake = Fake::new();
    fake.group("cnova", "cpu memory pids");
    let parent = find_in(&fake.mountinfo, "0::/agent\n", None).unwrap();
    assert_eq!(parent.missing(), [""; 0]);
    for group in ["", "cnova"] {
        let enabled = fs::read_to_string(fake.home.path().join(group).join("cgroup.subtree_control")).unwrap();
        assert_eq!(enabled, "+cpu +memory +pids", "in `{group}`");
    }
    assert_eq!(parent.open("press-4.vibration-1").unwrap(), None);
    fake.group("cnova/press-4.vibration-1", "cpu memory pids");
    let group = Group::create(&parent, "press-4.vibration-1").unwrap();
    let usage = group.usage().unwrap();
    let expected = Usage {
        cpu_ms: Some(1234),
        memory_bytes: Some(600_000),
        memory_peak: Some(2_000_000),
        oom_kills: Some(1),
        processes: 0,
    };
    assert_eq!(usage, expected);
    let dir = group.folders().next().unwrap();
    // More pages than are used at all: the kernel has not gathered what was given back since.
    fs::write(dir.join("memory.stat"), "anon 5\ninactive_file 1000001\n").unwrap();
    assert_eq!(group.usage().unwrap().memory_bytes, Some(1_000_000));
    group.kill().unwrap();
    assert_eq!(fs::read_to_string(dir.join("cgroup.kill")).unwrap(), "1");
}

#[test]
fn on_v2_a_group_that_was_divided_takes_processes_again() {
    let fake = Fake::new();
    fake.group("cnova", "cpu memory pids");
    let dir = fake.group("cnova/a", "cpu memory pids");
    let parent = find_in(&fake.mountinfo, "0::/\n", None).unwrap();
    let group = parent.open("a").unwrap().unwrap();
    let enabled = dir.join("cgroup.subtree_control");
    fs::create_dir_all(dir.join("workload-1/deeper")).unwrap();
    group.enter_command(&mut Command::new("true")).unwrap();
    assert!(dir.join("workload-1").exists(), "nothing is in the way");
    fs::write(&enabled, "memory pids\n").unwrap();
    group.enter_command(&mut Command::new("true")).unwrap();
    assert!(!dir.join("workload-1").exists());
    assert!(fs::read_to_string(&enabled).unwrap().starts_with("-memory -pids"));
}

#[test]
fn what_is_not_accounted_is_absent_and_what_is_nonsense_is_an_error() {
    let fake = Fake::new();
    fs::write(fake.home.path().join("cgroup.controllers"), "cpu pids").unwrap();
    fake.group("cnova", "cpu pids");
    let parent = find_in(&fake.mountinfo, "0::/\n", None).unwrap();
    assert_eq!(parent.missing(), ["memory"]);
    let dir = fake.group("cnova/a", "cpu pids");
    for name in ["memory.current", "memory.peak", "memory.stat", "memory.events"] {
        fs::remove_file(dir.join(name)).unwrap();
    }
    let group = parent.open("a").unwrap().unwrap();
    let usage = group.usage().unwrap();
    assert_eq!(
        (usage.cpu_ms, usage.memory_bytes, usage.oom_kills),
        (Some(1234), None, None)
    );
    fs::write(dir.join("memory.current"), "max\n").unwrap();
    let error = group.usage().unwrap_err().to_string();
    assert!(error.contains("memory.current holds no number"), "{error}");
}

#[test]
fn in_a_delegated_group_the_agent_makes_room_and_comes_back_to_it() {
    let fake = Fake::new();
    let own = fake.group("system.slice/cnova-agent.service", "cpu memory pids");
    fs::write(own.join(files::PROCS), "4711\n").unwrap();
    fake.group("system.slice/cnova-agent.service/agent", "");
    fake.group("system.slice/cnova-agent.service/cnova", "cpu memory pids");
    // A plain file where the group would be: the root is not ours.
    fs::write(fake.home.path().join("cnova"), "").unwrap();
    let parent = find_in(&fake.mountinfo, "0::/system.slice/cnova-agent.service\n", None).unwrap();
    assert_eq!(parent.folders().collect::<Vec<_>>(), [own.join("cnova")]);
    assert_eq!(
        fs::read_to_string(own.join("agent").join(files::PROCS)).unwrap(),
        "4711"
    );
    // The next start of the agent may find itself in the leaf.
    let again = find_in(&fake.mountinfo, "0::/system.slice/cnova-agent.service/agent\n", None).unwrap();
    assert_eq!(again, parent);
}

#[test]
fn a_named_parent_is_used_or_refused_and_nothing_else_is_tried() {
    let fake = Fake::new();
    fake.group("edge", "cpu memory pids");
    fake.group("edge/plant", "cpu memory pids");
    let parent = find_in(&fake.mountinfo, "0::/\n", Some("/edge/plant")).unwrap();
    assert_eq!(
        parent.folders().collect::<Vec<_>>(),
        [fake.home.path().join("edge/plant")]
    );
    for wrong in ["", "/", "../x", "a/../../b"] {
        let error = find_in(&fake.mountinfo, "0::/\n", Some(wrong)).unwrap_err().to_string();
        assert!(error.contains("no path below"), "{error}");
    }
    fs::write(fake.home.path().join("file"), "").unwrap();
    let error = find_in(&fake.mountinfo, "0::/\n", Some("file/x"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("cannot make control groups in `file/x`") && error.contains("Delegate=yes"),
        "{error}"
    );
}

#[test]
fn without_any_hierarchy_it_says_what_to_mount() {
    let error = find_in("22 1 0:21 / /sys rw - sysfs sysfs rw\n", "0::/\n", None).unwrap_err();
    assert!(error.to_string().contains("mount cgroup2"), "{error}");
}

#[test]
fn on_a_hybrid_system_the_v1_hierarchies_count() {
    let home = tempfile::tempdir().unwrap();
    let mut mountinfo = String::new();
    for (directory, kind, options) in [
        ("unified", "cgroup2", "rw"),
        ("cpu,cpuacct", "cgroup", "rw,cpu,cpuacct"),
        ("cpu-again", "cgroup", "rw,cpu,cpuacct"),
        ("memory", "cgroup", "rw,memory"),
        ("freezer", "cgroup", "rw,freezer"),
        ("systemd", "cgroup", "rw,xattr,name=systemd"),
    ] {
        let dir = home.path().join(directory);
        fs::create_dir_all(dir.join("cnova")).unwrap();
        fs::write(dir.join("cnova").join(files::PROCS), "").unwrap();
        mountinfo += &format!("30 22 0:26 / {} rw - {kind} cgroup {options}\n", dir.display());
    }
    let parent = find_in(&mountinfo, "", None).unwrap();
    assert_eq!(parent.missing(), ["pids"]);
    let folders: Vec<_> = parent.folders().collect();
    assert_eq!(
        folders,
        [home.path().join("cpu,cpuacct/cnova"), home.path().join("memory/cnova")]
    );
    let group = Group::create(&parent, "one").unwrap();
    assert!(
        group
            .hierarchies
            .iter()
            .all(|h| h.version == Version::V1 && h.dir.is_dir())
    );
    fs::write(home.path().join("cpu,cpuacct/cnova/one/cpuacct.usage"), "5000000\n").unwrap();
    let memory = home.path().join("memory/cnova/one");
    fs::create_dir(memory.join("workload")).unwrap();
    for (path, text) in [
        ("memory.usage_in_bytes", "900\n"),
        ("memory.stat", "cache 1\ninactive_file 1\ntotal_inactive_file 300\n"),
        ("memory.max_usage_in_bytes", "1000\n"),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
        (
            "workload/memory.oom_control",
            "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        ),
    ] {
        fs::write(memory.join(path), text).unwrap();
    }
    let expected = Usage {
        cpu_ms: Some(5),
        memory_bytes: Some(600),
        memory_peak: Some(1000),
        oom_kills: Some(3),
        processes: 0,
    };
    assert_eq!(group.usage().unwrap(), expected);
}

#[test]
fn a_name_cannot_leave_the_parent_nor_be_a_file_of_the_kernel() {
    let fake = Fake::new();
    fake.group("cnova", "cpu memory pids");
    let parent = find_in(&fake.mountinfo, "0::/\n", None).unwrap();
    let long = "x".repeat(NAME_BYTES_MAX + 1);
    for name in ["", ".", "..", "a/b", ".hidden", "a b", "\u{e4}", &long] {
        assert!(matches!(parent.open(name), Err(GroupError::Name { .. })), "{name}");
    }
    let error = Group::create(&parent, "cgroup.procs").unwrap_err().to_string();
    assert!(error.contains("create control group"), "{error}");
}
