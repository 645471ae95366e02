//! The log of a workload: two files of half the limit each, in the format of the Kubernetes container log
//! (`2026-11-21T04:37:00.123Z stdout F text`), which the field's log shippers read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::file;

/// Longest line kept in one piece, in bytes; a longer one is written in parts marked `P`.
pub const LINE_BYTES_MAX: usize = 4 << 10;
/// Smallest limit of both files together, in bytes.
pub const LOG_BYTES_MIN: u64 = 16 << 10;

/// Lines are gathered up to here, in bytes, before they are written even without a flush.
const PENDING_BYTES_MAX: usize = 4 << 10;
/// Time stamp, stream, mark, blanks and end of line of one entry, in bytes, with room to spare.
const ENTRY_OVERHEAD: usize = 48;

/// Which output of the workload a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// The word in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// Why a log could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open log {path}: {source}")]
pub struct LogError {
    /// The log file.
    pub path: PathBuf,
    /// What the system answered.
    pub source: io::Error,
}

/// What writing the log has cost so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Bytes written.
    pub bytes: u64,
    /// Write calls made.
    pub writes: u64,
    /// Lines lost to a failing disk.
    pub dropped_lines: u64,
}

/// Appends lines to the log of one workload. A disk that fails costs lines, which are counted, never the workload.
#[derive(Debug)]
pub struct LogWriter {
    dir: PathBuf,
    out: File,
    size: u64,
    half: u64,
    pending: Vec<u8>,
    pending_lines: u64,
    stats: LogStats,
}

impl LogWriter {
    /// Opens or continues the log in a state folder; `log_bytes` bounds both files together.
    pub fn open(dir: &Path, log_bytes: u64) -> Result<LogWriter, LogError> {
        let path = dir.join(file::LOG);
        let open = || -> io::Result<(File, u64)> {
            let out = open_append(&path)?;
            let size = out.metadata()?.len();
            Ok((out, size))
        };
        let (out, size) = open().map_err(|source| LogError {
            path: path.clone(),
            source,
        })?;
        Ok(LogWriter {
            dir: dir.to_owned(),
            out,
            size,
            half: log_bytes.max(LOG_BYTES_MIN) / 2,
            pending: Vec::new(),
            pending_lines: 0,
            stats: LogStats::default(),
        })
    }

    /// Takes one line, or with `whole` false a part of one. It reaches the file with the next [`LogWriter::flush`].
    pub fn line(&mut self, stream: Stream, whole: bool, text: &[u8]) {
        let text = &text[..text.len().min(LINE_BYTES_MAX)];
        if self.pending.len() + text.len() + ENTRY_OVERHEAD > PENDING_BYTES_MAX {
            self.flush();
        }
        push_time(&mut self.pending, SystemTime::now());
        let mark: &[u8] = if whole { b" F " } else { b" P " };
        self.pending.push(b' ');
        self.pending.extend_from_slice(stream.as_str().as_bytes());
        self.pending.extend_from_slice(mark);
        self.pending.extend_from_slice(text);
        self.pending.push(b'\n');
        self.pending_lines += 1;
    }

    /// Writes what was taken, in one call; turns the files over first if it would not fit.
    pub fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        match self.write_pending() {
            Ok(()) => self.stats.bytes += self.pending.len() as u64,
            Err(_) => self.stats.dropped_lines += self.pending_lines,
        }
        self.pending.clear();
        self.pending_lines = 0;
    }

    /// What the log has cost since it was opened.
    pub fn stats(&self) -> LogStats {
        self.stats
    }

    fn write_pending(&mut self) -> io::Result<()> {
        let length = self.pending.len() as u64;
        if self.size + length > self.half {
            fs::rename(self.dir.join(file::LOG), self.dir.join(file::LOG_OLD))?;
            self.out = open_append(&self.dir.join(file::LOG))?;
            self.size = 0;
        }
        self.stats.writes += 1;
        // Counted even if it fails half-way, so that the bound holds on a failing disk.
        self.size += length;
        self.out.write_all(&self.pending)
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Cuts a stream of bytes into lines of at most [`LINE_BYTES_MAX`].
#[derive(Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Calls `each(whole, text)` for every line in `bytes` and for every part of one that grew too long.
    pub fn feed(&mut self, mut bytes: &[u8], mut each: impl FnMut(bool, &[u8])) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.take(&bytes[..end], &mut each);
            each(true, &self.partial);
            self.partial.clear();
            bytes = &bytes[end + 1..];
        }
        self.take(bytes, &mut each);
    }

    /// Hands over a last line that had no end.
    pub fn finish(&mut self, mut each: impl FnMut(bool, &[u8])) {
        if !self.partial.is_empty() {
            each(true, &self.partial);
            self.partial.clear();
        }
    }

    fn take(&mut self, mut bytes: &[u8], each: &mut impl FnMut(bool, &[u8])) {
        while self.partial.len() + bytes.len() > LINE_BYTES_MAX {
            let (head, rest) = bytes.split_at(LINE_BYTES_MAX - self.partial.len());
            self.partial.extend_from_slice(head);
            each(false, &self.partial);
            self.partial.clear();
            bytes = rest;
        }
        self.partial.extend_from_slice(bytes);
    }
}

/// One entry of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When it was written, RFC 3339 in UTC by the node's clock.
    pub at: String,
    /// Where it came from.
    pub stream: Stream,
    /// Whether the line goes on in the next entry.
    pub partial: bool,
    /// The text; bytes that are not UTF-8 are replaced.
    pub text: String,
}

/// The newest entries of a log, oldest first, from at most `max_bytes` at the end of its two files.
pub fn tail_log(dir: &Path, max_bytes: u64) -> io::Result<Vec<LogLine>> {
    let (new, new_is_whole) = read_end(&dir.join(file::LOG), max_bytes)?;
    let left = max_bytes.saturating_sub(new.len() as u64);
    let (mut bytes, is_whole) = match (new_is_whole, left) {
        (true, 1..) => read_end(&dir.join(file::LOG_OLD), left)?,
        _ => (Vec::new(), new_is_whole),
    };
    bytes.extend_from_slice(&new);
    let mut lines = bytes.split(|byte| *byte == b'\n');
    if !is_whole {
        lines.next();
    }
    Ok(lines.filter_map(parse_line).collect())
}

/// The end of a file and whether that is all of it; a file that is not there is empty.
fn read_end(path: &Path, max_bytes: u64) -> io::Result<(Vec<u8>, bool)> {
    let mut input = match File::open(path) {
        Ok(input) => input,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), true)),
        Err(error) => return Err(error),
    };
    let skip = input.metadata()?.len().saturating_sub(max_bytes);
    input.seek(SeekFrom::Start(skip))?;
    let mut bytes = Vec::new();
    input.take(max_bytes).read_to_end(&mut bytes)?;
    Ok((bytes, skip == 0))
}

fn parse_line(line: &[u8]) -> Option<LogLine> {
    let text = String::from_utf8_lossy(line);
    let mut fields = text.splitn(4, ' ');
    Some(LogLine {
        at: fields.next()?.to_owned(),
        stream: match fields.next()? {
            "stdout" => Stream::Stdout,
            "stderr" => Stream::Stderr,
            _ => return None,
        },
        partial: match fields.next()? {
            "F" => false,
            "P" => true,
            _ => return None,
        },
        text: fields.next()?.to_owned(),
    })
}

fn open_append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// RFC 3339 in UTC with milliseconds. The calendar is Howard Hinnant's `civil_from_days`.
fn push_time(out: &mut Vec<u8>, now: SystemTime) {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (second / 3_600, second / 60 % 60);
    let millis = since.subsec_millis();
    // Writing into a Vec cannot fail.
    let _ = write!(
        out,
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}.{millis:03}Z",
        second % 60
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_calendar_knows_leap_years() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.007Z"),
            (951_782_400, "2000-02-29T00:00:00.007Z"),
            (1_795_238_220, "2026-11-21T05:17:00.007Z"),
            (4_107_542_399, "2100-02-28T23:59:59.007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.007Z"),
        ] {
            let mut out = Vec::new();
            push_time(
                &mut out,
                UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(7),
            );
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn lines_are_cut_and_long_ones_are_parted() {
        let mut seen = Vec::new();
        let mut lines = Lines::default();
        lines.feed(b"one\ntw", |whole, text| seen.push((whole, text.len())));
        lines.feed(b"o\n\n", |whole, text| seen.push((whole, text.len())));
        lines.feed(&vec![b'x'; LINE_BYTES_MAX * 2 + 5], |whole, text| {
            seen.push((whole, text.len()))
        });
        lines.finish(|whole, text| seen.push((whole, text.len())));
        lines.finish(|_, _| panic!("nothing is left"));
        let parts = [(false, LINE_BYTES_MAX), (false, LINE_BYTES_MAX), (true, 5)];
        assert_eq!(seen[..3], [(true, 3), (true, 3), (true, 0)]);
        assert_eq!(seen[3..], parts);
    }

    #[test]
    fn both_files_together_stay_within_the_limit_and_keep_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let limit = 32 << 10;
        let mut log = LogWriter::open(dir.path(), limit).unwrap();
        for number in 0..5_000 {
            log.line(Stream::Stdout, true, format!("line {number}").as_bytes());
            if number % 7 == 0 {
                log.flush();
            }
            if number % 500 == 0 {
                assert!(total(dir.path()) <= limit);
            }
        }
        log.flush();
        assert!(total(dir.path()) <= limit);
        assert!(log.stats().bytes > limit);
        let tail = tail_log(dir.path(), 20 << 10).unwrap();
        let numbers: Vec<u32> = tail.iter().map(|line| line.text[5..].parse().unwrap()).collect();
        assert_eq!(numbers.last(), Some(&4_999));
        assert!(numbers.len() > 300 && numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]));
    }

    #[test]
    fn a_log_is_continued_and_a_failing_disk_only_counts() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["first", "second"] {
            let mut log = LogWriter::open(dir.path(), 0).unwrap();
            log.line(Stream::Stderr, true, text.as_bytes());
        }
        let texts: Vec<String> = tail_log(dir.path(), 1 << 20)
            .unwrap()
            .into_iter()
            .map(|line| line.text)
            .collect();
        assert_eq!(texts, ["first", "second"]);

        let mut log = LogWriter::open(dir.path(), 0).unwrap();
        fs::remove_dir_all(dir.path()).unwrap();
        for _ in 0..1_000 {
            log.line(Stream::Stdout, true, &[b'x'; 100]);
        }
        log.flush();
        assert!(log.stats().dropped_lines > 0);
    }

    fn total(dir: &Path) -> u64 {
        let size = |name| fs::metadata(dir.join(name)).map_or(0, |meta| meta.len());
        size(file::LOG) + size(file::LOG_OLD)
    }
}
