use super::*;
use cnova_ral::settings::Program;

const BOUNDS: Bounds = Bounds {
    possible_cpus: 4,
    memory_bytes: 64 << 20,
};

fn map(name: &str, map_type: u32) -> MapFacts {
    MapFacts {
        name: name.to_owned(),
        map_type,
        key_size: 4,
        value_size: 8,
        max_entries: 16,
        flags: 0,
        pinned: false,
    }
}

fn verdict() -> Verdict {
    Verdict {
        programs: vec![ProgramFacts {
            name: "count".into(),
            section: "socket-filter".into(),
            kind: Some(ProgramKind::SocketFilter),
            instructions: 10,
            helpers: vec![1, 26],
            calls_kernel: false,
            holds_addresses: false,
        }],
        maps: vec![map("seen", 1), map("events", RING_BUFFER)],
        undefined: Vec::new(),
        relocates_types: false,
    }
}

fn settings() -> Ebpf {
    Ebpf {
        programs: vec![Program {
            name: "count".into(),
            kind: ProgramKind::SocketFilter,
            attach: "eth0".into(),
            promiscuous: false,
        }],
        ..Ebpf::default()
    }
}

type Spoil = fn(&mut Verdict, &mut Ebpf);

fn refusal(spoil: Spoil) -> String {
    let (mut verdict, mut settings) = (verdict(), settings());
    spoil(&mut verdict, &mut settings);
    judge(&verdict, &settings, BOUNDS).unwrap_err().to_string()
}

#[test]
fn a_plain_object_passes() {
    let bytes = judge(&verdict(), &settings(), BOUNDS).unwrap();
    assert_eq!(
        bytes,
        16 * (48 + 8 + 8) + 16 * 16 + 4096 + 3 * 4096 + 2 * MAP_FIXED_BYTES
    );
}

#[test]
fn programs_are_refused_with_their_name_and_the_reason() {
    let cases: [(Spoil, &str); 13] = [
        (|_, s| s.programs.clear(), "settings.programs: 0 programs"),
        (
            |_, s| s.programs = vec![s.programs[0].clone(); 2],
            "`count` is named twice",
        ),
        (
            |_, s| s.programs[0].name = "other".into(),
            "program `other`: is not in the object, which has `count`",
        ),
        (
            |v, s| {
                s.programs[0].kind = ProgramKind::Xdp;
                s.programs[0].promiscuous = true;
                v.programs[0].kind = Some(ProgramKind::Xdp);
            },
            "only a socket filter can be promiscuous",
        ),
        (
            |_, s| s.programs[0].kind = ProgramKind::Xdp,
            "settings say xdp, its section makes it socket-filter",
        ),
        (
            |v, _| {
                v.programs[0].kind = None;
                v.programs[0].section = "KProbe".into();
            },
            "its section makes it KProbe",
        ),
        (
            |v, _| v.programs[0].instructions = 70_000,
            "70000 instructions, at most 65536",
        ),
        (|v, _| v.programs[0].calls_kernel = true, "kfuncs"),
        (
            |v, _| v.programs[0].holds_addresses = true,
            "only the loader may fill in",
        ),
        (
            |v, _| v.programs[0].helpers.push(113),
            "calls bpf_probe_read_kernel, which a socket-filter may not: add it to settings.helpers",
        ),
        (|v, _| v.programs[0].helpers.push(12), "calls bpf_tail_call"),
        (
            |v, _| v.undefined.push("bpf_task_acquire".into()),
            "`bpf_task_acquire` of the kernel: kernel functions (kfuncs)",
        ),
        (|v, _| v.relocates_types = true, "CO-RE"),
    ];
    for (spoil, expected) in cases {
        let message = refusal(spoil);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn maps_are_refused_with_their_name_and_the_reason() {
    let cases: [(Spoil, &str); 9] = [
        (|v, _| v.maps[0].pinned = true, "map `seen`: wants to be pinned"),
        (
            |v, _| v.maps[0].map_type = 3,
            "map `seen`: is of type 3, which is not allowed; allowed are `hash`",
        ),
        (|v, _| v.maps[0].flags = 0x400, "has flags 0x400"),
        (
            |v, _| v.maps[0].max_entries = u32::MAX,
            "settings.mapBytes allows 4194304",
        ),
        (|v, _| v.maps[1].max_entries = 8 << 20, "settings.mapBytes allows"),
        (|_, s| s.map_bytes = Some(100), "settings.mapBytes allows 100"),
        (
            |v, s| {
                s.map_bytes = Some(u64::MAX);
                v.maps[0].max_entries = 100_000_000;
            },
            "the workload's memory is 67108864",
        ),
        (
            |v, _| v.maps = (0..=MAPS_MAX).map(|n| map(&format!("m{n}"), 1)).collect(),
            "has 33 maps, at most 32",
        ),
        (
            |v, s| {
                v.maps[0].map_type = 5;
                s.map_bytes = Some(16 * (48 + 8 + 8 + 8 * 4) + 16 * 16 + 4 * 4096 + 2 * MAP_FIXED_BYTES - 1);
            },
            "has maps of",
        ),
    ];
    for (spoil, expected) in cases {
        let message = refusal(spoil);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn settings_must_speak_of_what_is_there() {
    let cases: [(Spoil, &str); 13] = [
        (
            |_, s| s.helpers = vec!["probe_read".into()],
            "`probe_read` is no helper",
        ),
        (
            |_, s| drop(s.metrics.insert("lost".into(), MapMetric::Sum)),
            "settings.metrics: there is no map `lost` in the object, which has `seen`, `events`",
        ),
        (
            |_, s| drop(s.metrics.insert("events".into(), MapMetric::Sum)),
            "of type ring-buffer, which does not fit",
        ),
        (
            |v, s| {
                v.maps[0].value_size = 12;
                s.metrics.insert("seen".into(), MapMetric::Sum);
            },
            "have 12 bytes, a number has",
        ),
        (
            |_, s| drop(s.metrics.insert("seen".into(), MapMetric::Elements(vec!["a".into()]))),
            "only arrays have elements",
        ),
        (
            |_, s| drop(s.metrics.insert("seen".into(), MapMetric::Format("{2:ipv4}".into()))),
            "`{2:ipv4}` ends after byte 4",
        ),
        (
            |_, s| s.log = Some("seen".into()),
            "settings.log: map `seen` is of type hash",
        ),
        (
            |_, s| s.log_encoding = LogEncoding::Format,
            "settings.logFormats: 0 formats",
        ),
        (|_, s| s.log_formats = vec!["x".into()], "others none"),
        (
            |_, s| {
                s.log_encoding = LogEncoding::Format;
                s.log_formats = vec!["{0:u9}".into()];
            },
            "no field",
        ),
        (
            |_, s| drop(s.init.insert("seen".into(), [("0a0000".into(), "00".into())].into())),
            "map `seen`: key `0a0000` is not 4 bytes in hexadecimal",
        ),
        (
            |_, s| drop(s.init.insert("seen".into(), [("0a000002".into(), "zz".into())].into())),
            "value `zz` is not 8 bytes",
        ),
        (
            |_, s| drop(s.init.insert("events".into(), [].into())),
            "settings.init: map `events` is of type ring-buffer",
        ),
    ];
    for (spoil, expected) in cases {
        let message = refusal(spoil);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_granted_helper_passes() {
    let (mut verdict, mut settings) = (verdict(), settings());
    verdict.programs[0].helpers.push(113);
    settings.helpers = vec!["bpf_probe_read_kernel".into()];
    judge(&verdict, &settings, BOUNDS).unwrap();
}

#[test]
fn hex_is_read_strictly() {
    assert_eq!(from_hex("0aFF"), Some(vec![10, 255]));
    assert_eq!(from_hex(""), Some(Vec::new()));
    for bad in ["0", "0g", "+1", "\u{e9}\u{e9}"] {
        assert_eq!(from_hex(bad), None, "{bad}");
    }
}
