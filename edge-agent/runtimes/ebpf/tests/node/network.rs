//! Network namespaces of a test's own. Nothing of them has a name, and all is gone with the threads that live in
//! them.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use rustix::thread::UnshareFlags;

type Task = Box<dyn FnOnce() + Send>;

/// A thread in a network namespace of its own.
pub(crate) struct Namespace {
    tasks: mpsc::Sender<Task>,
    thread: i32,
}

impl Namespace {
    /// Makes one with its loopback up, or says why that is not possible here.
    pub(crate) fn new() -> Option<Namespace> {
        let (tasks, todo) = mpsc::channel::<Task>();
        let (made, is_made) = mpsc::channel();
        thread::spawn(move || {
            // SAFETY: only the network of this thread changes.
            let unshared = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) };
            made.send((unshared, rustix::thread::gettid().as_raw_nonzero().get()))
                .unwrap();
            if unshared.is_ok() {
                todo.into_iter().for_each(|task| task());
            }
        });
        let (unshared, thread) = is_made.recv().unwrap();
        if unshared.is_err() || Command::new("ip").arg("-V").output().is_err() {
            eprintln!("skipped: needs network namespaces and the command ip ({unshared:?})");
            return None;
        }
        let namespace = Namespace { tasks, thread };
        namespace.ip("link set lo up");
        Some(namespace)
    }

    /// Two of them with a cable between `west` (10.77.0.1) and `east` (10.77.0.2 and 10.77.0.9).
    pub(crate) fn pair() -> Option<(Namespace, Namespace)> {
        let (west, east) = (Namespace::new()?, Namespace::new()?);
        west.ip(&format!("link add west type veth peer name east netns {}", east.thread));
        west.ip("addr add 10.77.0.1/24 dev west");
        east.ip("addr add 10.77.0.2/24 dev east");
        east.ip("addr add 10.77.0.9/24 dev east");
        west.ip("link set west up");
        east.ip("link set east up");
        Some((west, east))
    }

    /// Does something in it: sockets and processes that are made belong to it.
    pub(crate) fn run<T: Send + 'static>(&self, task: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        self.tasks.send(Box::new(move || drop(done.send(task())))).unwrap();
        result.recv().unwrap()
    }

    pub(crate) fn ip(&self, arguments: &str) {
        let arguments: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
        let made = self.run(move || Command::new("ip").args(&arguments).output().unwrap());
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    /// Sends frames as they are.
    pub(crate) fn send_frames(&self, interface: &str, frames: Vec<Vec<u8>>) {
        let interface = interface.to_owned();
        self.run(move || send_frames(&interface, &frames));
    }
}

fn send_frames(interface: &str, frames: &[Vec<u8>]) {
    let number = cnova_runtime_ebpf::attach::find_interface(interface).unwrap();
    // SAFETY: plain numbers; the kernel just made the descriptor for us.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        assert!(fd >= 0);
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = number.cast_signed();
    for frame in frames {
        // SAFETY: frame and address live through the call and are as long as said.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        assert_eq!(sent, frame.len().cast_signed());
    }
}

/// A frame with these addresses and this type.
pub(crate) fn frame(to: [u8; 6], from: [u8; 6], ether_type: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = [&to[..], &from, &ether_type.to_be_bytes(), body].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}
