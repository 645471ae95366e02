//! How a container's health is asked. Each question is a short-lived process of its own, because it enters the
//! container's namespaces; a question that hangs is killed and never holds up anything else.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use cnova_ral::settings::{HttpProbe, Probe};

use crate::sys::{self, Ended};

/// How long an answer may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);
/// Longest status line that is read, in bytes.
const STATUS_LINE_BYTES: usize = 1024;

/// What is asked over the network: nothing is well, else what is wrong.
pub(crate) fn ask_network(probe: &Probe, namespace: Option<&OwnedFd>, own: Option<Ipv4Addr>) -> Option<String> {
    if let Some(namespace) = namespace
        && let Err(error) = sys::enter(namespace.as_fd(), libc::CLONE_NEWNET)
    {
        return Some(format!("cannot enter the container's network: {error}"));
    }
    let end = Instant::now() + PATIENCE;
    let answer = match probe {
        Probe::Tcp(port) => connect(*port, own, end).map(|_| ()),
        Probe::Http(http) => get(http, own, end),
        Probe::Exec(_) => Ok(()),
    };
    answer.err().map(|error| match probe {
        Probe::Tcp(port) => format!("TCP port {port}: {error}"),
        Probe::Http(http) => format!("GET {} on port {}: {error}", http.path, http.port),
        Probe::Exec(_) => error.to_string(),
    })
}

/// What the end of a command says.
pub(crate) fn judge(ended: Option<Ended>) -> Option<String> {
    match ended {
        Some(Ended::Code(0)) => None,
        Some(Ended::Code(code)) => Some(format!("the probe's command ended with code {code}")),
        Some(Ended::Signal(signal)) => Some(format!("the probe's command was ended by signal {signal}")),
        None => Some(format!("the probe's command did not end within {PATIENCE:?}")),
    }
}

fn connect(port: u16, own: Option<Ipv4Addr>, end: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in [Some(Ipv4Addr::LOCALHOST), own].into_iter().flatten() {
        let left = end
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        match TcpStream::connect_timeout(&SocketAddr::new(IpAddr::V4(address), port), left) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn get(http: &HttpProbe, own: Option<Ipv4Addr>, end: Instant) -> io::Result<()> {
    let mut stream = connect(http.port, own, end)?;
    let left = end
        .saturating_duration_since(Instant::now())
        .max(Duration::from_millis(1));
    stream.set_read_timeout(Some(left))?;
    stream.set_write_timeout(Some(left))?;
    let path = &http.path;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: cnova\r\nConnection: close\r\n\r\n"
    )?;
    let mut line = Vec::new();
    let mut byte = [0; 1];
    while line.len() < STATUS_LINE_BYTES && Instant::now() < end && stream.read(&mut byte)? == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    let line = String::from_utf8_lossy(&line).trim_end().to_owned();
    let code = line
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
    match code {
        Some(200..400) => Ok(()),
        Some::<u16>(_) => Err(io::Error::other(format!("answered `{line}`"))),
        None => Err(io::Error::other("the answer is not HTTP")),
    }
}

/// Whether a path can be asked for without changing the request around it.
pub(crate) fn is_path(path: &str) -> bool {
    path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic()) && path.len() <= 1024
}
