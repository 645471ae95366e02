//! Which system calls a container may make: a list of what ordinary servers and tools use, plus what the manifest
//! grants. Everything else fails: with EPERM where it is refused, with ENOSYS where it is as if the kernel did not have it.

use std::collections::BTreeSet;

use libcontainer::oci_spec::OciSpecError;
use libcontainer::oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArgBuilder, LinuxSeccompBuilder, LinuxSeccompOperator,
    LinuxSyscall, LinuxSyscallBuilder,
};

/// Files and folders.
const FILES: &str = "access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat \
    faccessat2 fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 \
    fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate \
    ftruncate64 futimesat getcwd getdents getdents64 getxattr ioctl lchown lchown32 lgetxattr link linkat listxattr \
    llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 mkdir mkdirat mknod mknodat newfstatat open openat \
    openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv removexattr rename \
    renameat renameat2 rmdir sendfile sendfile64 setxattr splice stat stat64 statfs statfs64 statx symlink symlinkat sync \
    sync_file_range syncfs tee truncate truncate64 umask unlink unlinkat utime utimensat utimensat_time64 utimes vmsplice \
    write writev inotify_add_watch inotify_init inotify_init1 inotify_rm_watch memfd_create";
/// Memory.
const MEMORY: &str = "brk madvise map_shadow_stack membarrier mincore mlock mlock2 mlockall mmap mmap2 mprotect mremap \
    mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_mrelease remap_file_pages";
/// Processes, threads and signals.
const PROCESSES: &str = "arch_prctl capget capset execve execveat exit exit_group fork futex futex_requeue futex_time64 \
    futex_wait futex_waitv futex_wake get_robust_list get_thread_area getegid getegid32 geteuid geteuid32 getgid getgid32 \
    getgroups getgroups32 getpgid getpgrp getpid getppid getpriority getresgid getresgid32 getresuid getresuid32 \
    getrlimit getrusage getsid gettid getuid getuid32 kill nanosleep pause pidfd_open pidfd_send_signal prctl prlimit64 \
    restart_syscall rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend \
    rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min \
    sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 \
    sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield set_robust_list set_thread_area \
    set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid \
    setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid \
    setuid setuid32 sigaltstack sigprocmask sigreturn tgkill time times tkill ugetrlimit vfork wait4 waitid waitpid \
    getitimer alarm ioprio_get ioprio_set seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self";
/// Waiting, clocks and pipes.
const EVENTS: &str = "clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep \
    clock_nanosleep_time64 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait \
    epoll_wait_old eventfd eventfd2 getcpu getrandom gettimeofday pipe pipe2 poll ppoll ppoll_time64 pselect6 \
    pselect6_time64 select _newselect signalfd signalfd4 timer_create timer_delete timer_getoverrun timer_gettime \
    timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime \
    timerfd_settime64 sysinfo uname io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit";
/// Sockets, once they are made.
const SOCKETS: &str = "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg \
    recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair";
/// Memory, queues and semaphores shared between processes of the container.
const IPC: &str = "ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend \
    mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat \
    shmctl shmdt shmget";

/// Calls that a container has no business with: they are refused, where a call that is only unknown is absent.
const REFUSED: &str = "acct add_key bpf chroot clock_adjtime clock_settime create_module delete_module finit_module fsconfig \
    fsmount fsopen fspick get_mempolicy init_module ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie mbind \
    migrate_pages mount mount_setattr move_mount move_pages name_to_handle_at nfsservctl open_by_handle_at open_tree \
    perf_event_open pidfd_getfd pivot_root process_madvise process_vm_readv process_vm_writev ptrace query_module quotactl \
    quotactl_fd reboot request_key set_mempolicy sethostname setdomainname setns settimeofday stime swapoff swapon syslog \
    umount umount2 unshare uselib userfaultfd vhangup vm86 vm86old";

/// Families of sockets: local, IPv4, IPv6, netlink and, for who has the capability, packets. Not among them are the
/// kernel's cryptography and virtual machine sockets.
const FAMILIES: [u64; 5] = [1, 2, 10, 16, 17];
/// Flags of `clone` that make a namespace.
const NAMESPACES: u64 = 0x7e02_0080;
/// `personality` as programs use it: the default, 32 bit, without randomisation, and asking.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// The kernel reads these arguments as 32 bit numbers, whatever is in the upper half.
const LOWER_HALF: u64 = 0xffff_ffff;

/// Whether a name is one of a system call here.
pub(crate) fn is_system_call(name: &str) -> bool {
    let plain = !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    plain && name.len() <= 64
}

/// The default profile and what the manifest grants. What it does not know is absent (ENOSYS), as on an older kernel, so
/// that programs fall back: `clone3`, whose flags no filter can see, and io_uring among them.
pub(crate) fn profile(granted: &BTreeSet<String>) -> Result<LinuxSeccomp, OciSpecError> {
    let mut allowed = granted.clone();
    for list in [FILES, MEMORY, PROCESSES, EVENTS, SOCKETS, IPC] {
        allowed.extend(list.split_whitespace().map(str::to_owned));
    }
    let refused: Vec<String> = REFUSED
        .split_whitespace()
        .filter(|name| !granted.contains(*name))
        .map(str::to_owned)
        .collect();
    let mut rules = vec![
        LinuxSyscallBuilder::default()
            .names(allowed.into_iter().collect::<Vec<_>>())
            .action(LinuxSeccompAction::ScmpActAllow)
            .build()?,
        LinuxSyscallBuilder::default()
            .names(refused)
            .action(LinuxSeccompAction::ScmpActErrno)
            .errno_ret(libc::EPERM.unsigned_abs())
            .build()?,
    ];
    if !granted.contains("clone") {
        rules.push(masked("clone", NAMESPACES, 0)?);
    }
    if !granted.contains("socket") {
        for family in FAMILIES {
            rules.push(masked("socket", LOWER_HALF, family)?);
        }
    }
    if !granted.contains("personality") {
        for value in PERSONALITIES {
            rules.push(masked("personality", LOWER_HALF, value)?);
        }
    }
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(libc::ENOSYS.unsigned_abs())
        .architectures(architectures())
        .syscalls(rules)
        .build()
}

/// Allows a call whose first argument has this value under this mask.
fn masked(name: &str, mask: u64, value: u64) -> Result<LinuxSyscall, OciSpecError> {
    let argument = LinuxSeccompArgBuilder::default()
        .index(0usize)
        .op(LinuxSeccompOperator::ScmpCmpMaskedEq)
        .value(mask)
        .value_two(value)
        .build()?;
    LinuxSyscallBuilder::default()
        .names(vec![name.to_owned()])
        .action(LinuxSeccompAction::ScmpActAllow)
        .args(vec![argument])
        .build()
}

/// The machine's own calls, and those of its 32 bit programs: without these, such a program would be killed.
fn architectures() -> Vec<Arch> {
    match std::env::consts::ARCH {
        "x86_64" => vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86],
        "aarch64" => vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm],
        "arm" => vec![Arch::ScmpArchArm],
        "riscv64" => vec![Arch::ScmpArchRiscv64],
        _ => Vec::new(),
    }
}
