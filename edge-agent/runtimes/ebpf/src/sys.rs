//! The few calls of the kernel's bpf interface that are made directly, on descriptors that another process loaded.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use aya_obj::generated::{bpf_attach_type, bpf_cmd, bpf_prog_info};

/// As many bytes as any command here uses; the kernel takes more if they are zero.
#[repr(C, align(8))]
struct Attributes([u8; 128]);

impl Attributes {
    fn new() -> Attributes {
        Attributes([0; 128])
    }

    fn u32(mut self, at: usize, value: u32) -> Attributes {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn u64(mut self, at: usize, value: u64) -> Attributes {
        self.0[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn fd(self, at: usize, fd: BorrowedFd<'_>) -> Attributes {
        self.u32(at, fd.as_raw_fd().cast_unsigned())
    }

    /// # Safety
    /// The pointers in it must be good for what the command does with them.
    unsafe fn call(&self, command: bpf_cmd) -> io::Result<i64> {
        // SAFETY: the attributes are live and as long as said; what they point to is the caller's promise.
        let status = unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_long, self.0.as_ptr(), self.0.len()) };
        match status {
            0.. => Ok(status),
            _ => Err(io::Error::last_os_error()),
        }
    }

    unsafe fn call_for_fd(&self, command: bpf_cmd) -> io::Result<OwnedFd> {
        // SAFETY: as the caller promises.
        let fd = unsafe { self.call(command) }?;
        let fd = i32::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
        // SAFETY: the kernel just made this descriptor for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// Attaches a program and gives the link, with which the attachment ends. `target` is a descriptor or the number of
/// an interface.
///
/// # Errors
/// What the kernel answers.
pub fn create_link(program: BorrowedFd<'_>, target: u32, kind: bpf_attach_type, flags: u32) -> io::Result<OwnedFd> {
    let attributes = Attributes::new()
        .fd(0, program)
        .u32(4, target)
        .u32(8, kind as u32)
        .u32(12, flags);
    // SAFETY: no pointers.
    unsafe { attributes.call_for_fd(bpf_cmd::BPF_LINK_CREATE) }
}

/// Has the kernel measure the run time of all programs for as long as the descriptor lives. Needs CAP_SYS_ADMIN.
///
/// # Errors
/// What the kernel answers.
pub fn enable_run_time_stats() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; type 0 is the run time.
    unsafe { Attributes::new().call_for_fd(bpf_cmd::BPF_ENABLE_STATS) }
}

/// What the kernel says about a program.
///
/// # Errors
/// What the kernel answers.
pub fn program_info(program: BorrowedFd<'_>) -> io::Result<bpf_prog_info> {
    // SAFETY: all-zero is a valid value of this plain structure of numbers.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    let length = u32::try_from(size_of::<bpf_prog_info>()).unwrap_or(0);
    // SAFETY: the pointer is to a live structure of that length; its own pointers are zero, so nothing else is
    // written.
    unsafe { info_by_fd(program, (&raw mut info) as u64, length) }?;
    Ok(info)
}

/// The words of what the kernel says about a link: type, id, program, then what it is attached to.
///
/// # Errors
/// What the kernel answers.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<[u32; 16]> {
    let mut words = [0u32; 16];
    let length = u32::try_from(size_of_val(&words)).unwrap_or(0);
    // SAFETY: the pointer is to a live array of that length; zero pointers in it mean that no names are asked for.
    unsafe { info_by_fd(link, words.as_mut_ptr() as u64, length) }?;
    Ok(words)
}

unsafe fn info_by_fd(fd: BorrowedFd<'_>, pointer: u64, length: u32) -> io::Result<()> {
    let attributes = Attributes::new().fd(0, fd).u32(4, length).u64(8, pointer);
    // SAFETY: as the caller promises.
    unsafe { attributes.call(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD) }.map(|_| ())
}

/// The key after `key` in the kernel's order, or the first one; false at the end.
///
/// # Errors
/// What the kernel answers.
pub fn next_key(map: BorrowedFd<'_>, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<bool> {
    let before = key.map_or(0, |key| key.as_ptr() as u64);
    let attributes = Attributes::new()
        .fd(0, map)
        .u64(8, before)
        .u64(16, next.as_mut_ptr() as u64);
    // SAFETY: both buffers live and have the map's key size, which all callers take from the map.
    match unsafe { attributes.call(bpf_cmd::BPF_MAP_GET_NEXT_KEY) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads one value; false if the key is not there.
///
/// # Errors
/// What the kernel answers.
pub fn lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let attributes = Attributes::new()
        .fd(0, map)
        .u64(8, key.as_ptr() as u64)
        .u64(16, value.as_mut_ptr() as u64);
    // SAFETY: both buffers live and have the map's sizes, the value's for all possible CPUs.
    match unsafe { attributes.call(bpf_cmd::BPF_MAP_LOOKUP_ELEM) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes one value.
///
/// # Errors
/// What the kernel answers.
pub fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let attributes = Attributes::new()
        .fd(0, map)
        .u64(8, key.as_ptr() as u64)
        .u64(16, value.as_ptr() as u64);
    // SAFETY: both buffers live and have the map's sizes, which the policy has checked.
    unsafe { attributes.call(bpf_cmd::BPF_MAP_UPDATE_ELEM) }.map(|_| ())
}

/// Opens the event of a tracepoint.
///
/// # Errors
/// What the kernel answers.
pub fn open_tracepoint(id: u64) -> io::Result<OwnedFd> {
    const TRACEPOINT: u32 = 2;
    const LENGTH: u32 = 112;
    // One program sees the events of all CPUs, whichever the event is opened for.
    const ANY_TASK: libc::c_long = -1;
    const FIRST_CPU: libc::c_long = 0;
    const NO_GROUP: libc::c_long = -1;
    const CLOSE_ON_EXEC: libc::c_long = 8;
    let attributes = Attributes::new()
        .u32(0, TRACEPOINT)
        .u32(4, LENGTH)
        .u64(8, id)
        .u64(16, 1)
        .u32(48, 1);
    // SAFETY: the structure is live and longer than it says; the event is opened without a buffer.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            attributes.0.as_ptr(),
            ANY_TASK,
            FIRST_CPU,
            NO_GROUP,
            CLOSE_ON_EXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
