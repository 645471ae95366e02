//! A command inside a running container. libcontainer's own way (`as_tenant`) drops the system call filter and does not
//! enter the user namespace, so the command would be one of the node's users: it is not used.

use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use libcontainer::capabilities;
use libcontainer::oci_spec::runtime::{Process, Spec as OciSpec};
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::workload::Executor;
use rustix::fs::{Mode, OFlags};

use crate::executor::FilteredExecutor;
use crate::sys::{self, Ended, Forked};

/// Code of a command that could not be run at all, as shells have it.
const NOT_RUN: i32 = 126;
/// The container's namespaces. The user's gives the right to enter the others.
const NAMESPACES: i32 = libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// What the command becomes.
pub(crate) struct Command<'a> {
    /// The container's description with the command's own words.
    pub(crate) description: &'a OciSpec,
    pub(crate) executor: &'a FilteredExecutor,
    /// The container's first process.
    pub(crate) container: &'a OwnedFd,
    /// Whether the container has a network namespace of its own.
    pub(crate) own_network: bool,
}

/// Runs it, so long; its end, if it came. The calling process is in the container's namespaces from then on: it is one
/// that was made for this.
pub(crate) fn run(command: &Command<'_>, patience: Duration) -> io::Result<Option<Ended>> {
    let silence = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    // Nothing in the container may look into this process while it is on its way.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    let network = if command.own_network { libc::CLONE_NEWNET } else { 0 };
    sys::enter(command.container.as_fd(), NAMESPACES | network)?;
    // SAFETY: the keeper has one thread, and so has this copy of it.
    match unsafe { sys::fork(false) }? {
        Forked::Child => {
            if let Err(error) = become_it(command, &silence) {
                eprintln!("probe: {error}");
            }
            sys::exit(NOT_RUN)
        }
        Forked::Parent(pid) => {
            let ended = sys::reap_within(pid, patience);
            if ended.is_none() {
                sys::kill(pid, libc::SIGKILL);
                sys::reap_within(pid, patience);
            }
            Ok(ended)
        }
    }
}

fn become_it(command: &Command<'_>, silence: &OwnedFd) -> io::Result<()> {
    let process = command
        .description
        .process()
        .as_ref()
        .ok_or(io::ErrorKind::InvalidInput)?;
    rustix::process::setsid()?;
    confine(process)?;
    rustix::process::chdir(process.cwd())?;
    for stream in 0..3 {
        // SAFETY: duplicates a live descriptor onto a standard one, which belongs to nobody else here.
        if unsafe { libc::dup2(silence.as_raw_fd(), stream) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    command.executor.exec(command.description).map_err(io::Error::other)
}

/// The same steps, in the same order, as for the container's first process.
fn confine(process: &Process) -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    let system = create_syscall();
    let groups: Vec<libc::gid_t> = process.user().additional_gids().clone().unwrap_or_default();
    // SAFETY: the list is live and as long as is said.
    if unsafe { libc::setgroups(groups.len(), groups.as_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    system
        .set_id(process.user().uid().into(), process.user().gid().into())
        .map_err(io::Error::other)?;
    capabilities::reset_effective(system.as_ref()).map_err(io::Error::other)?;
    let sets = process.capabilities().as_ref().ok_or(io::ErrorKind::InvalidInput)?;
    capabilities::drop_privileges(sets, system.as_ref()).map_err(io::Error::other)
}
