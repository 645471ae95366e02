//! Where programs are attached. What needs rights to be opened is opened first, as a [`Place`]; then the rights are
//! given away, the program is loaded, and the place takes it.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya_obj::generated::bpf_attach_type;
use cnova_ral::settings::{Program, ProgramKind};
use rustix::mount::{MountFlags, MountPropagationFlags};

use crate::sys;

/// Folders where the kernel's events are found.
const TRACE_FOLDERS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
const CGROUP2_MAGIC: u64 = 0x6367_7270;
/// XDP in the network stack instead of the driver.
const XDP_SKB_MODE: u32 = 2;
/// Longest name of an interface, in bytes.
const INTERFACE_NAME_MAX: usize = 15;

/// Why a program has nowhere to go.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The interface is not there.
    #[error("there is no interface `{name}` on this node, which has {present}")]
    NoInterface {
        /// Which.
        name: String,
        /// Those that are there.
        present: String,
    },
    /// The event is not one of this kernel's.
    #[error("there is no tracepoint `{name}` in this kernel: {reason}")]
    NoTracepoint {
        /// Which.
        name: String,
        /// What is missing.
        reason: String,
    },
    /// Not a control group.
    #[error("`{path}` is not a control group of version 2: {reason}")]
    NoCgroup {
        /// Which.
        path: String,
        /// Why not.
        reason: String,
    },
    /// The kernel refuses.
    #[error("cannot {action} {target}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// On what.
        target: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The kernel is too old for it.
    #[error("this kernel cannot attach a program to tc by a link: Linux 6.6 or newer is needed")]
    NoTcx,
}

/// A place that a program can be attached to, opened.
#[derive(Debug)]
pub enum Place {
    /// A packet socket that receives nothing yet.
    Packets {
        /// The socket.
        socket: OwnedFd,
        /// The interface that it will listen on.
        interface: u32,
        /// Whether it sees frames for others.
        promiscuous: bool,
    },
    /// An interface, before or in the network stack.
    Interface {
        /// Its number.
        interface: u32,
        /// What the program is.
        kind: ProgramKind,
    },
    /// An event of the kernel.
    Tracepoint {
        /// Its number.
        id: u64,
    },
    /// A control group and the direction of its packets.
    Cgroup {
        /// Its folder.
        folder: OwnedFd,
    },
}

/// Opens the place that the settings name, with the rights that this takes.
///
/// # Errors
/// What is not there, or what the kernel answers.
pub fn open(program: &Program) -> Result<Place, AttachError> {
    let name = program.attach.as_str();
    match program.kind {
        ProgramKind::SocketFilter => Ok(Place::Packets {
            interface: find_interface(name)?,
            socket: packet_socket().map_err(system("open a packet socket for", name))?,
            promiscuous: program.promiscuous,
        }),
        ProgramKind::TcIngress | ProgramKind::Xdp => Ok(Place::Interface {
            interface: find_interface(name)?,
            kind: program.kind,
        }),
        ProgramKind::Tracepoint => Ok(Place::Tracepoint {
            id: find_tracepoint(name)?,
        }),
        ProgramKind::CgroupSkb => Ok(Place::Cgroup {
            folder: open_cgroup(name)?,
        }),
    }
}

impl Place {
    /// Attaches a loaded program. The attachment ends with the descriptor that comes back.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn take(self, program: BorrowedFd<'_>, target: &str, egress: bool) -> Result<OwnedFd, AttachError> {
        let attach = system("attach to", target);
        match self {
            Place::Packets {
                socket,
                interface,
                promiscuous,
            } => {
                // First the filter, then the interface: no packet comes unfiltered.
                filter(socket.as_fd(), program).map_err(&attach)?;
                listen(socket.as_fd(), interface, promiscuous).map_err(&attach)?;
                Ok(socket)
            }
            Place::Interface {
                interface,
                kind: ProgramKind::Xdp,
            } => {
                // The driver, if it can; else the network stack, where every interface can.
                sys::create_link(program, interface, bpf_attach_type::BPF_XDP, 0)
                    .or_else(|_| sys::create_link(program, interface, bpf_attach_type::BPF_XDP, XDP_SKB_MODE))
                    .map_err(attach)
            }
            Place::Interface { interface, .. } => {
                let link = sys::create_link(program, interface, bpf_attach_type::BPF_TCX_INGRESS, 0);
                link.map_err(|source| match source.raw_os_error() {
                    Some(libc::EINVAL) => AttachError::NoTcx,
                    _ => attach(source),
                })
            }
            Place::Tracepoint { id } => {
                let event = sys::open_tracepoint(id).map_err(system("open the event", target))?;
                let number = event.as_raw_fd().cast_unsigned();
                // The link keeps the event.
                sys::create_link(program, number, bpf_attach_type::BPF_PERF_EVENT, 0).map_err(attach)
            }
            Place::Cgroup { folder } => {
                let kind = match egress {
                    false => bpf_attach_type::BPF_CGROUP_INET_INGRESS,
                    true => bpf_attach_type::BPF_CGROUP_INET_EGRESS,
                };
                sys::create_link(program, folder.as_raw_fd().cast_unsigned(), kind, 0).map_err(attach)
            }
        }
    }
}

/// The number of an interface in this network namespace.
///
/// # Errors
/// Which interfaces there are instead.
pub fn find_interface(name: &str) -> Result<u32, AttachError> {
    let number = CString::new(name)
        .ok()
        .filter(|text| (1..=INTERFACE_NAME_MAX).contains(&text.as_bytes().len()))
        // SAFETY: the name is a live C string.
        .map_or(0, |text| unsafe { libc::if_nametoindex(text.as_ptr()) });
    match number {
        0 => Err(AttachError::NoInterface {
            name: name.to_owned(),
            present: interfaces().join(", "),
        }),
        number => Ok(number),
    }
}

/// The names of all interfaces of this network namespace.
#[must_use]
pub fn interfaces() -> Vec<String> {
    let mut names = Vec::new();
    // SAFETY: the list that comes back ends with a zero index and stays until it is freed below.
    unsafe {
        let list = libc::if_nameindex();
        let mut entry = list;
        while !entry.is_null() && (*entry).if_index != 0 {
            names.push(CStr::from_ptr((*entry).if_name).to_string_lossy().into_owned());
            entry = entry.add(1);
        }
        if !list.is_null() {
            libc::if_freenameindex(list);
        }
    }
    names
}

fn packet_socket() -> io::Result<OwnedFd> {
    let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: plain numbers; protocol 0 receives nothing.
    let fd = unsafe { libc::socket(libc::AF_PACKET, flags, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // Nobody reads it: what a filter lets through is to take as little room as possible.
    set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, &0i32)?;
    Ok(socket)
}

fn filter(socket: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_BPF, &program.as_raw_fd())
}

fn listen(socket: BorrowedFd<'_>, interface: u32, promiscuous: bool) -> io::Result<()> {
    let number = i32::try_from(interface).map_err(|_| io::ErrorKind::InvalidInput)?;
    if promiscuous {
        // The number, the kind of membership, and an address that this kind does not have.
        let mut request = [0u8; 16];
        request[..4].copy_from_slice(&number.to_ne_bytes());
        request[4..6].copy_from_slice(&(libc::PACKET_MR_PROMISC as u16).to_ne_bytes());
        set_option(socket, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &request)?;
    }
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = number;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the address lives through the call and is as long as said.
    match unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set_option<T>(socket: BorrowedFd<'_>, level: i32, option: i32, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the value lives through the call and is as long as said.
    match unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            length,
        )
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The number of an event `category/name`.
fn find_tracepoint(name: &str) -> Result<u64, AttachError> {
    let missing = |reason: String| AttachError::NoTracepoint {
        name: name.to_owned(),
        reason,
    };
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let well_formed = name
        .split_once('/')
        .is_some_and(|(category, event)| plain(category) && plain(event));
    if !well_formed {
        return Err(missing("write it as `category/name`".to_owned()));
    }
    let folder = trace_folder().map_err(|e| missing(format!("its events cannot be read: {e}")))?;
    let path = folder.join("events").join(name).join("id");
    let text = std::fs::read_to_string(&path).map_err(|e| missing(format!("{}: {e}", path.display())))?;
    text.trim()
        .parse()
        .map_err(|_| missing(format!("{} holds no number", path.display())))
}

/// Mounts the kernel's events for this process alone if nobody has mounted them for all.
fn trace_folder() -> io::Result<PathBuf> {
    if let Some(there) = TRACE_FOLDERS
        .iter()
        .find(|folder| Path::new(folder).join("events").exists())
    {
        return Ok(PathBuf::from(there));
    }
    // SAFETY: this process has one thread, and nothing of it depends on sharing its mounts.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?;
    let everything = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", everything)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("tracefs", TRACE_FOLDERS[0], "tracefs", flags, None::<&CStr>)?;
    Ok(PathBuf::from(TRACE_FOLDERS[0]))
}

fn open_cgroup(path: &str) -> Result<OwnedFd, AttachError> {
    let wrong = |reason: String| AttachError::NoCgroup {
        path: path.to_owned(),
        reason,
    };
    if !path.starts_with('/') {
        return Err(wrong("the path must be absolute".to_owned()));
    }
    let folder = File::open(path).map_err(|e| wrong(e.to_string()))?;
    let system = rustix::fs::fstatfs(&folder).map_err(|e| wrong(e.to_string()))?;
    if system.f_type as u64 != CGROUP2_MAGIC {
        return Err(wrong("it lies in another file system".to_owned()));
    }
    Ok(folder.into())
}

fn system(action: &'static str, target: &str) -> impl Fn(io::Error) -> AttachError {
    let target = format!("`{target}`");
    move |source| AttachError::System {
        action,
        target: target.clone(),
        source,
    }
}
