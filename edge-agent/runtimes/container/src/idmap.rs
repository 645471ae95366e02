//! A user namespace to map mounts with: files that belong to id 0 on the host belong to id 0 in the container, although
//! processes of the container have ids from another range on the host.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;

use cnova_oci::IDS_PER_CONTAINER;

use crate::sys::{self, Forked};

/// Makes the namespace; it lives as long as the descriptor.
pub(crate) fn user_namespace(base: u32) -> io::Result<OwnedFd> {
    let (ready_read, ready_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let (done_read, done_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // SAFETY: the keeper has one thread.
    let child = match unsafe { sys::fork(false) }? {
        Forked::Parent(pid) => pid,
        Forked::Child => {
            drop((ready_read, done_write));
            let made = sys::unshare(libc::CLONE_NEWUSER).is_ok();
            if made && rustix::io::write(&ready_write, b"+").is_ok() {
                // Ends when the parent has opened the namespace, or is gone.
                let _ = rustix::io::read(&done_read, &mut [0u8; 1]);
            }
            sys::exit(0)
        }
    };
    drop((ready_write, done_read));
    let mapped = || -> io::Result<OwnedFd> {
        let mut answer = [0; 1];
        if rustix::io::read(&ready_read, &mut answer)? == 0 {
            return Err(io::Error::other(
                "this kernel, or its configuration, permits no user namespaces",
            ));
        }
        let map = format!("0 {base} {IDS_PER_CONTAINER}\n");
        fs::write(format!("/proc/{child}/uid_map"), &map)?;
        fs::write(format!("/proc/{child}/gid_map"), &map)?;
        Ok(OwnedFd::from(File::open(format!("/proc/{child}/ns/user"))?))
    };
    let namespace = mapped();
    drop(done_write);
    sys::reap_within(child, std::time::Duration::from_secs(5));
    namespace
}
