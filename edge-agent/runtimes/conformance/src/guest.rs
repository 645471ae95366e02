//! A virtual machine with a plain Debian kernel, in which a test executable runs once more: for what this machine's own
//! kernel or its set-up cannot show, such as control groups v2 where the node has v1.
//!
//! There is no firmware, no initial RAM disk and no init system: QEMU (by emulation, so that nothing of the machine is
//! needed) boots the kernel with a disk that holds the executables, their libraries and busybox.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Set in the guest, where no test may start another guest and nothing that it needs may be missing.
pub const INSIDE: &str = "CNOVA_GUEST";
/// Which tests are to run in the guest, as words for the test executable; all of them without it.
const TESTS: &str = "CNOVA_GUEST_TESTS";
/// The folder of the kernel, if it is not the usual one.
const KERNEL_DIR: &str = "CNOVA_GUEST_KERNEL";
/// Where `scripts/guest-kernel` puts it, from the root of the repository.
const KERNEL_DIR_USUAL: &str = "target/guest-kernel";
const QEMU: &str = "qemu-system-x86_64";
const BUSYBOX: &str = "/bin/busybox";
/// Modules that the kernel needs for containers.
const MODULES: [&str; 2] = ["overlay.ko", "veth.ko"];
/// The folders that the init script, the tests and the runtimes expect.
const FOLDERS: [&str; 10] = ["proc", "sys", "dev", "tmp", "run", "etc", "bin", "root", "var", "lib"];
/// Room on the disk beyond what is put there, in MiB.
const ROOM_MIB: u64 = 512;
const MEMORY_MIB: u32 = 1024;
const CPUS: u32 = 2;
/// Longest life of a guest: emulated, on a busy machine, with a whole suite in it.
const PATIENCE: Duration = Duration::from_secs(20 * 60);
/// Between two looks at whether it has ended.
const PAUSE: Duration = Duration::from_millis(50);
/// The last line that a guest prints, with the status of what it ran.
const LAST_WORD: &str = "cnova-guest: status ";

/// The first process: mounts what a system has, runs the command and ends the machine.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
[ -c /dev/null ] || /bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox mkdir -p /dev/pts /dev/shm
/bin/busybox mount -t devpts devpts /dev/pts
/bin/busybox mount -t tmpfs tmpfs /dev/shm
/bin/busybox mount -t tmpfs tmpfs /run
/bin/busybox mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup
/bin/busybox insmod /lib/modules/overlay.ko
/bin/busybox insmod /lib/modules/veth.ko
/bin/busybox ip link set lo up
/bin/busybox hostname guest
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb
. /command
echo "cnova-guest: status $?"
/bin/busybox sync
/bin/busybox poweroff -f
"#;

/// Why there is no guest, or no result of one.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// Something that is installed separately is not; a test skips then.
    #[error("{0}")]
    Missing(String),
    /// A file of it could not be used.
    #[error("guest: cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// A program that makes it failed.
    #[error("guest: {program} failed: {complaint}")]
    Program {
        /// Which.
        program: &'static str,
        /// What it said.
        complaint: String,
    },
    /// It ended, or was ended, without a result.
    #[error("guest: {why}; it printed:\n{output}")]
    NoResult {
        /// What happened.
        why: String,
        /// Its console.
        output: String,
    },
}

/// A machine in the making.
#[derive(Debug)]
pub struct Guest {
    home: TempDir,
    kernel: PathBuf,
}

/// What the command did in the guest.
#[derive(Debug)]
pub struct GuestRun {
    /// The status of the command.
    pub status: i32,
    /// All that the guest printed.
    pub output: String,
}

/// Runs the calling test executable in a guest, all of its tests, with the programs that it uses. Nothing, and a word
/// about it, where there can be no guest, and within one.
///
/// # Panics
/// If there is no result or a test failed.
pub fn run_this_suite(programs: &[&Path]) -> Option<GuestRun> {
    if std::env::var_os(INSIDE).is_some() {
        return None;
    }
    let run = || -> Result<GuestRun, GuestError> {
        let guest = Guest::new()?;
        let suite = std::env::current_exe().map_err(io_error("find", Path::new("/proc/self/exe")))?;
        guest.install(&suite)?;
        programs.iter().try_for_each(|program| guest.install(program))?;
        let suite = suite.to_string_lossy();
        let only = std::env::var(TESTS).unwrap_or_default();
        let mut command = vec![&*suite, "--show-output", "--test-threads=2"];
        command.extend(only.split_whitespace());
        guest.run(&command, &[("RUST_BACKTRACE", "0")])
    };
    match run() {
        Ok(run) => {
            eprintln!("{}", run.output);
            assert_eq!(run.status, 0, "a test failed in the guest, whose output is above");
            Some(run)
        }
        Err(GuestError::Missing(why)) => {
            eprintln!("skipped: {why}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

impl Guest {
    /// A machine with busybox and nothing else.
    ///
    /// # Errors
    /// [`GuestError::Missing`], with what to install, where QEMU, the kernel or a tool is not there.
    pub fn new() -> Result<Guest, GuestError> {
        if cfg!(not(target_arch = "x86_64")) {
            return Err(GuestError::Missing("the guest is an x86_64 machine".into()));
        }
        let usual = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../..")
            .join(KERNEL_DIR_USUAL);
        let kernel = std::env::var_os(KERNEL_DIR).map_or(usual, PathBuf::from);
        for file in ["vmlinuz", MODULES[0], MODULES[1]] {
            if !kernel.join(file).is_file() {
                let path = kernel.join(file);
                let why = format!("{} is not there: run `scripts/guest-kernel`", path.display());
                return Err(GuestError::Missing(why));
            }
        }
        for (program, package) in [
            (QEMU, "qemu-system-x86"),
            ("mkfs.ext4", "e2fsprogs"),
            ("ldd", "libc-bin"),
            (BUSYBOX, "busybox-static"),
        ] {
            if find(program).is_none() {
                return Err(GuestError::Missing(format!("{program} is not installed ({package})")));
            }
        }
        let home = tempfile::tempdir().map_err(io_error("make a folder in", &std::env::temp_dir()))?;
        let guest = Guest { home, kernel };
        guest.furnish()?;
        Ok(guest)
    }

    /// Puts an executable of this machine and the libraries that it asks for at the same places in the guest.
    ///
    /// # Errors
    /// If one cannot be read or written.
    pub fn install(&self, program: &Path) -> Result<(), GuestError> {
        let mut files = BTreeSet::from([program.to_owned()]);
        let output = Command::new("ldd").arg(program).env("LC_ALL", "C").output();
        let output = output.map_err(io_error("look into", program))?;
        // A static one has none, and `ldd` says so with a failure.
        for word in String::from_utf8_lossy(&output.stdout).split_whitespace() {
            if word.starts_with('/') && Path::new(word).is_file() {
                files.insert(PathBuf::from(word));
            }
        }
        files.iter().try_for_each(|file| self.copy(file, file))
    }

    /// Boots, runs the command with these arguments and ends the machine.
    ///
    /// # Errors
    /// If it does not get so far as to say how the command ended.
    pub fn run(self, command: &[&str], variables: &[(&str, &str)]) -> Result<GuestRun, GuestError> {
        let mut script = format!("export {INSIDE}=1\n");
        for (name, value) in variables {
            script += &format!("export {name}={}\n", quoted(value));
        }
        let words: Vec<String> = command.iter().map(|word| quoted(word)).collect();
        script += &words.join(" ");
        script.push('\n');
        let path = self.root().join("command");
        fs::write(&path, script).map_err(io_error("write", &path))?;
        let disk = self.make_disk()?;
        let output = self.boot(&disk)?;
        let last = output.lines().find_map(|line| line.trim().strip_prefix(LAST_WORD));
        match last.and_then(|status| status.trim().parse().ok()) {
            Some(status) => Ok(GuestRun { status, output }),
            None => Err(GuestError::NoResult {
                why: "it ended without a last word".into(),
                output,
            }),
        }
    }

    fn root(&self) -> PathBuf {
        self.home.path().join("root")
    }

    fn furnish(&self) -> Result<(), GuestError> {
        let root = self.root();
        for folder in FOLDERS {
            let path = root.join(folder);
            fs::create_dir_all(&path).map_err(io_error("create", &path))?;
        }
        let tmp = root.join("tmp");
        fs::set_permissions(&tmp, fs::Permissions::from_mode(0o1777)).map_err(io_error("open up", &tmp))?;
        let init = root.join("init");
        fs::write(&init, INIT).map_err(io_error("write", &init))?;
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).map_err(io_error("make runnable", &init))?;
        let passwd = root.join("etc/passwd");
        fs::write(&passwd, "root:x:0:0::/root:/bin/sh\n").map_err(io_error("write", &passwd))?;
        for module in MODULES {
            self.copy(&self.kernel.join(module), &Path::new("/lib/modules").join(module))?;
        }
        self.copy(Path::new(BUSYBOX), Path::new(BUSYBOX))?;
        let listed = Command::new(BUSYBOX).arg("--list").output();
        let listed = listed.map_err(io_error("run", Path::new(BUSYBOX)))?;
        for applet in String::from_utf8_lossy(&listed.stdout)
            .lines()
            .filter(|name| *name != "busybox")
        {
            let link = root.join("bin").join(applet);
            std::os::unix::fs::symlink("busybox", &link).map_err(io_error("link", &link))?;
        }
        Ok(())
    }

    fn copy(&self, from: &Path, to: &Path) -> Result<(), GuestError> {
        let to = self.root().join(to.strip_prefix("/").unwrap_or(to));
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder).map_err(io_error("create", folder))?;
        }
        fs::copy(from, &to).map_err(io_error("copy", from))?;
        Ok(())
    }

    /// A file system like those of nodes: overlays and mapped mounts work on it.
    fn make_disk(&self) -> Result<PathBuf, GuestError> {
        let disk = self.home.path().join("disk");
        let mib = folder_bytes(&self.root()).map_err(io_error("measure", &self.root()))? / (1 << 20) + ROOM_MIB;
        let program = find("mkfs.ext4").unwrap_or_else(|| "mkfs.ext4".into());
        let mut command = Command::new(program);
        command.args([
            "-q",
            "-F",
            "-O",
            "^has_journal",
            "-E",
            "root_owner=0:0,lazy_itable_init=1",
        ]);
        command.arg("-d").arg(self.root()).arg(&disk).arg(format!("{mib}M"));
        let output = command.output().map_err(io_error("make", &disk))?;
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(GuestError::Program {
                program: "mkfs.ext4",
                complaint,
            });
        }
        Ok(disk)
    }

    fn boot(&self, disk: &Path) -> Result<String, GuestError> {
        let console = self.home.path().join("console");
        let log = fs::File::create(&console).map_err(io_error("create", &console))?;
        let mut command = Command::new(QEMU);
        // `max` has an instruction for random numbers; without it the kernel would wait for them.
        command.args([
            "-machine",
            "q35,accel=tcg",
            "-cpu",
            "max",
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
        ]);
        command.args([
            "-m",
            &MEMORY_MIB.to_string(),
            "-smp",
            &CPUS.to_string(),
            "-serial",
            "stdio",
        ]);
        command.arg("-kernel").arg(self.kernel.join("vmlinuz"));
        command.args([
            "-append",
            "console=ttyS0 quiet loglevel=3 panic=-1 root=/dev/nvme0n1 rw init=/init",
        ]);
        let drive = format!("file={},if=none,id=disk,format=raw,cache=unsafe", disk.display());
        command.args(["-drive", &drive, "-device", "nvme,drive=disk,serial=guest"]);
        let complaints = log.try_clone().map_err(io_error("share", &console))?;
        command.stdin(Stdio::null()).stdout(log).stderr(complaints);
        // SAFETY: one system call, and nothing is allocated.
        unsafe {
            command.pre_exec(|| {
                let death = Some(rustix::process::Signal::KILL);
                Ok(rustix::process::set_parent_process_death_signal(death)?)
            });
        }
        let mut child = command.spawn().map_err(io_error("run", Path::new(QEMU)))?;
        let end = Instant::now() + PATIENCE;
        let mut ended = false;
        while !ended && Instant::now() < end {
            sleep(PAUSE);
            ended = child
                .try_wait()
                .map_err(io_error("wait for", Path::new(QEMU)))?
                .is_some();
        }
        if !ended {
            let _ = child.kill();
            let _ = child.wait();
        }
        let bytes = fs::read(&console).map_err(io_error("read", &console))?;
        let output = String::from_utf8_lossy(&bytes).replace('\r', "");
        if ended {
            return Ok(output);
        }
        let why = format!("it did not end within {PATIENCE:?}");
        Err(GuestError::NoResult { why, output })
    }
}

/// By PATH and where tools for root are, which a plain user's PATH may lack.
fn find(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(|path| path.exists());
    }
    let paths = std::env::var("PATH").unwrap_or_default();
    let dirs = paths.split(':').chain(["/usr/sbin", "/sbin"]);
    dirs.map(|dir| Path::new(dir).join(program)).find(|path| path.is_file())
}

fn folder_bytes(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.path().symlink_metadata()?;
        bytes += if meta.is_dir() {
            folder_bytes(&entry.path())?
        } else {
            meta.len()
        };
    }
    Ok(bytes)
}

/// For the shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> GuestError {
    let path = path.to_owned();
    move |source| GuestError::Io { action, path, source }
}
