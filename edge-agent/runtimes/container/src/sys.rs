//! The few system calls that no library offers safely.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};

/// Signals, the real time ones not among them.
const SIGNALS: i32 = 31;

/// Which side of a fork this is.
pub(crate) enum Forked {
    Parent(libc::pid_t),
    Child,
}

/// Forks; the child is the first process of a PID namespace of its own if `new_pids`.
///
/// # Safety
/// Only while the process has one thread: the child gets a copy of this one alone, and locks that others hold stay
/// locked in it for ever.
pub(crate) unsafe fn fork(new_pids: bool) -> io::Result<Forked> {
    let namespaces = if new_pids { libc::CLONE_NEWPID } else { 0 };
    let flags = libc::c_long::from(libc::SIGCHLD | namespaces);
    // SAFETY: without CLONE_VM and with no stack given this is a fork; the caller keeps to one thread.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(libc::pid_t::try_from(pid).unwrap_or(libc::pid_t::MAX))),
    }
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Code(i32),
    Signal(i32),
}

/// Takes the end of a child: of any if `pid` is -1. Nothing if none has ended, or if there is none.
pub(crate) fn reap(pid: libc::pid_t) -> Option<(libc::pid_t, Ended)> {
    let mut status = 0;
    // SAFETY: `status` is a live integer.
    let reaped = unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) };
    if reaped <= 0 {
        return None;
    }
    let ended = if libc::WIFEXITED(status) {
        Ended::Code(libc::WEXITSTATUS(status))
    } else {
        Ended::Signal(libc::WTERMSIG(status))
    };
    Some((reaped, ended))
}

/// Waits for a child, so long.
pub(crate) fn reap_within(pid: libc::pid_t, patience: Duration) -> Option<Ended> {
    /// Where the end cannot be waited for.
    const STEP: Duration = Duration::from_millis(2);
    let end = std::time::Instant::now() + patience;
    // It wakes at the end itself: each start and each stop of a container waits for one.
    let mut pidfd = cnova_ral::pidfd_open(pid.unsigned_abs()).ok();
    loop {
        if let Some((_, ended)) = reap(pid) {
            return Some(ended);
        }
        let left = end.saturating_duration_since(std::time::Instant::now());
        if left.is_zero() {
            return None;
        }
        match pidfd.take() {
            Some(fd) => {
                let timeout = Timespec::try_from(left).ok();
                let mut fds = [PollFd::new(&fd, PollFlags::IN)];
                if rustix::event::poll(&mut fds, timeout.as_ref()).is_err() {
                    // An interruption; else it has ended, and is not waited for in this way again.
                    pidfd = Some(fd);
                }
            }
            None => std::thread::sleep(STEP),
        }
    }
}

/// Closes all descriptors but the standard ones and these, whoever opened them.
///
/// # Safety
/// Only in a process that never again uses, or drops, a value that owns one of the others.
pub(crate) unsafe fn close_all_but(kept: &[std::os::fd::RawFd]) -> io::Result<()> {
    let names = std::fs::read_dir("/proc/self/fd")?
        .flatten()
        .map(|entry| entry.file_name());
    let open: Vec<std::os::fd::RawFd> = names.filter_map(|name| name.to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|fd| *fd > 2 && !kept.contains(fd)) {
        // SAFETY: the caller says that nobody uses it; the folder's own, closed already, is no error.
        unsafe { libc::close(fd) };
    }
    Ok(())
}

/// Sends a signal; a process that is gone is no error.
pub(crate) fn kill(pid: libc::pid_t, signal: i32) {
    // SAFETY: a system call with two numbers.
    unsafe { libc::kill(pid, signal) };
}

/// Ends this process without running anything that the parent registered.
pub(crate) fn exit(status: i32) -> ! {
    // SAFETY: ends the process; nothing of it is used afterwards.
    unsafe { libc::_exit(status) }
}

/// Blocks these signals, and no others, for this thread; they are read from the descriptor.
pub(crate) fn signal_fd(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: an all-zero sigset_t is valid storage, and sigemptyset makes it a valid set before any other use.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` outlives the calls, and the numbers are valid signals.
    let fd = unsafe {
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        if libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    match fd {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: the kernel has just given it to us alone.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

/// The next signal on such a descriptor, if one came.
pub(crate) fn next_signal(fd: &OwnedFd) -> Option<i32> {
    let mut info = [0u8; std::mem::size_of::<libc::signalfd_siginfo>()];
    let count = rustix::io::read(fd, &mut info).ok()?;
    // The number is the first field.
    let number = info.get(..4).filter(|_| count >= 4)?;
    i32::try_from(u32::from_ne_bytes(number.try_into().ok()?)).ok()
}

/// What a program expects to find: no signal blocked, and none ignored, as Rust's own programs do with SIGPIPE.
pub(crate) fn reset_signals() {
    // SAFETY: an all-zero sigset_t is valid storage, sigemptyset makes it a valid set, and it outlives the calls.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
        for signal in 1..=SIGNALS {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}

/// Enters a namespace for good.
pub(crate) fn enter(namespace: BorrowedFd<'_>, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: a system call with a live descriptor and a number.
    match unsafe { libc::setns(namespace.as_raw_fd(), kind) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Leaves the namespaces of these kinds for new ones.
pub(crate) fn unshare(kinds: libc::c_int) -> io::Result<()> {
    // SAFETY: a system call with a number; what it does to this process is what the caller wants.
    match unsafe { libc::unshare(kinds) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets attributes of a mount that is not attached yet, and of all below it; `idmap` is a user namespace.
pub(crate) fn set_mount_attributes(mount: BorrowedFd<'_>, set: u64, idmap: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    if let Some(namespace) = idmap {
        attributes.attr_set |= libc::MOUNT_ATTR_IDMAP;
        attributes.userns_fd = u64::try_from(namespace.as_raw_fd()).unwrap_or(0);
    }
    // SAFETY: the descriptor is live, the path is an empty C string, and the structure outlives the call with its size.
    let status = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw mut attributes,
            std::mem::size_of::<libc::mount_attr>(),
        )
    };
    match status {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes `root` the root of this process's mount namespace and forgets the old one.
pub(crate) fn pivot_into(root: &std::path::Path) -> io::Result<()> {
    rustix::process::chdir(root)?;
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Ok(())
}
