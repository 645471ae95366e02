//! Filters of system calls (seccomp). What is not listed fails with EPERM in the runtime, and ends the inspector.

use std::io;

/// Whether the numbers below are those of this kind of machine.
pub const IS_SUPPORTED: bool = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const ARCHITECTURE: u32 = 0;

const ALLOW: u32 = 0x7fff_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const FAIL_WITH_EPERM: u32 = 0x0005_0001;

/// Where the number of the call, the machine and the first argument's low half are in what the kernel shows.
const AT_NUMBER: u32 = 0;
const AT_ARCHITECTURE: u32 = 4;
const AT_ARGUMENT: u32 = if cfg!(target_endian = "little") { 16 } else { 20 };

/// Memory, the end, and reading and writing what is open.
const COMPUTE: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_sendto,
    libc::SYS_close,
    // The standard library of a debug build asks whether what it closes is open.
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Waiting, answering on the socket, and keeping the files of the state folder. No new process, no new kind of
/// socket, no loading.
const LIVE: &[libc::c_long] = &[
    libc::SYS_ppoll,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_kill,
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_getsockopt,
    libc::SYS_getsockname,
    libc::SYS_shutdown,
    libc::SYS_ioctl,
    libc::SYS_openat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_readlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_unlinkat,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_sched_getaffinity,
    libc::SYS_membarrier,
    libc::SYS_getuid,
    libc::SYS_prctl,
];

/// Calls that only the older of the two machines has.
#[cfg(target_arch = "x86_64")]
const OLD: &[libc::c_long] = &[
    libc::SYS_poll,
    libc::SYS_rename,
    libc::SYS_unlink,
    libc::SYS_readlink,
    libc::SYS_open,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[libc::c_long] = &[];

/// Commands of the bpf call that the runtime still needs: reading maps, and what programs and links are.
const BPF_READ: &[u32] = &[1, 4, 15];

/// For the inspector: it has its input already and may only compute and write.
///
/// # Errors
/// What the kernel answers.
pub fn inspector() -> io::Result<()> {
    install(&program(&[COMPUTE], &[], KILL_PROCESS), 0)
}

/// For the runtime once all is attached, in all of its threads.
///
/// # Errors
/// What the kernel answers.
pub fn runtime() -> io::Result<()> {
    const ALL_THREADS: libc::c_ulong = 1;
    install(&program(&[COMPUTE, LIVE, OLD], BPF_READ, FAIL_WITH_EPERM), ALL_THREADS)
}

const LOAD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

fn step(code: u16, k: u32, yes: u8, no: u8) -> libc::sock_filter {
    libc::sock_filter {
        code,
        jt: yes,
        jf: no,
        k,
    }
}

/// Each listed call is a comparison and an answer of its own, so that no jump is longer than one step.
fn program(lists: &[&[libc::c_long]], bpf_commands: &[u32], otherwise: u32) -> Vec<libc::sock_filter> {
    let mut steps = vec![
        step(LOAD, AT_ARCHITECTURE, 0, 0),
        step(JUMP_IF_EQUAL, ARCHITECTURE, 1, 0),
        step(RETURN, KILL_PROCESS, 0, 0),
        step(LOAD, AT_NUMBER, 0, 0),
    ];
    for number in lists.iter().copied().flatten() {
        steps.push(step(JUMP_IF_EQUAL, u32::try_from(*number).unwrap_or(u32::MAX), 0, 1));
        steps.push(step(RETURN, ALLOW, 0, 0));
    }
    if !bpf_commands.is_empty() {
        let bpf = u32::try_from(libc::SYS_bpf).unwrap_or(u32::MAX);
        steps.push(step(JUMP_IF_EQUAL, bpf, 1, 0));
        steps.push(step(RETURN, otherwise, 0, 0));
        steps.push(step(LOAD, AT_ARGUMENT, 0, 0));
        for command in bpf_commands {
            steps.push(step(JUMP_IF_EQUAL, *command, 0, 1));
            steps.push(step(RETURN, ALLOW, 0, 0));
        }
    }
    steps.push(step(RETURN, otherwise, 0, 0));
    steps
}

fn install(steps: &[libc::sock_filter], flags: libc::c_ulong) -> io::Result<()> {
    const MODE_FILTER: libc::c_ulong = 1;
    if !IS_SUPPORTED {
        return Ok(());
    }
    let program = libc::sock_fprog {
        len: u16::try_from(steps.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: steps.as_ptr().cast_mut(),
    };
    // SAFETY: the program and its steps live through the call, which only reads them.
    match unsafe { libc::syscall(libc::SYS_seccomp, MODE_FILTER, flags, &raw const program) } {
        0 => Ok(()),
        // A thread that could not follow is named by its number.
        1.. => Err(io::Error::other("a thread did not take the filter")),
        _ => Err(io::Error::last_os_error()),
    }
}
