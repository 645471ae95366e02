//! An installed OCI runtime, driven by its command line: for `isolation: sandbox` and `vm`.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::MountFlags;

use crate::cgroup::WorkloadGroup;
use crate::rootfs::{self, RootfsError, TREE};

/// Longest part of the runtime's complaints that is passed on, in bytes.
const LOG_BYTES_MAX: u64 = 4 << 10;
/// Where it is looked for besides PATH.
const USUAL: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why the runtime did not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExternalError {
    #[error(
        "isolation `{kind}` needs one of {names} on this node: install it, or name another in /etc/cnova/container.json"
    )]
    Absent { kind: &'static str, names: String },
    #[error("{program} {verb}: {source}")]
    Io {
        program: PathBuf,
        verb: &'static str,
        source: io::Error,
    },
    #[error("{program} {verb} failed: {complaint}")]
    Failed {
        program: PathBuf,
        verb: &'static str,
        complaint: String,
    },
}

/// The first of these that is installed.
pub(crate) fn find(names: &[String]) -> Option<PathBuf> {
    let paths = std::env::var("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = paths.split(':').chain(USUAL.split(':')).map(PathBuf::from).collect();
    let runnable =
        |path: &PathBuf| fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    names.iter().find_map(|name| match name.contains('/') {
        true => Some(PathBuf::from(name)).filter(runnable),
        false => dirs.iter().map(|dir| dir.join(name)).find(runnable),
    })
}

/// A container that such a runtime has made.
pub(crate) struct External {
    program: PathBuf,
    id: String,
}

impl External {
    pub(crate) fn new(names: &[String], kind: &'static str, id: &str) -> Result<External, ExternalError> {
        let program = find(names).ok_or_else(|| ExternalError::Absent {
            kind,
            names: names
                .iter()
                .map(|name| format!("`{name}`"))
                .collect::<Vec<_>>()
                .join(", "),
        })?;
        Ok(External {
            program,
            id: id.to_owned(),
        })
    }

    /// Makes the container of the bundle, without letting its program run; the pid of its first process.
    pub(crate) fn create(
        &self,
        stdout: impl Into<Stdio>,
        stderr: impl Into<Stdio>,
    ) -> Result<libc::pid_t, ExternalError> {
        let pid_file = Path::new(TREE).join("state/pid");
        let bundle = Path::new(TREE).join("bundle");
        let mut command = self.command();
        command
            .args(["create", "--bundle"])
            .arg(&bundle)
            .arg("--pid-file")
            .arg(&pid_file);
        command.arg(&self.id).stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        self.finish("create", &mut command)?;
        let read = fs::read_to_string(&pid_file).and_then(|text| text.trim().parse().map_err(io::Error::other));
        read.map_err(|source| self.io("create", source))
    }

    /// Lets the program run.
    pub(crate) fn start(&self) -> Result<(), ExternalError> {
        self.run("start", &[])
    }

    /// Sends a signal by its number.
    pub(crate) fn kill(&self, signal: i32) -> Result<(), ExternalError> {
        self.run("kill", &[&signal.to_string()])
    }

    /// The command that runs another one in the container.
    pub(crate) fn exec(&self, words: &[String]) -> Command {
        let mut command = self.command();
        command.args(["exec", &self.id]).args(words);
        quiet(&mut command);
        command
    }

    fn run(&self, verb: &'static str, more: &[&str]) -> Result<(), ExternalError> {
        let mut command = self.command();
        command.arg(verb).arg(&self.id).args(more);
        self.finish(verb, quiet(&mut command))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear().env("PATH", USUAL).current_dir("/");
        command.arg("--root").arg(Path::new(TREE).join("state/oci"));
        command.arg("--log").arg(log_path());
        command
    }

    fn finish(&self, verb: &'static str, command: &mut Command) -> Result<(), ExternalError> {
        let _ = fs::remove_file(log_path());
        let status = command.status().map_err(|source| self.io(verb, source))?;
        if status.success() {
            return Ok(());
        }
        let mut complaint = String::new();
        if let Ok(log) = fs::File::open(log_path()) {
            let _ = log.take(LOG_BYTES_MAX).read_to_string(&mut complaint);
        }
        Err(ExternalError::Failed {
            program: self.program.clone(),
            verb,
            complaint: format!("{status} {}", complaint.trim()),
        })
    }

    fn io(&self, verb: &'static str, source: io::Error) -> ExternalError {
        let program = self.program.clone();
        ExternalError::Io { program, verb, source }
    }
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}

fn log_path() -> PathBuf {
    Path::new(TREE).join("state/oci.log")
}

/// What the runtime sees of control groups: the container's own one as if it were the root, so that whatever it makes
/// is below the limits. The keeper has entered the group before.
pub(crate) fn confine_groups(group: &WorkloadGroup) -> Result<(), RootfsError> {
    let root = Path::new("/sys/fs/cgroup");
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let controllers = group.controllers();
    // On v2 too: the kernel does not mount a file system over itself.
    rootfs::mount("tmpfs", root, "tmpfs", plain, "mode=755,size=64k")?;
    if controllers.is_empty() {
        return rootfs::mount("cgroup2", root, "cgroup2", plain, "");
    }
    for names in controllers {
        // A hierarchy without controllers has only a name.
        let (folder, options) = match names.strip_prefix("name=") {
            Some(name) => (name.to_owned(), format!("none,{names}")),
            None => (names.clone(), names),
        };
        let dir = root.join(folder);
        fs::create_dir(&dir).map_err(rootfs::at("create", &dir))?;
        rootfs::mount("cgroup", &dir, "cgroup", plain, &options)?;
    }
    Ok(())
}
