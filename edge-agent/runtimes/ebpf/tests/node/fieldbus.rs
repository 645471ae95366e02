//! The example on a cable: real TCP connections that speak Modbus, and PROFINET frames.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use serde_json::{Value, json};

use crate::network::{Namespace, frame};
use crate::objects::fieldbus_watch;
use crate::support::{Workload, is_root, wait_for};

const PROFINET: u16 = 0x8892;
const DEVICE: [u8; 6] = [2, 0, 0, 0, 0, 1];
const ENGINEER: [u8; 6] = [2, 0, 0, 0, 0, 2];
const STRANGER: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// The settings of the example's manifest, for another interface.
fn settings() -> Value {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../../examples/fieldbus-watch/fieldbus-watch.yaml"
    );
    let manifest: Value = serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut settings = manifest["workloads"][0]["settings"].clone();
    settings["programs"][0]["attach"] = json!("west");
    settings["init"] = json!({
        "masters": { "0a4d0002": "01" },
        "engineers": { "020000000002": "01" },
    });
    settings
}

/// A slave that answers everything with an echo of the function, or with an exception for function 99.
fn slave(listener: TcpListener) {
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut header = [0; 8];
                while stream.read_exact(&mut header).is_ok() {
                    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
                    let mut rest = vec![0; length - 2];
                    stream.read_exact(&mut rest).unwrap();
                    let function = if header[7] == 99 { 99 | 0x80 } else { header[7] };
                    let answer = [header[0], header[1], 0, 0, 0, 3, header[6], function, 1];
                    stream.write_all(&answer).unwrap();
                }
            });
        }
    });
}

/// One connection from an address, with one exchange for each request (unit, function, data).
fn master(namespace: &Namespace, from: &'static str, requests: Vec<(u8, u8, Vec<u8>)>) {
    namespace.run(move || {
        let mut stream = connect_from(from, "10.77.0.1:502");
        for (unit, function, data) in requests {
            let length = u8::try_from(data.len() + 2).unwrap();
            stream
                .write_all(&[&[0, 7, 0, 0, 0, length, unit, function], &data[..]].concat())
                .unwrap();
            stream.read_exact(&mut [0; 9]).unwrap();
        }
    });
}

fn connect_from(from: &str, to: &str) -> TcpStream {
    let from: SocketAddr = format!("{from}:0").parse().unwrap();
    let to: SocketAddr = to.parse().unwrap();
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &from).unwrap();
    rustix::net::connect(&socket, &to).unwrap();
    TcpStream::from(socket)
}

fn started() -> Option<(Workload, Namespace, Namespace)> {
    let object = fieldbus_watch()?;
    let (west, east) = is_root().then(Namespace::pair).flatten()?;
    let mut workload = Workload::new(&object, settings());
    workload.start_in(&west);
    Some((workload, west, east))
}

#[test]
fn modbus_is_counted_and_writes_of_unknown_masters_are_told() {
    let Some((mut workload, west, east)) = started() else {
        return;
    };
    slave(west.run(|| TcpListener::bind("10.77.0.1:502").unwrap()));
    let reads = vec![(1, 3, vec![0, 10, 0, 2]); 5];
    let writes = vec![
        (1, 16, vec![0, 40, 0, 2, 4, 1, 2, 3, 4]),
        (2, 6, vec![0, 7, 0xff, 0]),
        (1, 22, vec![0, 4, 0, 0xf2, 0, 0x25]),
        (1, 23, vec![0, 3, 0, 6, 0, 14, 0, 3, 6, 0, 1, 0, 2, 0, 3]),
        (1, 99, vec![0]),
    ];
    master(&east, "10.77.0.2", [reads.clone(), writes.clone()].concat());
    assert_eq!(workload.counter("modbus.writes"), 4.0);
    assert_eq!(workload.log(), Vec::<String>::new(), "a known master may write");
    master(&east, "10.77.0.9", [reads, writes].concat());
    wait_for("four lines", || (workload.log().len() >= 4).then_some(()));
    assert_eq!(
        workload.log(),
        [
            "write from unknown master 10.77.0.9 -> 10.77.0.1 unit 1 function 16 address 40 count 2",
            "write from unknown master 10.77.0.9 -> 10.77.0.1 unit 2 function 6 address 7 value 65280",
            "write from unknown master 10.77.0.9 -> 10.77.0.1 unit 1 function 22 address 4 mask 00f2",
            "write from unknown master 10.77.0.9 -> 10.77.0.1 unit 1 function 23 address 14 count 3",
        ]
    );
    let metrics = workload.metrics();
    for (name, expected) in [
        ("modbus.requests", 20.0),
        ("modbus.responses", 18.0),
        ("modbus.exceptions", 2.0),
        ("modbus.writes", 8.0),
        ("modbus.unknown_writes", 4.0),
        ("modbus.10.77.0.9>10.77.0.1.unit1.fn3", 5.0),
        ("modbus.10.77.0.2>10.77.0.1.unit1.fn16", 1.0),
        ("modbus.10.77.0.9>10.77.0.1.unit2.fn6", 1.0),
        ("events_lost", 0.0),
    ] {
        assert_eq!(
            metrics.counters.get(name).copied(),
            Some(expected),
            "{name} of {metrics:?}"
        );
    }
    assert!(metrics.counters["frames"] > 40.0);
    workload.stop();
}

/// A Modbus request in TCP in IPv4, as a frame body.
fn modbus_packet(source: [u8; 4], ip_options: usize, pdu: &[u8], fragment: u16) -> Vec<u8> {
    let tcp: [u8; 20] = {
        let mut tcp = [0; 20];
        tcp[..4].copy_from_slice(&[0xc0, 0, 1, 0xf6]);
        tcp[12] = 0x50;
        tcp
    };
    let header = 20 + ip_options;
    let total = u16::try_from(header + tcp.len() + pdu.len()).unwrap();
    let mut ip = vec![0; header];
    ip[0] = 0x40 | u8::try_from(header / 4).unwrap();
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    ip[6..8].copy_from_slice(&fragment.to_be_bytes());
    ip[9] = 6;
    ip[12..16].copy_from_slice(&source);
    ip[16..20].copy_from_slice(&[10, 0, 0, 2]);
    [&ip[..], &tcp, pdu].concat()
}

#[test]
fn tags_options_fragments_and_short_frames_are_read_right() {
    let Some((mut workload, _west, east)) = started() else {
        return;
    };
    let write = [0, 1, 0, 0, 0, 6, 1, 5, 0, 9, 0xff, 0];
    let plain = modbus_packet([10, 0, 0, 9], 0, &write, 0);
    let tagged = [&[0, 100, 8, 0][..], &plain].concat();
    let twice = [&[0, 5, 0x81, 0, 0, 100, 8, 0][..], &plain].concat();
    let mut cut = frame(DEVICE, STRANGER, 0x0800, &modbus_packet([10, 0, 0, 10], 0, &write, 0));
    cut.truncate(14 + 20 + 16);
    let frames = vec![
        frame(DEVICE, STRANGER, 0x0800, &plain),
        frame(DEVICE, STRANGER, 0x8100, &tagged),
        frame(DEVICE, STRANGER, 0x88a8, &twice),
        frame(DEVICE, STRANGER, 0x0800, &modbus_packet([10, 0, 0, 11], 8, &write, 0)),
        // Not seen: a later fragment, another protocol number, an absurd length, no data, a frame that ends too
        // early.
        frame(DEVICE, STRANGER, 0x0800, &modbus_packet([10, 0, 0, 12], 0, &write, 100)),
        frame(
            DEVICE,
            STRANGER,
            0x0800,
            &modbus_packet([10, 0, 0, 13], 0, &[0, 1, 0, 9, 0, 6, 1, 5, 0, 9, 0xff, 0], 0),
        ),
        frame(
            DEVICE,
            STRANGER,
            0x0800,
            &modbus_packet([10, 0, 0, 14], 0, &[0, 1, 0, 0, 9, 6, 1, 5, 0, 9, 0xff, 0], 0),
        ),
        frame(DEVICE, STRANGER, 0x0800, &modbus_packet([10, 0, 0, 15], 0, &[], 0)),
        cut,
    ];
    let count = frames.len();
    east.send_frames("east", frames);
    wait_for("all frames", || {
        (workload.counter("frames") >= count as f64).then_some(())
    });
    wait_for("four lines", || (workload.log().len() >= 4).then_some(()));
    let line = |source: &str| {
        format!("write from unknown master {source} -> 10.0.0.2 unit 1 function 5 address 9 value 65280")
    };
    assert_eq!(
        workload.log(),
        [line("10.0.0.9"), line("10.0.0.9"), line("10.0.0.9"), line("10.0.0.11")]
    );
    assert_eq!(workload.counter("modbus.requests"), 4.0);
    workload.stop();
}

#[test]
fn profinet_is_counted_and_sets_of_strangers_are_told() {
    let Some((mut workload, _west, east)) = started() else {
        return;
    };
    let pn = |from, id: u16, rest: &[u8]| frame(DEVICE, from, PROFINET, &[&id.to_be_bytes()[..], rest].concat());
    let frames = vec![
        pn(DEVICE, 0x8000, &[0; 40]),
        pn(DEVICE, 0xc123, &[0; 40]),
        pn(DEVICE, 0xfc01, &[0; 8]),
        pn(DEVICE, 0xfe01, &[0; 8]),
        pn(ENGINEER, 0xfefe, &[5, 0, 0, 0]),
        pn(ENGINEER, 0xfefd, &[4, 0, 0, 0]),
        pn(STRANGER, 0xfefd, &[4, 1, 0, 0]),
        pn(STRANGER, 0xfefd, &[3, 0, 0, 0]),
        pn(STRANGER, 0xfefd, &[4, 0, 0, 0]),
        pn(DEVICE, 0x0001, &[0; 8]),
    ];
    east.send_frames("east", frames);
    wait_for("the last frame", || {
        (workload.counter("profinet.other") == 1.0).then_some(())
    });
    wait_for("a line", || (!workload.log().is_empty()).then_some(()));
    assert_eq!(
        workload.log(),
        ["DCP set from unknown station 02:00:00:00:00:09 -> 02:00:00:00:00:01"]
    );
    for (name, expected) in [
        ("profinet.cyclic", 2.0),
        ("profinet.alarms", 2.0),
        ("profinet.dcp", 5.0),
        ("profinet.dcp_sets", 2.0),
        ("profinet.unknown_sets", 1.0),
    ] {
        assert_eq!(workload.counter(name), expected, "{name}");
    }
    workload.stop();
}

#[test]
fn a_flood_of_events_is_cut_and_the_counters_stay_right() {
    let Some((mut workload, _west, east)) = started() else {
        return;
    };
    let set = frame(DEVICE, STRANGER, PROFINET, &[0xfe, 0xfd, 4, 0, 0, 0]);
    east.send_frames("east", vec![set; 3000]);
    wait_for("all frames", || {
        (workload.counter("profinet.unknown_sets") == 3000.0).then_some(())
    });
    wait_for("a line about what was dropped", || {
        workload
            .log()
            .iter()
            .any(|line| line.contains("records dropped: more than 200 in one second"))
            .then_some(())
    });
    let metrics = workload.metrics();
    assert!(
        metrics.log_dropped_lines > 0 && metrics.counters["log.dropped_records"] > 0.0,
        "{metrics:?}"
    );
    assert!(workload.health().healthy);
    workload.stop();
}
