//! What is loaded and attached, held by its descriptors: when they are closed, nothing of it is left.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use cnova_ral::settings::{Ebpf, MapMetric, ProgramKind};

use crate::counters::{self, MapReader};
use crate::inspect::MapFacts;
use crate::load::Report;
use crate::sys;

/// Where in a link's words the interface is, or the first half of the control group's number.
const LINK_TARGET: usize = 4;

/// All that a workload is while it runs.
#[derive(Debug)]
pub struct Attached {
    programs: Vec<Held>,
    maps: Vec<OwnedFd>,
    readers: Vec<(MapReader, MapMetric)>,
    /// For questions about interfaces.
    questions: OwnedFd,
    /// While it lives, the kernel measures run times.
    _stats: Option<OwnedFd>,
}

#[derive(Debug)]
struct Held {
    name: String,
    kind: ProgramKind,
    target: String,
    program: OwnedFd,
    link: OwnedFd,
}

/// Why what the loader handed over cannot be held.
#[derive(Debug, thiserror::Error)]
pub enum AttachedError {
    /// There are not as many descriptors as the report says.
    #[error("the loader handed over {found} descriptors, {wanted} were expected")]
    Count {
        /// How many came.
        found: usize,
        /// How many should have.
        wanted: usize,
    },
    /// The kernel refuses.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
}

impl Attached {
    /// Takes what the loader handed over. The ring buffer that is the log comes back beside it.
    ///
    /// # Errors
    /// If it is not what was asked for.
    pub fn take(
        settings: &Ebpf,
        facts: &[MapFacts],
        report: &Report,
        fds: Vec<OwnedFd>,
        stats: Option<OwnedFd>,
    ) -> Result<(Attached, Option<OwnedFd>), AttachedError> {
        let wanted = settings.programs.len() * 2 + report.maps.len();
        if fds.len() != wanted {
            return Err(AttachedError::Count {
                found: fds.len(),
                wanted,
            });
        }
        let system = |action| move |source| AttachedError::System { action, source };
        let mut fds = fds.into_iter();
        let mut programs = Vec::new();
        for (wanted, (program, link)) in settings
            .programs
            .iter()
            .zip(std::iter::from_fn(|| fds.next().zip(fds.next())).take(settings.programs.len()))
        {
            programs.push(Held {
                name: wanted.name.clone(),
                kind: wanted.kind,
                target: wanted.attach.clone(),
                program,
                link,
            });
        }
        let mut readers = Vec::new();
        let mut maps = Vec::new();
        let mut log = None;
        for (name, fd) in report.maps.iter().zip(fds) {
            if settings.log.as_ref() == Some(name) {
                log = Some(fd.try_clone().map_err(system("keep the ring buffer"))?);
            }
            let known = facts.iter().find(|f| f.name == *name);
            if let (Some(metric), Some(facts)) = (settings.metrics.get(name), known) {
                let own = fd.try_clone().map_err(system("keep a map"))?;
                readers.push((MapReader::new(own, facts), metric.clone()));
            }
            maps.push(fd);
        }
        let attached = Attached {
            programs,
            maps,
            readers,
            questions: question_socket().map_err(system("open a socket"))?,
            _stats: stats,
        };
        Ok((attached, log))
    }

    /// Packet sockets: they report an error when their interface goes.
    pub fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let filters = self.programs.iter().filter(|p| p.kind == ProgramKind::SocketFilter);
        filters.map(|p| p.link.as_fd())
    }

    /// What has ended an attachment for good.
    #[must_use]
    pub fn lost(&self) -> Option<String> {
        self.programs.iter().find_map(|held| match held.interface() {
            _ if sys::program_info(held.program.as_fd()).is_err() => Some(format!("program `{}` is gone", held.name)),
            Target::Gone => Some(format!(
                "`{}`, where program `{}` was attached, is gone",
                held.target, held.name
            )),
            _ => None,
        })
    }

    /// What keeps an attachment from working now.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.lost().or_else(|| {
            self.programs.iter().find_map(|held| match held.interface() {
                Target::Interface(number) if !is_up(self.questions.as_fd(), number) => Some(format!(
                    "interface `{}` of program `{}` is down",
                    held.target, held.name
                )),
                _ => None,
            })
        })
    }

    /// Run counts and times, and what the settings make of maps. Also the nanoseconds that all programs have run.
    #[must_use]
    pub fn counters(&self) -> (BTreeMap<String, f64>, u64) {
        let mut counters = BTreeMap::new();
        let mut total = 0u64;
        for held in &self.programs {
            if let Ok(info) = sys::program_info(held.program.as_fd()) {
                total = total.saturating_add(info.run_time_ns);
                counters::add(&mut counters, &format!("{}.runs", held.name), info.run_cnt);
                counters::add(&mut counters, &format!("{}.run_ns", held.name), info.run_time_ns);
            }
        }
        for (reader, metric) in &self.readers {
            reader.read(metric, &mut counters);
        }
        (counters, total)
    }

    /// Bytes that the kernel accounts to the maps and programs.
    #[must_use]
    pub fn kernel_bytes(&self) -> u64 {
        let programs = self.programs.iter().map(|held| &held.program);
        self.maps.iter().chain(programs).map(|fd| accounted(fd.as_fd())).sum()
    }
}

enum Target {
    Interface(u32),
    Other,
    Gone,
}

impl Held {
    fn interface(&self) -> Target {
        if self.kind == ProgramKind::SocketFilter {
            return match bound_interface(self.link.as_fd()) {
                Some(number) => Target::Interface(number),
                None => Target::Gone,
            };
        }
        let Ok(words) = sys::link_info(self.link.as_fd()) else {
            return Target::Gone;
        };
        match self.kind {
            ProgramKind::TcIngress | ProgramKind::Xdp => match words[LINK_TARGET] {
                0 => Target::Gone,
                number => Target::Interface(number),
            },
            ProgramKind::CgroupSkb if words[LINK_TARGET] == 0 && words[LINK_TARGET + 1] == 0 => Target::Gone,
            _ => Target::Other,
        }
    }
}

/// The interface that a packet socket listens on; the kernel takes it away when the interface goes.
fn bound_interface(socket: BorrowedFd<'_>) -> Option<u32> {
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the address lives through the call and is as long as said.
    let status = unsafe { libc::getsockname(socket.as_raw_fd(), (&raw mut address).cast(), &raw mut length) };
    match status {
        0 => u32::try_from(address.sll_ifindex).ok().filter(|number| *number > 0),
        _ => None,
    }
}

fn question_socket() -> io::Result<OwnedFd> {
    // SAFETY: plain numbers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn is_up(socket: BorrowedFd<'_>, number: u32) -> bool {
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_ifindex = i32::try_from(number).unwrap_or(0);
    let fd = socket.as_raw_fd();
    // SAFETY: the request lives through both calls; the first writes the name that the second reads, and the second
    // writes the flags that are read after it.
    unsafe {
        libc::ioctl(fd, libc::SIOCGIFNAME as _, &raw mut request) == 0
            && libc::ioctl(fd, libc::SIOCGIFFLAGS as _, &raw mut request) == 0
            && i32::from(request.ifr_ifru.ifru_flags) & libc::IFF_UP != 0
    }
}

fn accounted(fd: BorrowedFd<'_>) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}
