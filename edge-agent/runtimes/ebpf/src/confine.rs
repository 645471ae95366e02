//! Giving rights away.
//!
//! Three processes, each with as little as it needs:
//!
//! - `inspect` parses the object: nobody, no capabilities, a few system calls, little memory, a few seconds.
//! - `load` loads and attaches it: nobody, with CAP_BPF and what the kind of program needs beside it.
//! - the runtime itself, which lives: no capabilities, and only the system calls that it still needs.

use std::io;

use cnova_ral::settings::ProgramKind;

mod filter;

pub use filter::{IS_SUPPORTED as SECCOMP_IS_SUPPORTED, inspector as filter_inspector, runtime as filter_runtime};

/// Capabilities by their numbers in the kernel.
pub mod capability {
    /// Change the groups of the process.
    pub const SETGID: u32 = 6;
    /// Change the user of the process.
    pub const SETUID: u32 = 7;
    /// Change the capabilities of the process for good.
    pub const SETPCAP: u32 = 8;
    /// Attach to what changes packets.
    pub const NET_ADMIN: u32 = 12;
    /// Open packet sockets.
    pub const NET_RAW: u32 = 13;
    /// Everything; stands for what came later on kernels that do not know it.
    pub const SYS_ADMIN: u32 = 21;
    /// Tracepoints.
    pub const PERFMON: u32 = 38;
    /// Load programs and create maps.
    pub const BPF: u32 = 39;
}

/// The user that the helpers become: nobody.
pub const NOBODY: u32 = 65_534;

/// Address space of the inspector, in bytes: an object has at most 4 MiB.
const INSPECTOR_SPACE_BYTES: u64 = 256 << 20;
/// CPU time of the inspector.
const INSPECTOR_CPU_SECONDS: u64 = 5;

/// What a program of a kind needs to be loaded and attached, the opening of handles aside.
#[must_use]
pub fn capabilities_for(kinds: &[ProgramKind]) -> u64 {
    if last_capability() < capability::BPF {
        return 1 << capability::SYS_ADMIN | 1 << capability::NET_ADMIN;
    }
    let mut set = 1 << capability::BPF;
    for kind in kinds {
        set |= match kind {
            ProgramKind::SocketFilter => 0,
            ProgramKind::TcIngress | ProgramKind::Xdp | ProgramKind::CgroupSkb => 1 << capability::NET_ADMIN,
            ProgramKind::Tracepoint => 1 << capability::PERFMON,
        };
    }
    set
}

/// The highest capability that this kernel knows; before Linux 5.8 there is no CAP_BPF.
#[must_use]
pub fn last_capability() -> u32 {
    let text = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// Whether this process has a capability.
#[must_use]
pub fn has(number: u32) -> bool {
    effective() & (1 << number) != 0
}

fn effective() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok())
        .unwrap_or(0)
}

/// Becomes nobody, with the capabilities in `keep` as far as this process has them, and without a way to more. For a
/// process with one thread.
///
/// # Errors
/// What the kernel answers. A process that was not root stays who it is.
pub fn become_nobody(keep: u64) -> io::Result<()> {
    let had = effective();
    let may = |number: u32| had & (1 << number) != 0;
    if may(capability::SETPCAP) {
        drop_bounding_set()?;
    }
    if may(capability::SETUID) && may(capability::SETGID) {
        // SAFETY: plain numbers and an empty list.
        check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) })?;
        // SAFETY: as above. The process has one thread, so that the raw calls change all of it.
        unsafe {
            check_long(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()))?;
            check_long(libc::syscall(libc::SYS_setresgid, NOBODY, NOBODY, NOBODY))?;
            check_long(libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY))?;
        }
    }
    set_capabilities(had & keep)?;
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

/// Gives away all capabilities of a process with one thread, and the ways to get them back. Before Linux 5.19 reading
/// one's own maps takes CAP_BPF where unprivileged programs are forbidden, so that one stays there.
///
/// # Errors
/// What the kernel answers.
pub fn drop_all() -> io::Result<()> {
    if has(capability::SETPCAP) {
        drop_bounding_set()?;
    }
    let keep = match kernel_version() {
        Some(version) if version >= (5, 19) => 0,
        _ => effective() & (1 << capability::BPF),
    };
    set_capabilities(keep)?;
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

/// Major and minor version of the kernel.
#[must_use]
pub fn kernel_version() -> Option<(u32, u32)> {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Has the kernel end this process after so many seconds. Its parent has no right to by then.
pub fn end_after(seconds: u32) {
    // SAFETY: a plain number; the signal is neither blocked nor handled.
    unsafe { libc::alarm(seconds) };
}

/// Ends this process when its parent ends, even after a change of user, which takes the wish back.
///
/// # Errors
/// What the kernel answers.
pub fn die_with_parent() -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    Ok(())
}

/// Bounds what parsing may cost.
///
/// # Errors
/// What the kernel answers.
pub fn limit_inspector() -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let exactly = |value| Rlimit {
        current: Some(value),
        maximum: Some(value),
    };
    setrlimit(Resource::As, exactly(INSPECTOR_SPACE_BYTES))?;
    setrlimit(Resource::Cpu, exactly(INSPECTOR_CPU_SECONDS))?;
    setrlimit(Resource::Core, exactly(0))?;
    setrlimit(Resource::Fsize, exactly(0))?;
    setrlimit(Resource::Nofile, exactly(0))?;
    setrlimit(Resource::Nproc, exactly(0))?;
    Ok(())
}

fn drop_bounding_set() -> io::Result<()> {
    for number in 0..=last_capability() {
        // SAFETY: plain numbers.
        check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) })?;
    }
    Ok(())
}

/// Sets what is effective and permitted; nothing is inherited.
fn set_capabilities(set: u64) -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let low = u32::try_from(set & u64::from(u32::MAX)).unwrap_or(0);
    let high = u32::try_from(set >> 32).unwrap_or(0);
    // Version and pid (0 is this thread); then effective, permitted, inheritable, twice.
    let header = [VERSION_3, 0];
    let data = [low, low, 0, high, high, 0];
    // SAFETY: both arrays live and have the layout that version 3 asks for.
    check_long(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) })
}

fn check(status: libc::c_int) -> io::Result<()> {
    check_long(libc::c_long::from(status))
}

fn check_long(status: libc::c_long) -> io::Result<()> {
    match status {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
