//! Who a container's process is: numbers as they are, names by the image's own `/etc/passwd` and `/etc/group`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use cnova_oci::IDS_PER_CONTAINER;
use rustix::fs::{Mode, OFlags, ResolveFlags};

/// Longest file of users or groups that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Ids inside the container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Further groups, for a user given by name.
    pub(crate) groups: Vec<u32>,
}

/// Why there is no such user.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UserError {
    #[error("user `{0}`: the image's /etc/passwd has no such name")]
    NoUser(String),
    #[error("user `{0}`: the image's /etc/group has no such group")]
    NoGroup(String),
    #[error("user `{0}`: ids are below {IDS_PER_CONTAINER}")]
    Range(String),
}

/// `UID`, `UID:GID`, `NAME` or `NAME:GROUP`; empty is root.
pub(crate) fn resolve(root: &Path, text: &str) -> Result<User, UserError> {
    if text.is_empty() {
        return Ok(User::default());
    }
    let passwd = read_inside(root, "etc/passwd");
    let group = read_inside(root, "etc/group");
    resolve_in(text, &passwd, &group)
}

fn resolve_in(text: &str, passwd: &str, group: &str) -> Result<User, UserError> {
    let (user, wanted_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let entries = || passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let entry = match user.parse::<u32>() {
        Ok(_) => entries().find(|fields| fields.get(2) == Some(&user)),
        Err(_) => entries().find(|fields| fields[0] == user),
    };
    let number = |fields: &[&str], at: usize| fields.get(at).and_then(|field| field.parse().ok());
    let uid = match (user.parse(), &entry) {
        (Ok(uid), _) => uid,
        (_, Some(fields)) => number(fields, 2).ok_or_else(|| UserError::NoUser(text.into()))?,
        (_, None) => return Err(UserError::NoUser(text.into())),
    };
    let mut groups = Vec::new();
    let gid = match wanted_group {
        Some(wanted) => group_id(wanted, group).ok_or_else(|| UserError::NoGroup(text.into()))?,
        None => {
            if let Some(name) = entry.as_ref().map(|fields| fields[0]) {
                groups = groups_of(name, group);
            }
            entry.as_ref().and_then(|fields| number(fields, 3)).unwrap_or(0)
        }
    };
    let ids = groups.iter().chain([&uid, &gid]);
    if ids.copied().any(|id: u32| id >= IDS_PER_CONTAINER) {
        return Err(UserError::Range(text.into()));
    }
    Ok(User { uid, gid, groups })
}

fn group_id(wanted: &str, group: &str) -> Option<u32> {
    wanted.parse().ok().or_else(|| {
        let mut entries = group.lines().map(|line| line.split(':').collect::<Vec<_>>());
        entries.find(|fields| fields[0] == wanted)?.get(2)?.parse().ok()
    })
}

fn groups_of(name: &str, group: &str) -> Vec<u32> {
    let member = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        let is_member = fields.get(3)?.split(',').any(|member| member == name);
        is_member.then(|| fields.get(2)?.parse().ok()).flatten()
    };
    group.lines().filter_map(member).collect()
}

/// Links in the image are followed as the container would follow them; what cannot be read is empty.
fn read_inside(root: &Path, path: &str) -> String {
    let read = || -> std::io::Result<String> {
        let root = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
        let mut bytes = Vec::new();
        File::from(file).take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_resolved_in_the_image() {
        let passwd = "root:x:0:0::/root:/bin/sh\nredis:x:999:998::/:/bin/sh\nbroken\nfar:x:70000:1::/:\n";
        let group = "root:x:0:\nredis:x:998:\nvideo:x:44:redis,other\n";
        let resolved = |text: &str| resolve_in(text, passwd, group).map(|u| (u.uid, u.gid, u.groups));
        assert_eq!(resolved("redis").unwrap(), (999, 998, vec![44]));
        assert_eq!(resolved("999").unwrap(), (999, 998, vec![44]));
        assert_eq!(resolved("5").unwrap(), (5, 0, vec![]));
        assert_eq!(resolved("5:7").unwrap(), (5, 7, vec![]));
        assert_eq!(resolved("redis:video").unwrap(), (999, 44, vec![]));
        for (wrong, why) in [
            ("nobody", "no such name"),
            ("redis:none", "no such group"),
            ("70000", "65536"),
            ("far", "65536"),
        ] {
            assert!(resolved(wrong).unwrap_err().to_string().contains(why), "{wrong}");
        }
    }
}
