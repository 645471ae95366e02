//! Bounded reads below a root folder.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

/// Bytes of one attribute in sysfs; the kernel's own limit is a page.
pub(crate) const ATTRIBUTE_BYTES: usize = 4096;
/// Bytes of one file in procfs. `mountinfo` grows by a line with each mount of each container.
pub(crate) const PROC_BYTES: usize = 1 << 20;
/// Entries of one folder. The rest is not looked at.
pub(crate) const FOLDER_ENTRIES: usize = 4096;
/// Symbolic links on the way to one file, as in the kernel.
const LINKS: usize = 40;
/// Components of a path after its links were followed.
const COMPONENTS: usize = 256;

/// A file system seen from a root folder. All paths that go in and come out are absolute as if the root were `/`.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    root: PathBuf,
}

/// What a path leads to, without opening it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A character device, by major and minor number.
    Char(u32, u32),
    /// A block device, by major and minor number.
    Block(u32, u32),
    Folder,
    Other,
}

impl Tree {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Where a path lies on the machine that runs this.
    pub(crate) fn real(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Follows all links, as a process would for which the root is `/`: no link leads out of it.
    pub(crate) fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        let mut todo: Vec<PathBuf> = components(path)?;
        let mut done = PathBuf::from("/");
        let mut links = 0;
        while let Some(part) = todo.pop() {
            if part.as_os_str() == ".." {
                done.pop();
                continue;
            }
            let next = done.join(&part);
            let meta = std::fs::symlink_metadata(self.real(&next))?;
            if !meta.file_type().is_symlink() {
                done = next;
                continue;
            }
            links += 1;
            if links > LINKS {
                return Err(io::Error::from_raw_os_error(rustix::io::Errno::LOOP.raw_os_error()));
            }
            let target = std::fs::read_link(self.real(&next))?;
            if target.is_absolute() {
                done = PathBuf::from("/");
            }
            todo.extend(components(&target)?);
            if todo.len() > COMPONENTS {
                return Err(io::Error::from_raw_os_error(
                    rustix::io::Errno::NAMETOOLONG.raw_os_error(),
                ));
            }
        }
        Ok(done)
    }

    /// What lies at a path without links.
    pub(crate) fn kind(&self, resolved: &Path) -> io::Result<Kind> {
        let meta = std::fs::symlink_metadata(self.real(resolved))?;
        let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        let kind = meta.file_type();
        Ok(if kind.is_char_device() {
            Kind::Char(major, minor)
        } else if kind.is_block_device() {
            Kind::Block(major, minor)
        } else if kind.is_dir() {
            Kind::Folder
        } else {
            Kind::Other
        })
    }

    /// A whole text file of at most `limit` bytes, without the white space at its ends.
    pub(crate) fn text(&self, path: &Path, limit: usize) -> io::Result<String> {
        let resolved = self.resolve(path)?;
        let file = self.open_plain(&resolved)?;
        let mut bytes = Vec::new();
        file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > limit {
            let message = format!("{} holds more than {limit} bytes", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// An attribute of sysfs; nothing if it is absent, unreadable or too long. Sensors answer with errors while their
    /// device sleeps, and that is no reason to fail.
    pub(crate) fn attribute(&self, folder: &Path, name: &str) -> Option<String> {
        self.text(&folder.join(name), ATTRIBUTE_BYTES).ok()
    }

    /// An attribute that holds a decimal number.
    pub(crate) fn number<T: std::str::FromStr>(&self, folder: &Path, name: &str) -> Option<T> {
        self.attribute(folder, name)?.parse().ok()
    }

    /// The names in a folder, in the order of their bytes; empty if there is none.
    pub(crate) fn names(&self, folder: &Path) -> Vec<String> {
        let Ok(resolved) = self.resolve(folder) else {
            return Vec::new();
        };
        let Ok(entries) = std::fs::read_dir(self.real(&resolved)) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries
            .take(FOLDER_ENTRIES)
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort_unstable();
        names
    }

    /// The last component of where a link leads, for example the name of a driver.
    pub(crate) fn link_name(&self, folder: &Path, name: &str) -> Option<String> {
        let link = self.resolve(folder).ok()?.join(name);
        let target = std::fs::read_link(self.real(&link)).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }

    /// Opens a regular file only: another kind could block or have an effect.
    fn open_plain(&self, resolved: &Path) -> io::Result<File> {
        let real = self.real(resolved);
        if !std::fs::symlink_metadata(&real)?.is_file() {
            let message = format!("{} is not a regular file", resolved.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::NOFOLLOW;
        OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(real)
    }
}

/// The components of a path, last first.
fn components(path: &Path) -> io::Result<Vec<PathBuf>> {
    if path.components().count() > COMPONENTS {
        return Err(io::Error::from_raw_os_error(
            rustix::io::Errno::NAMETOOLONG.raw_os_error(),
        ));
    }
    let parts = path.components().rev().filter_map(|part| match part {
        Component::Normal(name) => Some(PathBuf::from(name)),
        Component::ParentDir => Some(PathBuf::from("..")),
        _ => None,
    });
    Ok(parts.collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_stay_in_the_root_and_end() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::new(dir.path());
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join("a/b/file"), " text\n").unwrap();
        symlink("/a/b", dir.path().join("absolute")).unwrap();
        symlink("../../../../../a", dir.path().join("a/climbs")).unwrap();
        symlink("circle", dir.path().join("circle")).unwrap();
        let resolved = |path: &str| tree.resolve(Path::new(path)).ok();
        assert_eq!(resolved("/absolute/file"), Some("/a/b/file".into()));
        assert_eq!(resolved("/a/climbs/b/../b/file"), Some("/a/b/file".into()));
        assert_eq!(resolved("/circle"), None);
        assert_eq!(resolved(&"/a/..".repeat(COMPONENTS)), None);
        assert_eq!(tree.text(Path::new("/absolute/file"), 10).unwrap(), "text");
        assert!(tree.text(Path::new("/absolute/file"), 5).is_err());
    }

    #[test]
    fn a_pipe_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert_eq!(Tree::new(dir.path()).attribute(Path::new("/"), "pipe"), None);
    }

    #[test]
    fn bytes_that_are_no_text_are_read() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("odd"), [0xff, 0, b'x']).unwrap();
        let tree = Tree::new(dir.path());
        assert!(tree.attribute(Path::new("/"), "odd").is_some_and(|t| t.ends_with('x')));
        assert_eq!(tree.number::<u8>(Path::new("/"), "odd"), None);
    }
}
