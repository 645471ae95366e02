//! The control groups that bound this process, and with it everything that the agent starts.

use std::path::{Path, PathBuf};

use crate::tree::{PROC_BYTES, Tree};

/// Levels of groups that are looked at.
const DEPTH: usize = 64;

/// A controller whose limits matter for capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Controller {
    /// Memory.
    Memory,
    /// CPU time.
    Cpu,
}

impl Controller {
    fn name(self) -> &'static str {
        match self {
            Controller::Memory => "memory",
            Controller::Cpu => "cpu",
        }
    }
}

/// The groups above a process, per controller, from its own up to the highest that is visible. Both versions of control
/// groups are understood, and machines that have both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Groups {
    memory: Hierarchy,
    cpu: Hierarchy,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Hierarchy {
    /// Absolute folders, the process's own group first.
    folders: Vec<PathBuf>,
    v2: bool,
}

impl Groups {
    /// Those of this process. Empty where control groups are not mounted.
    #[must_use]
    pub fn own(root: &Path) -> Self {
        let tree = Tree::new(root);
        let read = |path: &str| tree.text(Path::new(path), PROC_BYTES).unwrap_or_default();
        let (groups, mounts) = (read("/proc/self/cgroup"), read("/proc/self/mountinfo"));
        let mounts: Vec<Mount> = mounts.lines().filter_map(Mount::parse).collect();
        Self {
            memory: hierarchy(&groups, &mounts, Controller::Memory),
            cpu: hierarchy(&groups, &mounts, Controller::Cpu),
        }
    }

    /// The same without the lowest group: for an agent that sits in a group of its own, limited for itself alone,
    /// beside the groups of its workloads.
    #[must_use]
    pub fn parent(&self) -> Self {
        let above = |h: &Hierarchy| Hierarchy {
            folders: h
                .folders
                .iter()
                .skip(usize::from(h.folders.len() > 1))
                .cloned()
                .collect(),
            v2: h.v2,
        };
        Self {
            memory: above(&self.memory),
            cpu: above(&self.cpu),
        }
    }

    /// The folders of a controller, lowest group first.
    #[must_use]
    pub fn folders(&self, controller: Controller) -> &[PathBuf] {
        &self.of(controller).folders
    }

    /// Whether a controller is in the unified hierarchy (version 2).
    #[must_use]
    pub fn is_v2(&self, controller: Controller) -> bool {
        self.of(controller).v2
    }

    fn of(&self, controller: Controller) -> &Hierarchy {
        match controller {
            Controller::Memory => &self.memory,
            Controller::Cpu => &self.cpu,
        }
    }
}

/// One mounted hierarchy.
struct Mount {
    /// The group that the mount point shows.
    top: PathBuf,
    point: PathBuf,
    v2: bool,
    options: String,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (top, point) = (unescape(left.next()?), unescape(left.next()?));
        let mut right = right.split(' ');
        let v2 = match right.next()? {
            "cgroup" => false,
            "cgroup2" => true,
            _ => return None,
        };
        let options = right.nth(1).unwrap_or_default().to_owned();
        Some(Self {
            top,
            point,
            v2,
            options,
        })
    }
}

fn hierarchy(groups: &str, mounts: &[Mount], controller: Controller) -> Hierarchy {
    let has = |list: &str| list.split(',').any(|c| c == controller.name());
    let line = |v2: bool| {
        groups.lines().find_map(|line| {
            let (id, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let fits = if v2 {
                id == "0" && controllers.is_empty()
            } else {
                has(controllers)
            };
            fits.then_some(path)
        })
    };
    // A controller is in one hierarchy only; on machines with both versions the old one names what it holds.
    for v2 in [false, true] {
        let mount = mounts.iter().find(|m| m.v2 == v2 && (v2 || has(&m.options)));
        if let (Some(path), Some(mount)) = (line(v2), mount) {
            return Hierarchy {
                folders: folders(mount, path),
                v2,
            };
        }
    }
    Hierarchy::default()
}

/// From the group's folder up to the mount point. A group outside what is mounted (as in a container that sees the
/// host's names) leaves the mount point alone, which is then the container's own group.
fn folders(mount: &Mount, group: &str) -> Vec<PathBuf> {
    let below = Path::new(group).strip_prefix(&mount.top).unwrap_or(Path::new(""));
    let climbs = below.components().any(|c| c == std::path::Component::ParentDir);
    let usable = !climbs && !below.as_os_str().is_empty();
    let own = if usable {
        mount.point.join(below)
    } else {
        mount.point.clone()
    };
    let mut found: Vec<PathBuf> = own.ancestors().take(DEPTH).map(Path::to_owned).collect();
    found.retain(|folder| folder.starts_with(&mount.point));
    found
}

/// Octal escapes of `mountinfo`: `\040` is a space.
fn unescape(text: &str) -> PathBuf {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest
            .get(at + 1..at + 4)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(byte) if byte.is_ascii() => {
                out.push(char::from(byte));
                rest = &rest[at + 4..];
            }
            _ => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(groups: &str, mounts: &str, controller: Controller) -> (Vec<String>, bool) {
        let mounts: Vec<Mount> = mounts.lines().filter_map(Mount::parse).collect();
        let found = hierarchy(groups, &mounts, controller);
        (
            found.folders.iter().map(|f| f.display().to_string()).collect(),
            found.v2,
        )
    }

    #[test]
    fn version_2() {
        let mounts = "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate";
        let groups = "0::/system.slice/cnova-agent.service";
        let expected: Vec<String> = [
            "/sys/fs/cgroup/system.slice/cnova-agent.service",
            "/sys/fs/cgroup/system.slice",
            "/sys/fs/cgroup",
        ]
        .map(str::to_owned)
        .into();
        assert_eq!(parse(groups, mounts, Controller::Memory), (expected.clone(), true));
        assert_eq!(parse(groups, mounts, Controller::Cpu), (expected, true));
    }

    #[test]
    fn both_versions_and_a_container_that_sees_names_of_the_host() {
        let mounts = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                      35 31 0:32 /docker/ab /sys/fs/cgroup/me\\040mory rw - cgroup cgroup rw,memory\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
        let groups = "4:memory:/docker/ab\n2:cpu,cpuacct:/x\n0::/";
        assert_eq!(
            parse(groups, mounts, Controller::Memory),
            (vec!["/sys/fs/cgroup/me mory".into()], false)
        );
        let cpu = ["/sys/fs/cgroup/cpu/x", "/sys/fs/cgroup/cpu"].map(str::to_owned);
        assert_eq!(parse(groups, mounts, Controller::Cpu), (cpu.into(), false));
        let elsewhere = "4:memory:/kubepods/x\n0::/";
        assert_eq!(
            parse(elsewhere, mounts, Controller::Memory).0,
            ["/sys/fs/cgroup/me mory"]
        );
        let climbs = "2:cpu,cpuacct:/../../x";
        assert_eq!(parse(climbs, mounts, Controller::Cpu).0, ["/sys/fs/cgroup/cpu"]);
    }

    #[test]
    fn odd_lines_are_passed_over() {
        for odd in [
            "",
            "::",
            "a - cgroup",
            "1 2 3 / /p - cgroup",
            "\\9\\",
            "1 2 3 \\ \\77 - cgroup2 x y",
        ] {
            parse(odd, odd, Controller::Memory);
        }
        assert_eq!(unescape("a\\134b\\x\\777"), Path::new("a\\b\\x\\777"));
    }
}
