//! What a workload prints: lines for the log, and lines that are numbers.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use cnova_ral::{COUNTERS_MAX, LINE_BYTES_MAX, Lines, LogStats, LogWriter, Stream};
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use crate::control::Shared;

/// A line of standard output that begins like this is `@metric NAME VALUE` and not for the log.
const METRIC: &[u8] = b"@metric ";
/// Longest name of a counter, in bytes.
const NAME_BYTES_MAX: usize = 64;
/// What a workload may hand over in one write, in bytes.
const WRITE_BYTES_MAX: usize = 64 << 10;

/// The log and the counters of the workload.
pub(crate) struct Output {
    log: LogWriter,
    out: Lines,
    err: Lines,
    counters: BTreeMap<String, f64>,
}

impl Output {
    pub(crate) fn new(log: LogWriter) -> Output {
        Output {
            log,
            out: Lines::default(),
            err: Lines::default(),
            counters: BTreeMap::new(),
        }
    }

    pub(crate) fn counters(&self) -> &BTreeMap<String, f64> {
        &self.counters
    }

    /// Sets a counter; one with a name that is too long or odd, or without a number, is left out.
    pub(crate) fn count(&mut self, name: &str, value: f64) {
        if is_name(name) && value.is_finite() {
            set_counter(&mut self.counters, name, value);
        }
    }

    pub(crate) fn log_stats(&self) -> LogStats {
        self.log.stats()
    }

    fn take(&mut self, stream: Stream, bytes: &[u8]) {
        let Output {
            log,
            out,
            err,
            counters,
        } = self;
        match stream {
            Stream::Stdout => out.feed(bytes, |whole, text| {
                if !(whole && take_metric(counters, text)) {
                    log.line(stream, whole, text);
                }
            }),
            Stream::Stderr => err.feed(bytes, |whole, text| log.line(stream, whole, text)),
        }
        log.flush();
    }

    /// A line of the runtime's own in the workload's log.
    pub(crate) fn say(&mut self, text: &str) {
        let length = text.floor_char_boundary(LINE_BYTES_MAX);
        self.log
            .line(Stream::Stderr, true, text[..length].replace('\n', " ").as_bytes());
        self.log.flush();
    }

    /// Writes what was printed without an end of line.
    pub(crate) fn finish(&mut self) {
        let Output { log, out, err, .. } = self;
        out.finish(|whole, text| log.line(Stream::Stdout, whole, text));
        err.finish(|whole, text| log.line(Stream::Stderr, whole, text));
        log.flush();
    }
}

/// True if the line is a well-formed metric; a malformed one goes to the log, where its author finds it.
fn take_metric(counters: &mut BTreeMap<String, f64>, line: &[u8]) -> bool {
    let Some((name, value)) = parse_metric(line) else {
        return false;
    };
    set_counter(counters, name, value);
    true
}

fn set_counter(counters: &mut BTreeMap<String, f64>, name: &str, value: f64) {
    if let Some(counter) = counters.get_mut(name) {
        *counter = value;
    } else if counters.len() < COUNTERS_MAX {
        counters.insert(name.to_owned(), value);
    }
}

fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(plain)
}

fn parse_metric(line: &[u8]) -> Option<(&str, f64)> {
    let rest = std::str::from_utf8(line.strip_prefix(METRIC)?).ok()?;
    let (name, value) = rest.trim().split_once(' ')?;
    let value: f64 = value.trim().parse().ok()?;
    (is_name(name) && value.is_finite()).then_some((name, value))
}

/// Standard output or standard error of the workload. Writing never waits: the log is a local file.
#[derive(Clone)]
pub(crate) struct Sink {
    shared: Arc<Shared>,
    stream: Stream,
}

impl Sink {
    pub(crate) fn new(shared: Arc<Shared>, stream: Stream) -> Sink {
        Sink { shared, stream }
    }

    fn take(&self, bytes: &[u8]) {
        self.shared.with_output(|output| output.take(self.stream, bytes));
    }
}

impl IsTerminal for Sink {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Sink {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Sink {
    async fn ready(&mut self) {}
}

impl OutputStream for Sink {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.take(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES_MAX)
    }
}

impl AsyncWrite for Sink {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.take(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_parsed_strictly() {
        assert_eq!(parse_metric(b"@metric rms 1.5e2"), Some(("rms", 150.0)));
        assert_eq!(parse_metric(b"@metric a.b-c_d  -3 "), Some(("a.b-c_d", -3.0)));
        for bad in [
            "@metric",
            "@metric x",
            "@metric x y",
            "@metric x inf",
            "@metric x 1 2",
            "@metric sp\u{e4}t 1",
            "@metricx 1",
            " @metric x 1",
        ] {
            assert_eq!(parse_metric(bad.as_bytes()), None, "{bad}");
        }
        let long = format!("@metric {} 1", "n".repeat(NAME_BYTES_MAX + 1));
        assert_eq!(parse_metric(long.as_bytes()), None);
    }

    #[test]
    fn the_number_of_counters_is_bounded() {
        let mut counters = BTreeMap::new();
        for number in 0..COUNTERS_MAX + 10 {
            assert!(take_metric(&mut counters, format!("@metric n{number} 1").as_bytes()));
        }
        assert!(take_metric(&mut counters, b"@metric n0 2"));
        assert_eq!((counters.len(), counters["n0"]), (COUNTERS_MAX, 2.0));
    }
}
