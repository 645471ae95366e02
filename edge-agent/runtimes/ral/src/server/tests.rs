use std::io::{BufRead, BufReader};
use std::sync::Mutex;

use super::*;
use crate::{CallError, Client, Phase};

#[derive(Default)]
struct Fake {
    stops: Mutex<Vec<Option<Duration>>>,
}

impl Control for Fake {
    fn health(&self) -> Health {
        Health {
            healthy: true,
            phase: Phase::Running,
            uptime_ms: 1,
            detail: None,
        }
    }

    fn metrics(&self) -> Metrics {
        Metrics {
            memory_bytes: 65_536,
            counters: [("events".to_owned(), 3.0)].into(),
            ..Metrics::default()
        }
    }

    fn stop(&self, grace: Option<Duration>) {
        self.stops.lock().unwrap().push(grace);
    }
}

fn raw(dir: &Path) -> BufReader<UnixStream> {
    BufReader::new(UnixStream::connect(dir.join(file::SOCKET)).unwrap())
}

/// What comes back for raw bytes, and whether the connection is closed after it.
fn exchange(dir: &Path, request: &[u8]) -> (String, bool) {
    let mut stream = raw(dir);
    stream.get_mut().write_all(request).unwrap();
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    let mut rest = Vec::new();
    // Closing with unread bytes may be seen as a reset instead of an end.
    let closed = stream.read_to_end(&mut rest).map_or(true, |_| rest.is_empty());
    (line, closed)
}

#[test]
fn every_request_is_answered_over_one_connection() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Arc::new(Fake::default());
    let server = serve(dir.path(), fake.clone()).unwrap();
    let mut client = Client::connect(dir.path()).unwrap();
    assert!(client.health().unwrap().healthy);
    assert_eq!(client.metrics().unwrap().counters["events"], 3.0);
    client.stop(Some(Duration::from_millis(250))).unwrap();
    client.stop(None).unwrap();
    assert_eq!(*fake.stops.lock().unwrap(), [Some(Duration::from_millis(250)), None]);
    drop(server);
    assert!(!dir.path().join(file::SOCKET).exists());
    assert!(matches!(client.health(), Err(CallError::Connect { .. })));
}

#[test]
fn a_folder_with_a_long_path_works() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("d".repeat(120)).join("e".repeat(120));
    std::fs::create_dir_all(&deep).unwrap();
    let _server = serve(&deep, Arc::new(Fake::default())).unwrap();
    assert!(Client::connect(&deep).unwrap().health().unwrap().healthy);
}

#[test]
fn garbage_is_answered_and_closed_and_harms_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let _server = serve(dir.path(), Arc::new(Fake::default())).unwrap();
    let mut good = Client::connect(dir.path()).unwrap();
    let long = vec![b'x'; REQUEST_BYTES_MAX * 3];
    let cases: [&[u8]; 5] = [b"\n", b"hello\n", b"{\"op\":\"explode\"}\n", b"\xff\xfe\x00\n", &long];
    for request in cases {
        let (line, closed) = exchange(dir.path(), request);
        assert!(
            line.starts_with("{") && line.contains("\"ok\":false") && line.contains("\"error\""),
            "{line}"
        );
        assert!(closed);
        assert!(good.health().unwrap().healthy);
    }
}

#[test]
fn requests_in_pieces_and_in_one_go_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let _server = serve(dir.path(), Arc::new(Fake::default())).unwrap();
    let mut stream = raw(dir.path());
    for piece in ["{\"op\":", "\"health\"}\n{\"op\":\"met", "rics\"}\n"] {
        stream.get_mut().write_all(piece.as_bytes()).unwrap();
    }
    for expected in ["healthy", "counters"] {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        assert!(line.contains(expected), "{line}");
    }
}

#[test]
fn silent_connections_do_not_keep_the_agent_out() {
    let dir = tempfile::tempdir().unwrap();
    let _server = serve(dir.path(), Arc::new(Fake::default())).unwrap();
    let silent: Vec<_> = (0..CONNECTIONS_MAX * 3).map(|_| raw(dir.path())).collect();
    let mut client = Client::connect(dir.path()).unwrap();
    for _ in 0..10 {
        assert!(client.health().unwrap().healthy);
    }
    drop(silent);
}

#[test]
fn a_client_outlives_a_runtime_that_came_back() {
    let dir = tempfile::tempdir().unwrap();
    let first = serve(dir.path(), Arc::new(Fake::default())).unwrap();
    let mut client = Client::connect(dir.path()).unwrap();
    drop(first);
    let _second = serve(dir.path(), Arc::new(Fake::default())).unwrap();
    assert!(client.health().unwrap().healthy);
}

#[test]
fn a_runtime_that_never_answers_costs_a_timeout_even_with_a_full_queue() {
    let dir = tempfile::tempdir().unwrap();
    let _hung = UnixListener::bind(dir.path().join(file::SOCKET)).unwrap();
    let mut waiting = Vec::new();
    let refused = (0..10_000).find_map(
        |_| match Client::connect_with_timeout(dir.path(), Duration::from_millis(20)) {
            Ok(client) => {
                waiting.push(client);
                None
            }
            Err(error) => Some(error),
        },
    );
    assert!(matches!(refused, Some(CallError::Timeout { .. })), "{refused:?}");
    assert!(matches!(waiting[0].health(), Err(CallError::Timeout { .. })));
}
