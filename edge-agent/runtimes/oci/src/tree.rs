//! A folder that archives are unpacked into. Every name is looked up below it, and never through a symbolic link.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

/// Access to folders that must not leave the tree. `NO_XDEV` because a freshly made folder has no mounts in it.
const INSIDE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
/// Mode of folders that an archive uses without naming them.
const IMPLIED_FOLDER: Mode = Mode::from_raw_mode(0o755);

/// The folder, and the folder below it that was used last.
pub(crate) struct Tree {
    root: OwnedFd,
    last: Option<(PathBuf, OwnedFd)>,
    shift: u32,
}

/// A relative path of plain names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InnerPath {
    /// The folder; empty is the root.
    pub(crate) parent: PathBuf,
    /// The last name; empty if the path is the root itself.
    pub(crate) name: Vec<u8>,
}

impl InnerPath {
    /// Nothing if a `..` or an absolute path tries to lead out.
    pub(crate) fn of(path: &Path) -> Option<InnerPath> {
        let mut parent = PathBuf::new();
        for component in path.components() {
            match component {
                Component::CurDir => {}
                Component::Normal(name) => parent.push(name),
                Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
            }
        }
        let name = parent
            .file_name()
            .map(|name| name.as_bytes().to_vec())
            .unwrap_or_default();
        parent.pop();
        Some(InnerPath { parent, name })
    }
}

/// Who owns an entry and what they may do with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attributes {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u32,
    pub(crate) mtime: i64,
}

impl Tree {
    pub(crate) fn open(root: &Path, shift: u32) -> io::Result<Tree> {
        let root = rustix::fs::open(
            root,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        Ok(Tree {
            root,
            last: None,
            shift,
        })
    }

    /// Forces everything to the disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.root)?)
    }

    pub(crate) fn folder(&mut self, path: &InnerPath, attributes: Attributes) -> io::Result<()> {
        if path.name.is_empty() {
            return self.set_attributes_of_fd(attributes);
        }
        let name = path.name.clone();
        let shift = self.shift;
        let parent = self.parent(&path.parent)?;
        let name = OsStr::from_bytes(&name);
        match rustix::fs::mkdirat(parent, name, IMPLIED_FOLDER) {
            Err(Errno::EXIST) if is_folder(parent, name)? => {}
            Err(Errno::EXIST) => {
                rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
                rustix::fs::mkdirat(parent, name, IMPLIED_FOLDER)?;
            }
            other => other?,
        }
        own(parent, name, attributes, shift)?;
        rustix::fs::chmodat(parent, name, Mode::from_raw_mode(attributes.mode), AtFlags::empty())?;
        Ok(())
    }

    /// An empty file, open for writing. Its attributes come with [`Tree::finish_file`].
    pub(crate) fn file(&mut self, path: &InnerPath) -> io::Result<File> {
        let parent = self.cleared(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(parent, OsStr::from_bytes(&path.name), flags, Mode::from_raw_mode(0o600))?;
        Ok(File::from(fd))
    }

    /// The owner first: changing it would clear the setuid bits again.
    pub(crate) fn finish_file(&self, file: &File, attributes: Attributes) -> io::Result<()> {
        let (uid, gid) = owner(attributes, self.shift);
        rustix::fs::fchown(file, Some(uid), Some(gid))?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(attributes.mode))?;
        rustix::fs::futimens(file, &times(attributes.mtime))?;
        Ok(())
    }

    pub(crate) fn symlink(&mut self, path: &InnerPath, target: &Path, attributes: Attributes) -> io::Result<()> {
        let shift = self.shift;
        let parent = self.cleared(path)?;
        let name = OsStr::from_bytes(&path.name);
        rustix::fs::symlinkat(target, parent, name)?;
        own(parent, name, attributes, shift)
    }

    pub(crate) fn fifo(&mut self, path: &InnerPath, attributes: Attributes) -> io::Result<()> {
        let shift = self.shift;
        let parent = self.cleared(path)?;
        let name = OsStr::from_bytes(&path.name);
        rustix::fs::mknodat(
            parent,
            name,
            FileType::Fifo,
            Mode::from_raw_mode(attributes.mode & 0o777),
            0,
        )?;
        own(parent, name, attributes, shift)
    }

    /// A second name of a regular file in this very tree.
    pub(crate) fn hard_link(&mut self, path: &InnerPath, source: &InnerPath) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let full = source.parent.join(OsStr::from_bytes(&source.name));
        let opened = rustix::fs::openat2(&self.root, &full, flags, Mode::empty(), INSIDE)?;
        if FileType::from_raw_mode(rustix::fs::fstat(&opened)?.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a hard link to what is no regular file",
            ));
        }
        let proc = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&opened));
        let parent = self.cleared(path)?;
        rustix::fs::linkat(
            rustix::fs::CWD,
            proc,
            parent,
            OsStr::from_bytes(&path.name),
            AtFlags::SYMLINK_FOLLOW,
        )?;
        Ok(())
    }

    /// Hides what lower layers have under this name: overlayfs reads a character device 0:0 so.
    pub(crate) fn whiteout(&mut self, path: &InnerPath) -> io::Result<()> {
        let parent = self.cleared(path)?;
        let name = OsStr::from_bytes(&path.name);
        rustix::fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0)?;
        Ok(())
    }

    /// Hides all that lower layers have in this folder.
    pub(crate) fn opaque(&mut self, folder: &Path) -> io::Result<()> {
        let path = self.parent(folder)?;
        // An attribute cannot be set through an O_PATH descriptor.
        let open = rustix::fs::openat(
            path,
            ".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        rustix::fs::fsetxattr(&open, "trusted.overlay.opaque", b"y", XattrFlags::empty())?;
        Ok(())
    }

    fn set_attributes_of_fd(&self, attributes: Attributes) -> io::Result<()> {
        let (uid, gid) = owner(attributes, self.shift);
        rustix::fs::fchown(&self.root, Some(uid), Some(gid))?;
        rustix::fs::fchmod(&self.root, Mode::from_raw_mode(attributes.mode))?;
        Ok(())
    }

    /// The parent folder of a path, with nothing under the path's name.
    fn cleared(&mut self, path: &InnerPath) -> io::Result<BorrowedFd<'_>> {
        if path.name.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the root can only be a folder",
            ));
        }
        let name = OsStr::from_bytes(&path.name);
        let parent = self.parent(&path.parent)?;
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(parent),
            // Only an empty folder gives way to something else in one and the same layer.
            Err(Errno::ISDIR) => {
                rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?;
                Ok(parent)
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Opens a folder below the root, making what is missing on the way.
    fn parent(&mut self, path: &Path) -> io::Result<BorrowedFd<'_>> {
        if path.as_os_str().is_empty() {
            return Ok(self.root.as_fd());
        }
        if self.last.as_ref().is_none_or(|(last, _)| last != path) {
            let opened = match self.open_inside(path) {
                Err(Errno::NOENT) => self.make_inside(path)?,
                other => other?,
            };
            self.last = Some((path.to_owned(), opened));
        }
        match &self.last {
            Some((_, opened)) => Ok(opened.as_fd()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn open_inside(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat2(&self.root, path, flags, Mode::empty(), INSIDE)
    }

    fn make_inside(&self, path: &Path) -> io::Result<OwnedFd> {
        let attributes = Attributes {
            uid: 0,
            gid: 0,
            mode: 0o755,
            mtime: 0,
        };
        let mut so_far = PathBuf::new();
        let mut folder = self.root.try_clone()?;
        for name in path {
            so_far.push(name);
            folder = match self.open_inside(&so_far) {
                Err(Errno::NOENT) => {
                    rustix::fs::mkdirat(&folder, name, IMPLIED_FOLDER)?;
                    own(folder.as_fd(), name, attributes, self.shift)?;
                    self.open_inside(&so_far)?
                }
                other => other?,
            };
        }
        Ok(folder)
    }
}

fn is_folder(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<bool> {
    let found = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(found.st_mode) == FileType::Directory)
}

fn own(parent: BorrowedFd<'_>, name: &OsStr, attributes: Attributes, shift: u32) -> io::Result<()> {
    let (uid, gid) = owner(attributes, shift);
    rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    rustix::fs::utimensat(parent, name, &times(attributes.mtime), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

fn owner(attributes: Attributes, shift: u32) -> (Uid, Gid) {
    (
        Uid::from_raw(attributes.uid.saturating_add(shift)),
        Gid::from_raw(attributes.gid.saturating_add(shift)),
    )
}

fn times(mtime: i64) -> Timestamps {
    let at = Timespec {
        tv_sec: mtime,
        tv_nsec: 0,
    };
    Timestamps {
        last_access: at,
        last_modification: at,
    }
}
