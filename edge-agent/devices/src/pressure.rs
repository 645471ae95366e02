//! Pressure: which share of the time something waited for memory, CPU or the disk (PSI), and a wake-up when it rises.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::tree::{ATTRIBUTE_BYTES, Tree};

/// One line of a pressure file: shares of the last 10, 60 and 300 seconds in thousandths, and the sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Average {
    /// Of the last 10 seconds, thousandths.
    pub avg10: u16,
    /// Of the last minute, thousandths.
    pub avg60: u16,
    /// Of the last five minutes, thousandths.
    pub avg300: u16,
    /// Since the start of the machine or the group, microseconds.
    pub total_us: u64,
}

/// How long tasks stalled for one resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stall {
    /// At least one task waited.
    pub some: Average,
    /// All tasks waited, so that nothing got done. Zero where the kernel does not say, as for the CPU of a machine.
    pub full: Average,
}

/// The pressure on a machine or a control group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Memory.
    pub memory: Stall,
    /// CPU.
    pub cpu: Stall,
    /// Disks.
    pub io: Stall,
}

/// Why pressure is not known.
#[derive(Debug, thiserror::Error)]
pub enum PressureError {
    /// The kernel does not measure it.
    #[error(
        "{path} is not there: the kernel measures no pressure (without CONFIG_PSI, or started without psi=1), so \
         nothing is shed for pressure", path = path.display()
    )]
    Absent {
        /// The file.
        path: PathBuf,
    },
    /// The kernel could measure it, and was told not to.
    #[error("{path} is switched off: start the kernel with psi=1 on its command line", path = path.display())]
    Off {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("{path} cannot be read: {source}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file does not look like a pressure file.
    #[error("{path} has no line `some avg10=... avg60=... avg300=... total=...`", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// A trigger that the kernel would refuse.
    #[error(
        "a pressure trigger of {stall_us} us in {window_us} us is not possible: the window must be 500000 to 10000000, \
         and the stall 1 to the window"
    )]
    Window {
        /// The stall that was asked for.
        stall_us: u32,
        /// The window that was asked for.
        window_us: u32,
    },
    /// The kernel refused a trigger.
    #[error(
        "{path} takes no trigger ({source}): without CAP_SYS_RESOURCE the window must be a multiple of 2000000 us",
        path = path.display()
    )]
    Trigger {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Pressure {
    /// The pressure on the whole machine.
    ///
    /// # Errors
    /// [`PressureError`] where the kernel does not measure it; that is usual on small systems, and no fault.
    pub fn read(root: &Path) -> Result<Self, PressureError> {
        Ok(Self {
            memory: Stall::read(root, Path::new("/proc/pressure/memory"))?,
            cpu: Stall::read(root, Path::new("/proc/pressure/cpu"))?,
            io: Stall::read(root, Path::new("/proc/pressure/io"))?,
        })
    }

    /// The pressure within a control group of version 2, given by its folder.
    ///
    /// # Errors
    /// [`PressureError`] as for [`Pressure::read`].
    pub fn read_group(root: &Path, group: &Path) -> Result<Self, PressureError> {
        Ok(Self {
            memory: Stall::read(root, &group.join("memory.pressure"))?,
            cpu: Stall::read(root, &group.join("cpu.pressure"))?,
            io: Stall::read(root, &group.join("io.pressure"))?,
        })
    }
}

impl Stall {
    /// Reads one pressure file.
    ///
    /// # Errors
    /// [`PressureError`] with the reason.
    pub fn read(root: &Path, path: &Path) -> Result<Self, PressureError> {
        let text = Tree::new(root)
            .text(path, ATTRIBUTE_BYTES)
            .map_err(|source| unreadable(path, source))?;
        let line = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        let malformed = || PressureError::Malformed { path: path.to_owned() };
        let some = line("some").and_then(Average::parse).ok_or_else(malformed)?;
        let full = line("full")
            .map_or(Some(Average::default()), Average::parse)
            .ok_or_else(malformed)?;
        Ok(Self { some, full })
    }
}

impl Average {
    fn parse(line: &str) -> Option<Self> {
        let field = |name: &str| {
            line.split_ascii_whitespace()
                .find_map(|f| f.strip_prefix(name)?.strip_prefix('='))
        };
        Some(Self {
            avg10: thousandths(field("avg10")?)?,
            avg60: thousandths(field("avg60")?)?,
            avg300: thousandths(field("avg300")?)?,
            total_us: field("total")?.parse().ok()?,
        })
    }
}

/// `12.34` percent as 123 thousandths. A share above the whole is taken as the whole: averages overshoot a little.
fn thousandths(percent: &str) -> Option<u16> {
    let (whole, part) = percent.split_once('.')?;
    let tenth = part.chars().next()?.to_digit(10)?;
    let value = whole.parse::<u32>().ok()?.checked_mul(10)?.checked_add(tenth)?;
    u16::try_from(value.min(1000)).ok()
}

fn unreadable(path: &Path, source: io::Error) -> PressureError {
    let path = path.to_owned();
    match source.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::NOENT) => PressureError::Absent { path },
        Some(rustix::io::Errno::OPNOTSUPP) => PressureError::Off { path },
        _ => PressureError::Unreadable { path, source },
    }
}

/// Which stalls a trigger counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StallKind {
    /// At least one task waited.
    Some,
    /// All tasks waited.
    Full,
}

/// Tells when tasks stalled for longer than a limit within a window. Its descriptor becomes readable as priority data
/// (`POLLPRI`; in tokio an `AsyncFd` with `Interest::PRIORITY`), at most once per window, and the kernel forgets it
/// when it is dropped.
#[derive(Debug)]
pub struct Trigger {
    file: File,
}

/// The windows that the kernel takes, microseconds.
const WINDOW_US: std::ops::RangeInclusive<u32> = 500_000..=10_000_000;

impl Trigger {
    /// Arms a trigger on a pressure file, for example `/proc/pressure/memory` or `memory.pressure` of a group. The path
    /// is the machine's own: a copy of the file in a folder of a test cannot trigger.
    ///
    /// # Errors
    /// [`PressureError`] if the kernel has no PSI or refuses; without `CAP_SYS_RESOURCE` it only takes windows of whole
    /// multiples of 2 seconds, and before Linux 6.5 none.
    pub fn new(path: &Path, kind: StallKind, stall_us: u32, window_us: u32) -> Result<Self, PressureError> {
        if !WINDOW_US.contains(&window_us) || stall_us == 0 || stall_us > window_us {
            return Err(PressureError::Window { stall_us, window_us });
        }
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let opened = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
        let mut file = opened.map_err(|source| unreadable(path, source))?;
        let name = match kind {
            StallKind::Some => "some",
            StallKind::Full => "full",
        };
        // One write, ended by a zero byte: the kernel reads it as a C string.
        let line = format!("{name} {stall_us} {window_us}\0");
        file.write_all(line.as_bytes())
            .map_err(|source| PressureError::Trigger {
                path: path.to_owned(),
                source,
            })?;
        Ok(Self { file })
    }

    /// Waits for the trigger, at most for a time; whether it fired.
    ///
    /// # Errors
    /// When the group of the file was removed, and when a signal came.
    pub fn wait(&self, at_most: Duration) -> io::Result<bool> {
        let time = Timespec::try_from(at_most).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mut fds = [PollFd::new(&self.file, PollFlags::PRI)];
        poll(&mut fds, Some(&time))?;
        let events = fds[0].revents();
        if events.contains(PollFlags::ERR) {
            return Err(io::Error::other(
                "the control group of this trigger is gone: arm a new one",
            ));
        }
        Ok(events.contains(PollFlags::PRI))
    }
}

impl AsFd for Trigger {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Trigger {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Stall, PressureError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("memory.pressure"), text).unwrap();
        Stall::read(dir.path(), Path::new("/memory.pressure"))
    }

    #[test]
    fn both_lines_are_read() {
        let stall = read(
            "some avg10=12.34 avg60=0.09 avg300=100.00 total=123456789012\n\
             full avg10=0.10 avg60=0.00 avg300=100.27 total=7\n",
        )
        .unwrap();
        assert_eq!((stall.some.avg10, stall.some.avg60, stall.some.avg300), (123, 0, 1000));
        assert_eq!(stall.some.total_us, 123_456_789_012);
        assert_eq!((stall.full.avg10, stall.full.avg300, stall.full.total_us), (1, 1000, 7));
    }

    #[test]
    fn an_old_kernel_has_no_full_line_for_the_cpu() {
        let stall = read("some avg10=1.00 avg60=0.00 avg300=0.00 total=5\n").unwrap();
        assert_eq!((stall.some.avg10, stall.full), (10, Average::default()));
    }

    #[test]
    fn what_is_no_pressure_file_is_named() {
        let line = "avg10=1.00 avg60=0.00 avg300=0.00 total=5";
        for odd in [
            "",
            "some",
            "some avg10=x",
            "some avg10=-1.0 avg60=0.00 avg300=0.00 total=5",
            line,
        ] {
            assert!(matches!(read(odd), Err(PressureError::Malformed { .. })), "{odd}");
        }
        let odd_full = format!("some {line}\nfull avg10=99999999999.0");
        assert!(matches!(read(&odd_full), Err(PressureError::Malformed { .. })));
        assert!(matches!(read(&"x".repeat(5000)), Err(PressureError::Unreadable { .. })));
        let absent = Pressure::read(Path::new("/nonexistent")).unwrap_err();
        assert!(
            matches!(&absent, PressureError::Absent { path } if path.ends_with("proc/pressure/memory")),
            "{absent}"
        );
        assert!(absent.to_string().contains("CONFIG_PSI"));
    }

    #[test]
    fn a_trigger_that_the_kernel_would_refuse_is_refused_with_the_rule() {
        for (stall, window) in [(0, 1_000_000), (2_000_000, 1_000_000), (1, 499_999), (1, 10_000_001)] {
            let refused = Trigger::new(Path::new("/proc/pressure/cpu"), StallKind::Some, stall, window);
            assert!(matches!(refused, Err(PressureError::Window { .. })), "{stall} {window}");
        }
        let absent = Trigger::new(Path::new("/nonexistent/x"), StallKind::Full, 1, 2_000_000);
        assert!(matches!(absent, Err(PressureError::Absent { .. })));
    }
}
