//! The three networks.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use serde_json::json;

use crate::support::{Workload, missing, wait_for};

#[test]
fn by_default_there_is_loopback_alone() {
    if missing(&[]) {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let script = format!(
        "grep -c : /proc/net/dev; grep ' lo:\\|lo:' /proc/net/dev | wc -l; nc -w 1 127.0.0.1 {port} </dev/null || echo unreachable; \
         (echo pong | nc -l -p 9000) & sleep 0.5; nc -w 5 127.0.0.1 9000 </dev/null"
    );
    let log = Workload::shell(&script).output();
    assert!(
        log.contains(&"unreachable".to_owned()) && log.contains(&"pong".to_owned()),
        "{log:?}"
    );
}

#[test]
fn the_host_network_is_the_nodes() {
    if missing(&[]) {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let script = format!("echo from inside | nc -w 5 127.0.0.1 {port}; ls /sys 2>/dev/null | wc -l");
    let mut workload = Workload::shell(&script).settings(json!({"network": "host"}));
    workload.start();
    let (mut stream, _) = listener.accept().unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "from inside\n");
    drop(stream);
    assert_eq!(workload.exit().code, Some(0));
    // The node's own devices stay out of sight all the same.
    assert_eq!(workload.log(), ["0"]);
}

#[test]
fn a_network_of_its_own_reaches_the_node_and_back() {
    if missing(&[]) {
        return;
    }
    let own = json!({"network": {"own": {"address": "10.213.77.2", "prefix": 30, "gateway": "10.213.77.1"}}});
    let script = "echo up; while :; do (echo answer) | nc -l -p 7000; done";
    // Twice with one folder: the first pair is gone when the second is made.
    let mut workload = Workload::shell(script).settings(own);
    for _ in 0..2 {
        workload.start_and_wait();
        workload.says("up");
        let mut text = String::new();
        wait_for(|| {
            let mut stream = TcpStream::connect("10.213.77.2:7000").ok()?;
            let _ = stream.write_all(b"x");
            stream.read_to_string(&mut text).ok()
        });
        assert_eq!(text, "answer\n");
        workload.stop(1);
        workload.exit();
    }
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let own = json!({"network": {"own": {"address": "10.213.78.2", "prefix": 30, "gateway": "10.213.78.1"}}});
    let mut workload = Workload::shell(&format!("echo hi | nc -w 5 10.213.78.1 {port}; ip route")).settings(own);
    workload.start();
    let (mut stream, peer) = listener.accept().unwrap();
    assert_eq!(peer.ip().to_string(), "10.213.78.2");
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    drop(stream);
    assert_eq!(workload.exit().code, Some(0));
    assert!(
        workload
            .log()
            .iter()
            .any(|line| line.contains("default via 10.213.78.1")),
        "{:?}",
        workload.log()
    );
}
