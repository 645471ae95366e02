//! The control group of the container, below the one that this process was started in: on v1 a group in each hierarchy,
//! on v2 one group. It bounds memory, CPU, processes and, on v1, devices.

#[cfg(test)]
mod tests;

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use cnova_ral::cgroup::working_set;
use rustix::fs::{Mode, OFlags};

/// Length of the periods in which CPU time is given out.
const CPU_PERIOD_US: u64 = 100_000;
/// Controllers that every container needs.
const NEEDED: [&str; 2] = ["memory", "pids"];
/// Hierarchies of v1 that a container is put into where they are mounted.
const HIERARCHIES: [&str; 5] = ["memory", "pids", "cpu", "cpuacct", "devices"];
/// Files of a new v1 group for CPU sets, which has none until it is told.
const CPUSET_FILES: [&str; 2] = ["cpuset.mems", "cpuset.cpus"];
/// Where the shim itself goes on v2, where a group has either processes or limited children.
const SHIM: &str = "shim";
/// How long killed processes may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is to be enforced.
#[derive(Clone, Debug)]
pub(crate) struct GroupLimits {
    pub(crate) memory_bytes: u64,
    /// Thousandths of a core; 0 is no limit.
    pub(crate) cpu_millis: u32,
    pub(crate) pids: u32,
    /// Devices and what may be done with them, as `c 1:3 rwm`.
    pub(crate) devices: Vec<String>,
    /// In every hierarchy of v1, because an installed runtime makes groups below in each that it knows.
    pub(crate) everywhere: bool,
}

/// What the container uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct GroupUsage {
    pub(crate) cpu_ms: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) processes: u64,
    pub(crate) oom_kills: u64,
    pub(crate) throttled_periods: u64,
}

/// Why the group could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GroupError {
    #[error("cannot {action} {path}: {source}")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("the {controller} limit cannot be enforced: {why}")]
    Unenforceable { controller: &'static str, why: String },
}

/// A mounted hierarchy and where in it this process is.
#[derive(Clone, Debug)]
struct Place {
    /// The v1 controllers in it; none means v2.
    controllers: Vec<String>,
    dir: PathBuf,
}

/// The container's group.
#[derive(Clone, Debug, Default)]
pub(crate) struct WorkloadGroup {
    places: Vec<Place>,
}

impl WorkloadGroup {
    /// Makes the group, after ending and removing one that an earlier run left under this name.
    pub(crate) fn create(name: &str, limits: &GroupLimits) -> Result<WorkloadGroup, GroupError> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(at("read", "/proc/self/mountinfo"))?;
        let own = fs::read_to_string("/proc/self/cgroup").map_err(at("read", "/proc/self/cgroup"))?;
        let places = places(&mounts, &own, limits.everywhere);
        let (v1, v2): (Vec<Place>, Vec<Place>) = places.into_iter().partition(|place| !place.controllers.is_empty());
        let on_v1 = v1.iter().any(|place| place.has("memory"));
        let parents = if on_v1 { v1 } else { v2 };
        if !on_v1 {
            prepare_v2(&parents, limits)?;
        }
        let group = WorkloadGroup {
            places: parents.into_iter().map(|place| place.below(name)).collect(),
        };
        group.remove()?;
        for place in &group.places {
            fs::create_dir(&place.dir).map_err(at("create", &place.dir))?;
            if place.has("cpuset") {
                inherit_cpuset(&place.dir)?;
            }
        }
        match if on_v1 {
            group.limit_v1(limits)
        } else {
            group.limit_v2(limits)
        } {
            Ok(()) => Ok(group),
            Err(error) => {
                let _ = group.remove();
                Err(error)
            }
        }
    }

    /// Descriptors through which a process of one thread enters the group, usable where the groups themselves are out
    /// of sight. By v1's `tasks` it enters at once; for `cgroup.procs` the kernel waits for all of its CPUs.
    pub(crate) fn doors(&self) -> Result<Vec<OwnedFd>, GroupError> {
        let open = |place: &Place| {
            let tasks = place.dir.join("tasks");
            let path = if tasks.exists() {
                tasks
            } else {
                place.dir.join("cgroup.procs")
            };
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::open(&path, flags, Mode::empty()).map_err(|errno| at("open", &path)(errno.into()))
        };
        self.places.iter().map(open).collect()
    }

    /// Where v1 hierarchies are mounted by these names; empty on v2.
    pub(crate) fn controllers(&self) -> Vec<String> {
        let named = self.places.iter().filter(|place| !place.controllers.is_empty());
        named.map(|place| place.controllers.join(",")).collect()
    }

    /// What it uses now; what cannot be read is zero.
    pub(crate) fn usage(&self) -> GroupUsage {
        let mut usage = GroupUsage::default();
        for place in &self.places {
            let number = |file: &str| read_number(&place.dir.join(file)).unwrap_or(0);
            let field = |file: &str, name: &str| read_field(&place.dir.join(file), name).unwrap_or(0);
            if place.controllers.is_empty() {
                let reclaimable = field("memory.stat", "inactive_file");
                usage.memory_bytes = working_set(number("memory.current"), reclaimable);
                usage.cpu_ms = field("cpu.stat", "usage_usec") / 1000;
                usage.throttled_periods = field("cpu.stat", "nr_throttled");
                usage.processes = number("pids.current");
                usage.oom_kills = field("memory.events", "oom_kill");
                continue;
            }
            if place.has("memory") {
                let reclaimable = field("memory.stat", "total_inactive_file");
                usage.memory_bytes = working_set(number("memory.usage_in_bytes"), reclaimable);
                usage.oom_kills = oom_kills_v1(&place.dir);
            }
            if place.has("cpuacct") {
                usage.cpu_ms = number("cpuacct.usage") / 1_000_000;
            }
            if place.has("cpu") {
                usage.throttled_periods = field("cpu.stat", "nr_throttled");
            }
            if place.has("pids") {
                usage.processes = number("pids.current");
            }
        }
        usage
    }

    /// Ends whatever is in it and removes it; not being there is fine.
    pub(crate) fn remove(&self) -> Result<(), GroupError> {
        let end = Instant::now() + PATIENCE;
        for place in &self.places {
            loop {
                kill_all(&place.dir);
                match remove_tree(&place.dir) {
                    Ok(()) => break,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    Err(source) if Instant::now() >= end => return Err(at("remove", &place.dir)(source)),
                    Err(_) => sleep(Duration::from_millis(5)),
                }
            }
        }
        Ok(())
    }

    fn limit_v1(&self, limits: &GroupLimits) -> Result<(), GroupError> {
        let memory = self.place("memory")?;
        write(
            memory,
            "memory",
            "memory.limit_in_bytes",
            &limits.memory_bytes.to_string(),
        )?;
        // Only where swap is accounted; without swap there is nothing to bound.
        if memory.join("memory.memsw.limit_in_bytes").exists() {
            write(
                memory,
                "memory",
                "memory.memsw.limit_in_bytes",
                &limits.memory_bytes.to_string(),
            )?;
        }
        write(self.place("pids")?, "pids", "pids.max", &limits.pids.to_string())?;
        if limits.cpu_millis > 0 {
            let cpu = self.place("cpu")?;
            write(cpu, "cpu", "cpu.cfs_period_us", &CPU_PERIOD_US.to_string())?;
            write(cpu, "cpu", "cpu.cfs_quota_us", &quota_us(limits.cpu_millis).to_string())?;
        }
        if let Ok(devices) = self.place("devices") {
            write(devices, "devices", "devices.deny", "a")?;
            for device in &limits.devices {
                write(devices, "devices", "devices.allow", device)?;
            }
        }
        Ok(())
    }

    fn limit_v2(&self, limits: &GroupLimits) -> Result<(), GroupError> {
        let Some(place) = self.places.first() else {
            return Err(unmounted("memory"));
        };
        let dir = &place.dir;
        write(dir, "memory", "memory.max", &limits.memory_bytes.to_string())?;
        if dir.join("memory.swap.max").exists() {
            write(dir, "memory", "memory.swap.max", "0")?;
        }
        if dir.join("memory.oom.group").exists() {
            write(dir, "memory", "memory.oom.group", "1")?;
        }
        write(dir, "pids", "pids.max", &limits.pids.to_string())?;
        if limits.cpu_millis > 0 {
            let share = format!("{} {CPU_PERIOD_US}", quota_us(limits.cpu_millis));
            write(dir, "cpu", "cpu.max", &share)?;
        }
        Ok(())
    }

    fn place(&self, controller: &'static str) -> Result<&Path, GroupError> {
        let found = self.places.iter().find(|place| place.has(controller));
        found
            .map(|place| place.dir.as_path())
            .ok_or_else(|| unmounted(controller))
    }
}

impl Place {
    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }

    fn below(mut self, name: &str) -> Place {
        self.dir.push(name);
        self
    }
}

/// Whether limits can be enforced, and by which version, for the description.
pub(crate) fn version() -> Option<&'static str> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let places = places(&mounts, &own, false);
    if places.iter().any(|place| place.has("memory")) {
        return Some("cgroup-v1");
    }
    let v2 = places.iter().find(|place| place.controllers.is_empty())?;
    let offered = fs::read_to_string(v2.dir.join("cgroup.controllers")).ok()?;
    offered
        .split_whitespace()
        .any(|name| name == "memory")
        .then_some("cgroup-v2")
}

fn inherit_cpuset(dir: &Path) -> Result<(), GroupError> {
    for file in CPUSET_FILES {
        let own = dir.join(file);
        let above = dir.join("..").join(file);
        let text = fs::read_to_string(&above).map_err(at("read", &above))?;
        fs::write(&own, text.trim()).map_err(at("write", &own))?;
    }
    Ok(())
}

/// On v2 a group with limited children has no processes of its own, unless it is the root.
fn prepare_v2(parents: &[Place], limits: &GroupLimits) -> Result<(), GroupError> {
    let Some(own) = parents.first().map(|place| &place.dir) else {
        return Err(unmounted("memory"));
    };
    // A kernel with real-time groups does not give this controller to groups below while a real-time process is in one.
    let cpu = (limits.cpu_millis > 0).then_some("cpu");
    let offered = fs::read_to_string(own.join("cgroup.controllers")).map_err(at("read", own))?;
    for controller in NEEDED.into_iter().chain(cpu) {
        if !offered.split_whitespace().any(|name| name == controller) {
            let why = format!(
                "{} does not offer the controller; give the agent's unit `Delegate=yes`",
                own.display()
            );
            return Err(GroupError::Unenforceable { controller, why });
        }
    }
    let is_root = !own.join("cgroup.type").exists();
    if !is_root {
        let shim = own.join(SHIM);
        match fs::create_dir(&shim) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => return Err(at("create", &shim)(source)),
            _ => {}
        }
        let procs = shim.join("cgroup.procs");
        tell(&procs, "0").map_err(at("enter", &procs))?;
    }
    let enabled = own.join("cgroup.subtree_control");
    for controller in NEEDED.into_iter().chain(cpu) {
        // One by one, so that what the kernel refuses is named.
        tell(&enabled, &format!("+{controller}")).map_err(|source| GroupError::Unenforceable {
            controller,
            why: format!(
                "{}: {source}; this runtime needs a group that nobody else is in",
                enabled.display()
            ),
        })?;
    }
    Ok(())
}

/// Where this process is in each hierarchy that matters. Only a hierarchy that is mounted from its root, or from above
/// this process, can be used.
fn places(mountinfo: &str, own: &str, everywhere: bool) -> Vec<Place> {
    let mut places: Vec<Place> = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let controllers: Vec<String> = controllers
            .split(',')
            .filter(|c| !c.is_empty())
            .map(str::to_owned)
            .collect();
        let wanted = |name: &String| HIERARCHIES.contains(&name.as_str());
        if !everywhere && !controllers.is_empty() && !controllers.iter().any(wanted) {
            continue;
        }
        if let Some(dir) = mountinfo.lines().find_map(|mount| place_in(mount, &controllers, path)) {
            places.push(Place { controllers, dir });
        }
    }
    places
}

/// `36 35 98:0 ROOT MOUNTPOINT OPTIONS ... - TYPE SOURCE SUPER_OPTIONS`
fn place_in(mount: &str, controllers: &[String], path: &str) -> Option<PathBuf> {
    let (left, right) = mount.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (root, point) = (left.next()?, left.next()?);
    let mut right = right.split(' ');
    let (kind, options) = (right.next()?, right.nth(1).unwrap_or(""));
    let fits = match controllers {
        [] => kind == "cgroup2",
        names => kind == "cgroup" && names.iter().all(|name| options.split(',').any(|option| option == name)),
    };
    let inner = match root {
        "/" => path,
        root => path.strip_prefix(root)?,
    };
    fits.then(|| Path::new(point).join(inner.trim_start_matches('/')))
}

fn quota_us(cpu_millis: u32) -> u64 {
    // The kernel takes no less than a millisecond.
    (u64::from(cpu_millis) * CPU_PERIOD_US / 1000).max(1000)
}

fn unmounted(controller: &'static str) -> GroupError {
    let hint = match controller {
        "memory" => "; on a Raspberry Pi add `cgroup_enable=memory` to the kernel's command line",
        _ => "",
    };
    GroupError::Unenforceable {
        controller,
        why: format!("no control group hierarchy with this controller is mounted{hint}"),
    }
}

fn write(dir: &Path, controller: &'static str, file: &str, value: &str) -> Result<(), GroupError> {
    let path = dir.join(file);
    tell(&path, value).map_err(|source| GroupError::Unenforceable {
        controller,
        why: format!("{value} to {}: {source}", path.display()),
    })
}

/// Writes into a file that the kernel must have made, at once, as its files want it.
fn tell(path: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

fn kill_all(dir: &Path) {
    if tell(&dir.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in procs
        .lines()
        .filter_map(|line| line.parse().ok())
        .filter(|pid| *pid > 0)
    {
        crate::sys::kill(pid, libc::SIGKILL);
    }
    for child in children(dir) {
        kill_all(&child);
    }
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for child in children(dir) {
        remove_tree(&child)?;
    }
    fs::remove_dir(dir)
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    // The listing says what is a folder: a group has dozens of files, and each would be looked at.
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.map(|entry| entry.path()).collect()
}

/// On v1 each group counts its own only.
fn oom_kills_v1(dir: &Path) -> u64 {
    let below: u64 = children(dir).iter().map(|child| oom_kills_v1(child)).sum();
    below + read_field(&dir.join("memory.oom_control"), "oom_kill").unwrap_or(0)
}

fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn read_field(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

fn at(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> GroupError {
    let path = path.as_ref().to_owned();
    move |source| GroupError::Io { action, path, source }
}
