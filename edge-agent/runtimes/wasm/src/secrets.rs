//! Secrets as files: on a tmpfs that only this process sees, or, without the right to mount one, in the state folder if
//! that lies in memory itself. Never on a disk.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cnova_ral::{Mount, SECRETS_FOLDER, Secrets, is_in_memory};

/// Room beside the values: a page for each file and folder, generously.
const ROOM_BYTES: usize = 1 << 20;

/// Why secrets cannot be files.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    #[error("cannot {action} {path}: {source}")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "secrets as files need a place in memory: this process may not mount one ({source}), and {path} is not on a \
         tmpfs. Run the agent as root, or with its run_dir below /run"
    )]
    NotInMemory { path: PathBuf, source: io::Error },
}

fn fail(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PlaceError {
    let path = path.to_owned();
    move |source| PlaceError::Io { action, path, source }
}

/// The files, for as long as this lives.
#[derive(Debug, Default)]
pub(crate) struct Placed {
    mounts: Vec<Mount>,
    /// Where they would be seen by others of the same user, and are to be removed.
    visible: Option<PathBuf>,
}

impl Placed {
    /// What the workload is to see.
    pub(crate) fn mounts(&self) -> &[Mount] {
        &self.mounts
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        if let Some(path) = &self.visible {
            // The folder is emptied by the next start, too.
            let _ = fs::remove_dir_all(path);
        }
    }
}

/// Puts secrets that are files where the workload can be shown them. Call it before the first thread is started.
pub(crate) fn place(dir: &Path, secrets: &Secrets) -> Result<Placed, PlaceError> {
    let root = dir.join(SECRETS_FOLDER);
    match fs::remove_dir_all(&root) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail("empty", &root)(error)),
        _ => {}
    }
    if secrets.files().next().is_none() {
        return Ok(Placed::default());
    }
    make(&root)?;
    let bytes: usize = secrets.files().map(|(_, value)| value.len()).sum();
    let mut placed = Placed::default();
    if let Err(source) = mount_private(&root, bytes + ROOM_BYTES) {
        if !is_in_memory(&root).map_err(fail("look at", &root))? {
            let _ = fs::remove_dir(&root);
            return Err(PlaceError::NotInMemory { path: root, source });
        }
        placed.visible = Some(root.clone());
    }
    for (guest, value) in secrets.files() {
        let path = root.join(guest.strip_prefix("/").unwrap_or(guest));
        if let Some(parent) = path.parent() {
            make(parent)?;
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(&path);
        file.and_then(|mut file| file.write_all(value))
            .map_err(fail("write", &path))?;
    }
    let guests = folders(secrets);
    let mount = |guest: PathBuf| Mount {
        host: root.join(guest.strip_prefix("/").unwrap_or(&guest)),
        guest,
        writable: false,
    };
    placed.mounts = guests.into_iter().map(mount).collect();
    Ok(placed)
}

/// The outermost folders that hold secrets: Wasm can only be given whole folders.
fn folders(secrets: &Secrets) -> BTreeSet<PathBuf> {
    let all: BTreeSet<PathBuf> = secrets
        .files()
        .filter_map(|(path, _)| path.parent().map(Path::to_owned))
        .collect();
    let is_outermost = |p: &&PathBuf| !p.ancestors().skip(1).any(|a| all.contains(a));
    all.iter().filter(is_outermost).cloned().collect()
}

fn make(path: &Path) -> Result<(), PlaceError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(fail("create", path))
}

/// A tmpfs that is seen by this thread and those it starts, and goes with the last of them. What the node mounts and
/// unmounts elsewhere still arrives.
fn mount_private(root: &Path, bytes: usize) -> io::Result<()> {
    // SAFETY: a system call with a number; the thread leaves a namespace that nothing here depends on.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return Err(io::Error::last_os_error());
    }
    call_mount(None, Path::new("/"), libc::MS_SLAVE | libc::MS_REC, "")?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    let options = format!("mode=700,size={bytes}");
    // Since Linux 6.4 a tmpfs can be kept out of swap.
    call_mount(Some(c"tmpfs"), root, flags, &format!("{options},noswap"))
        .or_else(|_| call_mount(Some(c"tmpfs"), root, flags, &options))
}

fn call_mount(kind: Option<&CStr>, target: &Path, flags: libc::c_ulong, options: &str) -> io::Result<()> {
    let target = CString::new(target.as_os_str().as_bytes())?;
    let options = CString::new(options)?;
    let kind = kind.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: all pointers are null, where the call allows that, or to C strings that outlive it.
    match unsafe { libc::mount(kind, target.as_ptr(), kind, flags, options.as_ptr().cast()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cnova_ral::SecretSlot;

    #[test]
    fn only_the_outermost_folders_are_given() {
        let file = |path: &str| (SecretSlot::File(path.into()), b"x".to_vec().into());
        let secrets = Secrets::new(vec![file("/run/s/a"), file("/run/s/deep/b"), file("/etc/c")]).unwrap();
        let folders: Vec<PathBuf> = folders(&secrets).into_iter().collect();
        assert_eq!(folders, ["/etc", "/run/s"].map(PathBuf::from));
    }
}
