//! The ring buffer as log.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use aya::maps::{Map, MapData, MapError, RingBuf};
use cnova_ral::settings::{Ebpf, LogEncoding};
use cnova_ral::{Lines, LogWriter, Stream};

use crate::format::{Template, TemplateError};

/// Lines that are written in one second; records beyond are counted and dropped.
pub const LINES_PER_SECOND_MAX: u32 = 200;
/// Records that are taken before anything else is looked at.
pub const RECORDS_AT_ONCE_MAX: usize = 1024;

const SECOND: Duration = Duration::from_secs(1);

/// Makes lines of records.
#[derive(Debug)]
pub struct Writer {
    encoding: LogEncoding,
    formats: Vec<Template>,
    second: Instant,
    lines: u32,
    dropped_now: u64,
    dropped: u64,
}

impl Writer {
    /// As the settings say.
    ///
    /// # Errors
    /// A format that is none; the policy refuses those before.
    pub fn new(settings: &Ebpf) -> Result<Writer, TemplateError> {
        let formats = settings.log_formats.iter();
        Ok(Writer {
            encoding: settings.log_encoding,
            formats: formats
                .map(|text| Template::parse(text, usize::from(u16::MAX)))
                .collect::<Result<_, _>>()?,
            second: Instant::now(),
            lines: 0,
            dropped_now: 0,
            dropped: 0,
        })
    }

    /// Writes a record, or counts it if this second has had its lines.
    pub fn write(&mut self, record: &[u8], now: Instant, log: &mut LogWriter) {
        self.turn(now, log);
        if self.lines >= LINES_PER_SECOND_MAX {
            self.dropped_now += 1;
            self.dropped += 1;
            return;
        }
        self.lines += 1;
        let mut lines = Lines::default();
        let mut put = |whole: bool, text: &[u8]| log.line(Stream::Stdout, whole, text);
        lines.feed(&self.render(record), &mut put);
        lines.finish(&mut put);
    }

    /// Begins a new second if it is time, and says in the log what the last one has lost.
    pub fn turn(&mut self, now: Instant, log: &mut LogWriter) {
        if now.duration_since(self.second) < SECOND {
            return;
        }
        self.second = now;
        self.lines = 0;
        let lost = std::mem::take(&mut self.dropped_now);
        if lost > 0 {
            let text = format!("{lost} records dropped: more than {LINES_PER_SECOND_MAX} in one second");
            log.line(Stream::Stderr, true, text.as_bytes());
        }
    }

    /// Whether something has been dropped that the log does not say yet.
    #[must_use]
    pub fn owes(&self) -> bool {
        self.dropped_now > 0
    }

    /// Records that have been dropped since the start.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn render(&self, record: &[u8]) -> Vec<u8> {
        match self.encoding {
            LogEncoding::Text => {
                let end = record.iter().position(|byte| *byte == 0).unwrap_or(record.len());
                String::from_utf8_lossy(&record[..end]).into_owned().into_bytes()
            }
            LogEncoding::Hex => hex(record),
            LogEncoding::Format => {
                let chosen = record.first().and_then(|number| self.formats.get(usize::from(*number)));
                chosen.map_or_else(|| hex(record), |template| template.render(record).into_bytes())
            }
        }
    }
}

fn hex(record: &[u8]) -> Vec<u8> {
    let text: String = record.iter().map(|byte| format!("{byte:02x}")).collect();
    text.into_bytes()
}

/// The ring buffer, mapped into this process.
pub struct Ring {
    ring: RingBuf<MapData>,
}

impl Ring {
    /// Maps it.
    ///
    /// # Errors
    /// If it is none, or the kernel refuses.
    pub fn open(fd: OwnedFd) -> Result<Ring, MapError> {
        let map = Map::from_map_data(MapData::from_fd(fd)?)?;
        let ring = RingBuf::try_from(map)?;
        Ok(Ring { ring })
    }

    /// Takes the records that are there, at most [`RECORDS_AT_ONCE_MAX`].
    pub fn drain(&mut self, mut act: impl FnMut(&[u8])) {
        for _ in 0..RECORDS_AT_ONCE_MAX {
            match self.ring.next() {
                Some(record) => act(&record),
                None => return,
            }
        }
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as the ring, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cnova_ral::tail_log;

    fn lines(settings: &Ebpf, records: &[&[u8]]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::open(dir.path(), 1 << 20).unwrap();
        let mut writer = Writer::new(settings).unwrap();
        let now = Instant::now();
        for record in records {
            writer.write(record, now, &mut log);
        }
        writer.turn(now + SECOND * 2, &mut log);
        log.flush();
        tail_log(dir.path(), 1 << 20)
            .unwrap()
            .into_iter()
            .map(|line| line.text)
            .collect()
    }

    #[test]
    fn records_become_lines() {
        let mut settings = Ebpf::default();
        assert_eq!(
            lines(&settings, &[b"hello\0\0\0", b"two\nlines", b"b\xffd"]),
            ["hello", "two", "lines", "b\u{fffd}d"]
        );
        settings.log_encoding = LogEncoding::Hex;
        assert_eq!(lines(&settings, &[&[0, 1, 0xfe]]), ["0001fe"]);
        settings.log_encoding = LogEncoding::Format;
        settings.log_formats = vec!["zero {1:u8}".into(), "one {2:u8}".into()];
        assert_eq!(
            lines(&settings, &[&[0, 7, 8], &[1, 7, 8], &[2, 7, 8]]),
            ["zero 7", "one 8", "020708"]
        );
    }

    #[test]
    fn a_flood_is_cut_and_counted() {
        let many = vec![&b"x"[..]; LINES_PER_SECOND_MAX as usize + 5];
        let lines = lines(&Ebpf::default(), &many);
        assert_eq!(lines.len(), LINES_PER_SECOND_MAX as usize + 1);
        assert_eq!(lines.last().unwrap(), "5 records dropped: more than 200 in one second");
    }

    #[test]
    fn a_long_record_is_parted() {
        let settings = Ebpf {
            log_encoding: LogEncoding::Hex,
            ..Ebpf::default()
        };
        let lines = lines(&settings, &[&[0xab; 3000]]);
        assert_eq!((lines.len(), lines.concat().len()), (2, 6000));
    }
}
