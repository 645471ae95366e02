//! What the machine is and how it fares, as far as its kernel says without being asked twice.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{Bundle, SupportError};

/// Files of the kernel and the system that say nothing of anybody's.
const FACTS: [&str; 11] = [
    "/etc/os-release",
    "/proc/version",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/pressure/cpu",
    "/proc/pressure/memory",
    "/proc/pressure/io",
    "/sys/class/tpm/tpm0/tpm_version_major",
    "/sys/class/watchdog/watchdog0/identity",
    "/sys/firmware/devicetree/base/model",
];
/// The registers of the boot and of launches, as the kernel shows them.
const REGISTERS: &str = "/sys/class/tpm/tpm0/pcr-sha256";
const FIRMWARE_LOG: &str = "/sys/kernel/security/tpm0/binary_bios_measurements";
/// Most of one of these files, in bytes.
const FACT_BYTES_MAX: usize = 16 << 10;
/// Most files of a folder that are listed, and how deep.
const LISTED_MAX: usize = 4096;
const DEPTH_MAX: usize = 4;

/// Puts in what the machine is: kernel, memory, pressure, TPM. `state_dir` is asked how full its disk is.
///
/// # Errors
/// [`SupportError::Write`].
pub fn add_machine(bundle: &mut Bundle, state_dir: &Path) -> Result<(), SupportError> {
    let mut text = String::new();
    for path in FACTS {
        section(&mut text, path, fs::read(path).map_err(|e| e.to_string()));
    }
    for register in 0..24 {
        let path = format!("{REGISTERS}/{register}");
        if let Ok(value) = fs::read(&path) {
            section(&mut text, &path, Ok(value));
        }
    }
    for device in ["/dev/tpm0", "/dev/tpmrm0"] {
        let is_there = if Path::new(device).exists() {
            "there"
        } else {
            "not there"
        };
        let _ = writeln!(text, "== {device}: {is_there}");
    }
    match rustix::fs::statvfs(state_dir) {
        Ok(disk) => {
            let mib = |blocks: u64| blocks.saturating_mul(disk.f_frsize) >> 20;
            let _ = writeln!(
                text,
                "== {}: {} of {} MiB and {} of {} inodes are free",
                state_dir.display(),
                mib(disk.f_bavail),
                mib(disk.f_blocks),
                disk.f_favail,
                disk.f_files
            );
        }
        Err(e) => bundle.leave_out(
            format!("how full the disk of {} is", state_dir.display()),
            e.to_string(),
        ),
    }
    bundle.add("machine.txt", "the kernel", text.as_bytes())?;
    bundle.add_file("firmware-event-log.bin", Path::new(FIRMWARE_LOG))?;
    for what in [
        "/proc/cmdline",
        "the environment",
        "addresses of the network",
        "the system's own logs",
    ] {
        bundle.leave_out(what, "it may hold anything");
    }
    Ok(())
}

fn section(text: &mut String, path: &str, content: Result<Vec<u8>, String>) {
    let content = match content {
        Ok(mut bytes) => {
            bytes.truncate(FACT_BYTES_MAX);
            String::from_utf8_lossy(&bytes).trim_matches('\0').trim_end().to_owned()
        }
        Err(why) => format!("({why})"),
    };
    let _ = writeln!(text, "== {path}\n{content}");
}

/// Puts in which files a folder holds: their names, sizes, modes, owners and times. Nothing of what is in them.
///
/// # Errors
/// [`SupportError::Write`].
pub fn add_folder(bundle: &mut Bundle, folder: &Path) -> Result<(), SupportError> {
    let (mut text, mut left) = (String::new(), LISTED_MAX);
    list(folder, folder, DEPTH_MAX, &mut left, &mut text);
    if left == 0 {
        bundle.leave_out(
            format!("further files in {}", folder.display()),
            format!("{LISTED_MAX} are listed"),
        );
    }
    bundle.add("files.txt", &folder.display().to_string(), text.as_bytes())
}

fn list(root: &Path, folder: &Path, depth: usize, left: &mut usize, text: &mut String) {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) => {
            let _ = writeln!(text, "({}: {e})", folder.display());
            return;
        }
    };
    let mut paths: Vec<_> = entries.flatten().map(|e| e.path()).collect();
    paths.sort();
    for path in paths {
        if *left == 0 {
            return;
        }
        *left -= 1;
        let Ok(meta) = path.symlink_metadata() else { continue };
        let shown = path.strip_prefix(root).unwrap_or(&path).display();
        let (mode, owner, group, len) = (meta.mode(), meta.uid(), meta.gid(), meta.len());
        let _ = writeln!(text, "{mode:06o} {owner}:{group} {len:>10} {} {shown}", meta.mtime());
        if meta.is_dir() && depth > 1 {
            list(root, &path, depth - 1, left, text);
        }
    }
}
