//! Where the groups of instances are made.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

use super::files::{self, Hierarchy, PROCS, Version};
use super::{Group, GroupError, NAME_BYTES_MAX};

/// What an instance is accounted and limited by, where the kernel has it.
const CONTROLLERS: [&str; 4] = ["cpu", "cpuacct", "memory", "pids"];
/// The same on v2, where `cpu` accounts as well.
const CONTROLLERS_V2: [&str; 3] = ["cpu", "memory", "pids"];
/// The group that holds those of all instances.
const PARENT: &str = "cnova";
/// Where the agent moves to when it must make room in a group that was delegated to it.
const LEAF: &str = "agent";

/// The group above those of all instances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    hierarchies: Vec<Hierarchy>,
    missing: Vec<&'static str>,
}

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    version: Version,
    controllers: Vec<String>,
    /// Which group of the hierarchy is seen at the mount point.
    root: PathBuf,
    point: PathBuf,
}

impl Parent {
    /// Finds the place and makes it: `cgroup_parent` below the root of each hierarchy if it is given, else `cnova` there,
    /// else `cnova` in the group that the agent is in, which on v2 moves the agent into the leaf `agent` beside it.
    ///
    /// # Errors
    /// Why there can be no groups; the agent then runs without.
    pub fn find(cgroup_parent: Option<&str>) -> Result<Parent, GroupError> {
        let read = |path: &str| {
            let path = Path::new(path);
            fs::read_to_string(path).map_err(files::io_error("read", path))
        };
        find_in(
            &read("/proc/self/mountinfo")?,
            &read("/proc/self/cgroup")?,
            cgroup_parent,
        )
    }

    /// Controllers that no group here has: what they would limit is not limited, what they would account is absent.
    pub fn missing(&self) -> &[&'static str] {
        &self.missing
    }

    /// Its folders, one for each hierarchy.
    pub fn folders(&self) -> impl Iterator<Item = &Path> {
        self.hierarchies.iter().map(|h| h.dir.as_path())
    }

    /// The group of an instance that an earlier run of the agent made, if it is still there.
    ///
    /// # Errors
    /// If the name cannot be one.
    pub fn open(&self, name: &str) -> Result<Option<Group>, GroupError> {
        let mut group = self.group(name)?;
        group.hierarchies.retain(|h| h.dir.is_dir());
        Ok((!group.hierarchies.is_empty()).then_some(group))
    }

    /// The names of all groups here, in order, so that those of instances which are gone can be removed.
    ///
    /// # Errors
    /// If they cannot be listed.
    pub fn names(&self) -> Result<Vec<String>, GroupError> {
        let mut names = Vec::new();
        for hierarchy in &self.hierarchies {
            let entries = fs::read_dir(&hierarchy.dir).map_err(files::io_error("list", &hierarchy.dir))?;
            let dirs = entries
                .flatten()
                .filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));
            names.extend(dirs.filter_map(|e| e.file_name().into_string().ok()));
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// The group as it would be; nothing is made.
    pub(super) fn group(&self, name: &str) -> Result<Group, GroupError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:@".contains(&byte);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.starts_with('.') || !name.bytes().all(allowed) {
            return Err(GroupError::Name { name: name.to_owned() });
        }
        let below = |h: &Hierarchy| Hierarchy {
            dir: h.dir.join(name),
            ..h.clone()
        };
        Ok(Group {
            name: name.to_owned(),
            hierarchies: self.hierarchies.iter().map(below).collect(),
        })
    }
}

/// Tries the places in their order. The texts are those of `/proc/self/mountinfo` and `/proc/self/cgroup`.
pub(super) fn find_in(mountinfo: &str, own: &str, cgroup_parent: Option<&str>) -> Result<Parent, GroupError> {
    let mounts = relevant(parse_mounts(mountinfo));
    if mounts.is_empty() {
        return Err(GroupError::NoHierarchy);
    }
    let at_root = |path: &str| -> Vec<PathBuf> {
        let path = path.trim_matches('/');
        mounts.iter().map(|mount| mount.point.join(path)).collect()
    };
    if let Some(path) = cgroup_parent {
        if Path::new(path)
            .components()
            .any(|c| c == std::path::Component::ParentDir)
            || path.trim_matches('/').is_empty()
        {
            let tried = format!("at `{path}`, which is no path below the root group");
            return Err(GroupError::NotPermitted { tried });
        }
        return prepare(&mounts, &at_root(path)).map_err(|why| GroupError::NotPermitted {
            tried: format!("in `{path}` ({why})"),
        });
    }
    let first = match prepare(&mounts, &at_root(PARENT)) {
        Ok(parent) => return Ok(parent),
        Err(why) => why,
    };
    let own: Vec<PathBuf> = mounts.iter().filter_map(|mount| own_group(mount, own)).collect();
    let second = if own.len() == mounts.len() {
        match beside_agent(&mounts, &own) {
            Ok(parent) => return Ok(parent),
            Err(why) => why.to_string(),
        }
    } else {
        "it is not below a mounted hierarchy".to_owned()
    };
    let tried = format!("in the root group ({first}) or in the agent's own ({second})");
    Err(GroupError::NotPermitted { tried })
}

/// The delegated group: its processes must leave it before v2 gives controllers to the groups below.
fn beside_agent(mounts: &[Mount], own: &[PathBuf]) -> Result<Parent, GroupError> {
    for (mount, dir) in mounts.iter().zip(own) {
        check_writable(dir)?;
        // A restarted agent, or its unit's next start, may be in the leaf already.
        if mount.version == Version::V2 && !dir.ends_with(LEAF) {
            let leaf = dir.join(LEAF);
            if !leaf.is_dir() {
                fs::create_dir(&leaf).map_err(files::io_error("create", &leaf))?;
            }
            for pid in files::processes_in(dir)? {
                files::write(&leaf.join(PROCS), &pid.to_string())?;
            }
        }
    }
    let parent_of = |(mount, dir): (&Mount, &PathBuf)| {
        let in_leaf = mount.version == Version::V2 && dir.ends_with(LEAF);
        let above = if in_leaf { dir.parent().unwrap_or(dir) } else { dir };
        above.join(PARENT)
    };
    let parents: Vec<PathBuf> = mounts.iter().zip(own).map(parent_of).collect();
    prepare(mounts, &parents)
}

/// Makes the parent's groups and gives them the controllers.
fn prepare(mounts: &[Mount], parents: &[PathBuf]) -> Result<Parent, GroupError> {
    let mut hierarchies = Vec::new();
    for (mount, dir) in mounts.iter().zip(parents) {
        fs::create_dir_all(dir).map_err(files::io_error("create", dir))?;
        check_writable(dir)?;
        let controllers = match mount.version {
            Version::V1 => {
                // Kernels before 5.11 sum up what is below only where this is set, and only before there is any.
                let _ = files::write(&dir.join("memory.use_hierarchy"), "1");
                mount.controllers.clone()
            }
            Version::V2 => delegate_down(&mount.point, dir)?,
        };
        hierarchies.push(Hierarchy {
            version: mount.version,
            controllers,
            dir: dir.clone(),
        });
    }
    let wanted: &[&str] = match mounts.first().map(|m| m.version) {
        Some(Version::V2) => &CONTROLLERS_V2,
        _ => &CONTROLLERS,
    };
    let missing = wanted.iter().copied().filter(|c| !hierarchies.iter().any(|h| h.has(c)));
    Ok(Parent {
        missing: missing.collect(),
        hierarchies,
    })
}

/// Enables our controllers from the top of the hierarchy down to `dir`; which of them the groups below `dir` have then.
/// One that a group above does not give is left out: it is reported as missing and nothing else fails.
fn delegate_down(point: &Path, dir: &Path) -> Result<Vec<String>, GroupError> {
    let mut chain: Vec<&Path> = dir.ancestors().take_while(|d| d.starts_with(point)).collect();
    chain.reverse();
    for group in &chain {
        let enabled = words(&group.join(files::SUBTREE_CONTROL))?;
        let available = words(&group.join("cgroup.controllers"))?;
        let lacking = CONTROLLERS_V2.iter().filter(|c| {
            let named = |list: &[String]| list.iter().any(|other| other == *c);
            named(&available) && !named(&enabled)
        });
        let order: Vec<String> = lacking.map(|c| format!("+{c}")).collect();
        let control = group.join(files::SUBTREE_CONTROL);
        // All of them or none: if the kernel refuses one, the others are still to be had.
        if !order.is_empty() && files::write(&control, &order.join(" ")).is_err() {
            for one in order {
                let _ = files::write(&control, &one);
            }
        }
    }
    let given = words(&dir.join(files::SUBTREE_CONTROL))?;
    Ok(given
        .into_iter()
        .filter(|c| CONTROLLERS_V2.contains(&c.as_str()))
        .collect())
}

pub(super) fn words(path: &Path) -> Result<Vec<String>, GroupError> {
    let text = files::read(path)?.unwrap_or_default();
    Ok(text
        .split_ascii_whitespace()
        .map(|word| word.trim_start_matches('+').to_owned())
        .collect())
}

fn check_writable(dir: &Path) -> Result<(), GroupError> {
    for path in [dir.to_owned(), dir.join(PROCS)] {
        rustix::fs::access(&path, Access::WRITE_OK)
            .map_err(|errno| files::io_error("write to", &path)(errno.into()))?;
    }
    Ok(())
}

/// v1 where it accounts anything of ours (then v2 beside it has none of it), else v2.
fn relevant(mounts: Vec<Mount>) -> Vec<Mount> {
    let (v1, v2): (Vec<Mount>, Vec<Mount>) = mounts.into_iter().partition(|m| m.version == Version::V1);
    let mut chosen: Vec<Mount> = Vec::new();
    for mut mount in v1 {
        mount.controllers.retain(|c| CONTROLLERS.contains(&c.as_str()));
        // The same hierarchy may be mounted more than once.
        let known = chosen.iter().any(|other| other.controllers == mount.controllers);
        if !mount.controllers.is_empty() && !known {
            chosen.push(mount);
        }
    }
    if chosen.is_empty() {
        chosen.extend(v2.into_iter().next());
    }
    chosen
}

fn parse_mounts(mountinfo: &str) -> Vec<Mount> {
    mountinfo.lines().filter_map(parse_mount).collect()
}

/// `36 35 98:0 /root /point rw,noatime master:1 - cgroup cgroup rw,memory`
fn parse_mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (root, point) = (unescape(left.next()?), unescape(left.next()?));
    let mut right = right.split(' ');
    let version = match right.next()? {
        "cgroup" => Version::V1,
        "cgroup2" => Version::V2,
        _ => return None,
    };
    let options = right.nth(1)?.split(',').map(str::to_owned).collect();
    Some(Mount {
        version,
        controllers: options,
        root,
        point,
    })
}

/// Blanks and the like are written as `\040`.
fn unescape(text: &str) -> PathBuf {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        match after.get(..3).and_then(|octal| u8::from_str_radix(octal, 8).ok()) {
            Some(byte) => {
                out.push(char::from(byte));
                rest = &after[3..];
            }
            None => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    PathBuf::from(out)
}

/// Where this process's own group in a hierarchy is seen, by a line `4:memory:/path` of `/proc/self/cgroup`.
fn own_group(mount: &Mount, own: &str) -> Option<PathBuf> {
    let path = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let fits = match mount.version {
            Version::V1 => controllers.split(',').any(|c| mount.controllers.iter().any(|m| m == c)),
            Version::V2 => id == "0" && controllers.is_empty(),
        };
        fits.then_some(path)
    })?;
    let below = Path::new(path).strip_prefix(&mount.root).ok()?;
    Some(mount.point.join(below))
}
