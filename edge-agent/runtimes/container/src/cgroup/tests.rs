use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use rustix::fs::{CWD, FileType, inotify};
use tempfile::TempDir;

use super::*;

#[test]
fn own_places_are_found_in_both_versions() {
    let mounts = "25 24 0:22 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                  26 24 0:23 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                  27 24 0:24 /box /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                  28 24 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
    let own = "4:memory:/a/b\n2:cpu,cpuacct:/\n3:pids:/box/x\n9:name=systemd:/q\n0::/u\n";
    let found: Vec<(usize, PathBuf)> = places(mounts, own, false)
        .into_iter()
        .map(|place| (place.controllers.len(), place.dir))
        .collect();
    let expected = [
        (1, "/sys/fs/cgroup/memory/a/b"),
        (2, "/sys/fs/cgroup/cpu,cpuacct/"),
        (1, "/sys/fs/cgroup/pids/x"),
        (0, "/sys/fs/cgroup/unified/u"),
    ];
    assert_eq!(found, expected.map(|(count, dir)| (count, PathBuf::from(dir))));
}

#[test]
fn a_share_of_the_cpu_becomes_a_quota() {
    assert_eq!(quota_us(500), 50_000);
    assert_eq!(quota_us(2500), 250_000);
    assert_eq!(quota_us(1), 1000);
}

fn limits(cpu_millis: u32) -> GroupLimits {
    GroupLimits {
        memory_bytes: 64 << 20,
        cpu_millis,
        pids: 17,
        devices: vec!["c 1:3 rwm".into()],
        everywhere: false,
    }
}

/// A hierarchy of v2 made of plain files. What the kernel would do of itself is done here before.
struct Fake {
    home: TempDir,
    own: PathBuf,
    /// Each writing to `cgroup.subtree_control`, one after the other.
    handed_down: OwnedFd,
}

impl Fake {
    /// With a group in it that this process is in and that has these controllers.
    fn new(controllers: &str) -> Fake {
        let home = tempfile::tempdir().unwrap();
        let own = home.path().join("cnova/press-4");
        fs::create_dir_all(own.join(SHIM)).unwrap();
        for (name, text) in [
            ("cgroup.controllers", controllers),
            ("cgroup.type", "domain"),
            ("cgroup.procs", "4711"),
            ("shim/cgroup.procs", ""),
        ] {
            fs::write(own.join(name), text).unwrap();
        }
        let control = own.join("cgroup.subtree_control");
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(CWD, &control, FileType::Fifo, mode, 0).unwrap();
        let handed_down = rustix::fs::open(&control, OFlags::RDWR | OFlags::NONBLOCK, Mode::empty()).unwrap();
        Fake { home, own, handed_down }
    }

    fn handed_down(&self) -> String {
        let mut buffer = [0; 256];
        let count = rustix::io::read(&self.handed_down, &mut buffer).unwrap_or(0);
        String::from_utf8(buffer[..count].to_vec()).unwrap()
    }

    fn places(&self) -> Vec<Place> {
        let mounts = format!("30 22 0:26 / {} rw - cgroup2 cgroup2 rw\n", self.home.path().display());
        places(&mounts, "0::/cnova/press-4\n", false)
    }

    /// The workload's group with those files of the kernel's.
    fn workload(&self, files: &[&str]) -> WorkloadGroup {
        let dir = self.own.join("workload-1");
        fs::create_dir(&dir).unwrap();
        for name in files {
            fs::write(dir.join(name), "").unwrap();
        }
        let places = self.places().into_iter().map(|place| place.below("workload-1"));
        WorkloadGroup {
            places: places.collect(),
        }
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.own.join(path)).unwrap()
    }
}

/// What was made or opened in these folders, in order: `folder/file`.
struct Watch {
    queue: OwnedFd,
    folders: Vec<(i32, String)>,
}

impl Watch {
    fn new(folders: &[&Path]) -> Watch {
        let queue = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).unwrap();
        let flags = inotify::WatchFlags::OPEN | inotify::WatchFlags::CREATE;
        let add = |dir: &&Path| {
            let name = dir.file_name().unwrap().to_string_lossy().into_owned();
            (inotify::add_watch(&queue, *dir, flags).unwrap(), name)
        };
        let folders = folders.iter().map(add).collect();
        Watch { queue, folders }
    }

    fn seen(&self) -> Vec<String> {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(self.queue.as_fd(), &mut buffer);
        let mut seen = Vec::new();
        while let Ok(event) = reader.next() {
            let folder = self.folders.iter().find(|(watch, _)| *watch == event.wd());
            let file = event.file_name().unwrap().to_string_lossy().into_owned();
            seen.push(format!("{}/{file}", folder.unwrap().1));
        }
        seen
    }
}

const FILES: [&str; 6] = [
    "memory.max",
    "memory.swap.max",
    "memory.oom.group",
    "pids.max",
    "cpu.max",
    "cgroup.procs",
];

#[test]
fn on_v2_this_process_makes_room_before_it_hands_controllers_down() {
    let fake = Fake::new("cpuset cpu io memory pids");
    let watch = Watch::new(&[&fake.own, &fake.own.join(SHIM)]);
    prepare_v2(&fake.places(), &limits(500)).unwrap();
    // What happens several times in a row is told once.
    let expected = [
        "press-4/cgroup.controllers",
        "shim/cgroup.procs",
        "press-4/cgroup.subtree_control",
    ];
    assert_eq!(watch.seen(), expected);
    assert_eq!(fake.read("shim/cgroup.procs"), "0");
    assert_eq!(fake.handed_down(), "+memory+pids+cpu");
}

#[test]
fn on_v2_the_root_group_needs_no_room() {
    let fake = Fake::new("cpu memory pids");
    fs::remove_file(fake.own.join("cgroup.type")).unwrap();
    fs::remove_dir_all(fake.own.join(SHIM)).unwrap();
    prepare_v2(&fake.places(), &limits(500)).unwrap();
    assert!(!fake.own.join(SHIM).exists());
    assert_eq!(fake.handed_down(), "+memory+pids+cpu");
}

#[test]
fn on_v2_the_cpu_controller_is_needed_only_for_a_limit_of_it() {
    let fake = Fake::new("memory pids");
    prepare_v2(&fake.places(), &limits(0)).unwrap();
    assert_eq!(fake.handed_down(), "+memory+pids");
    let error = prepare_v2(&fake.places(), &limits(500)).unwrap_err().to_string();
    assert!(error.starts_with("the cpu limit cannot be enforced"), "{error}");
    assert_eq!(fake.handed_down(), "", "nothing is done by halves");
}

#[test]
fn on_v2_a_controller_that_is_not_given_is_named_before_anything_is_touched() {
    for (offered, missing) in [("cpu pids", "memory"), ("cpu memory", "pids"), ("", "memory")] {
        let fake = Fake::new(offered);
        let error = prepare_v2(&fake.places(), &limits(500)).unwrap_err().to_string();
        let start = format!("the {missing} limit cannot be enforced: {}", fake.own.display());
        assert!(error.starts_with(&start) && error.contains("Delegate=yes"), "{error}");
        assert_eq!(
            (fake.handed_down(), fake.read("shim/cgroup.procs")),
            (String::new(), String::new())
        );
    }
    let error = prepare_v2(&[], &limits(0)).unwrap_err().to_string();
    assert!(error.contains("no control group hierarchy"), "{error}");
}

#[test]
fn on_v2_what_the_kernel_refuses_to_hand_down_is_named() {
    let fake = Fake::new("cpu memory pids");
    let control = fake.own.join("cgroup.subtree_control");
    fs::remove_file(&control).unwrap();
    fs::create_dir(&control).unwrap();
    let error = prepare_v2(&fake.places(), &limits(0)).unwrap_err().to_string();
    assert!(
        error.starts_with("the memory limit") && error.contains("nobody else is in"),
        "{error}"
    );
}

#[test]
fn on_v2_limits_are_written_where_the_kernel_reads_them() {
    let fake = Fake::new("cpu memory pids");
    let group = fake.workload(&FILES);
    group.limit_v2(&limits(500)).unwrap();
    let expected = [
        ("memory.max", "67108864"),
        ("memory.swap.max", "0"),
        ("memory.oom.group", "1"),
        ("pids.max", "17"),
        ("cpu.max", "50000 100000"),
        // Who enters is nobody's business here.
        ("cgroup.procs", ""),
    ];
    for (name, value) in expected {
        assert_eq!(fake.read(&format!("workload-1/{name}")), value, "{name}");
    }
}

#[test]
fn on_v2_without_a_share_the_cpu_is_left_alone() {
    let fake = Fake::new("cpu memory pids");
    fake.workload(&FILES).limit_v2(&limits(0)).unwrap();
    assert_eq!(fake.read("workload-1/cpu.max"), "");
}

#[test]
fn on_v2_what_old_kernels_lack_is_left_out_and_what_must_be_there_is_missed() {
    // Without accounting of swap, and before Linux 4.19, which has groups that end together.
    let fake = Fake::new("cpu memory pids");
    fake.workload(&["memory.max", "pids.max", "cpu.max"])
        .limit_v2(&limits(500))
        .unwrap();
    for gone in ["memory.swap.max", "memory.oom.group"] {
        assert!(
            !fake.own.join("workload-1").join(gone).exists(),
            "{gone} is the kernel's to make"
        );
    }
    for (missing, controller) in [("memory.max", "memory"), ("pids.max", "pids"), ("cpu.max", "cpu")] {
        let fake = Fake::new("cpu memory pids");
        let files = FILES.into_iter().filter(|name| *name != missing).collect::<Vec<_>>();
        let error = fake.workload(&files).limit_v2(&limits(500)).unwrap_err().to_string();
        let start = format!("the {controller} limit cannot be enforced");
        assert!(error.starts_with(&start) && error.contains(missing), "{error}");
        assert!(
            !fake.own.join("workload-1").join(missing).exists(),
            "a file of its own limits nothing"
        );
    }
}

#[test]
fn on_v2_usage_is_read_from_one_group() {
    let fake = Fake::new("cpu memory pids");
    let group = fake.workload(&[]);
    assert_eq!(group.usage(), GroupUsage::default());
    assert_eq!(group.controllers(), [""; 0]);
    for (name, text) in [
        ("memory.current", "9000000\n"),
        ("memory.stat", "anon 1\ninactive_anon 3\ninactive_file 1000000\n"),
        ("memory.events", "low 0\nmax 4\noom 1\noom_kill 2\noom_group_kill 1\n"),
        (
            "cpu.stat",
            "usage_usec 1234567\nuser_usec 1\nnr_periods 9\nnr_throttled 3\n",
        ),
        ("pids.current", "5\n"),
    ] {
        fs::write(fake.own.join("workload-1").join(name), text).unwrap();
    }
    let expected = GroupUsage {
        cpu_ms: 1234,
        memory_bytes: 8_000_000,
        processes: 5,
        oom_kills: 2,
        throttled_periods: 3,
    };
    assert_eq!(group.usage(), expected);
    // More pages than are used at all: the kernel has not gathered what was given back since.
    fs::write(
        fake.own.join("workload-1/memory.stat"),
        "anon 1\ninactive_file 9000001\n",
    )
    .unwrap();
    assert_eq!(group.usage().memory_bytes, 9_000_000);
}

/// A group of v2 on this machine's own kernel, which needs no controllers to hold and to end processes.
fn real_group() -> Option<WorkloadGroup> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let point = mounts.lines().find_map(|line| place_in(line, &[], "/"));
    let Some(dir) = point.map(|point| point.join(format!("cnova-container-unit-{}", std::process::id()))) else {
        eprintln!("skipped: no control groups v2 are mounted here");
        return None;
    };
    if let Err(error) = fs::create_dir(&dir) {
        eprintln!("skipped: cannot make {}: {error}", dir.display());
        return None;
    }
    let controllers = Vec::new();
    Some(WorkloadGroup {
        places: vec![Place { controllers, dir }],
    })
}

#[test]
fn on_v2_what_is_in_the_group_is_ended_at_once_and_the_group_removed() {
    let Some(group) = real_group() else { return };
    let dir = group.places[0].dir.clone();
    fs::create_dir(dir.join("below")).unwrap();
    // The shell enters by itself, as the container's first process does.
    let script = format!(
        "echo 0 > {0}/cgroup.procs; trap '' TERM HUP; (echo 0 > {0}/below/cgroup.procs; sleep 3600) & \
         while :; do (trap '' TERM; sleep 3600) & sleep 0.01; done",
        dir.display()
    );
    let mut child: Child = Command::new("sh")
        .args(["-c", &script])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let count = |dir: &Path| fs::read_to_string(dir.join("cgroup.procs")).unwrap().lines().count();
    let end = Instant::now() + Duration::from_secs(60);
    while count(&dir) < 12 || count(&dir.join("below")) == 0 {
        assert!(Instant::now() < end, "the processes do not enter the group");
        sleep(Duration::from_millis(5));
    }
    group.remove().unwrap();
    assert!(!dir.exists());
    let status = child.wait().unwrap();
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(libc::SIGKILL)
    );
    // What is not there is removed already.
    group.remove().unwrap();
}
