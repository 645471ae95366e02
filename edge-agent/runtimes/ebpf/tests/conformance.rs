//! The suite that every runtime must pass.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::net::UdpSocket;
use std::process::Command;

use cnova_ral::Stream;
use cnova_ral_conformance::{Behaviour, Case, Fixture, conformance};
use serde_json::{Value, json};

/// Prints three lines at the first packet it sees, or many at every one.
const SOURCE: &str = r#"
typedef unsigned int u32; typedef unsigned long long u64;
#define SEC(name) __attribute__((section(name), used))
static void *(*map_lookup)(void *map, const void *key) = (void *)1;
static long (*ring_output)(void *ring, const void *data, u64 size, u64 flags) = (void *)130;
struct { int (*type)[2]; int (*max_entries)[1]; u32 *key; u32 *value; } seen SEC(".maps");
struct { int (*type)[27]; int (*max_entries)[262144]; } events SEC(".maps");

SEC("socket") int quiet(void *c) { return 0; }

SEC("socket") int few(void *c) {
    char line[8] = "line 1";
    u32 zero = 0, *n = map_lookup(&seen, &zero);
    if (!n || *n) return 0;
    *n = 1;
    ring_output(&events, line, sizeof(line), 0);
    line[5] = '2';
    ring_output(&events, line, sizeof(line), 0);
    line[5] = '3';
    ring_output(&events, line, sizeof(line), 0);
    return 0;
}

SEC("socket") int many(void *c) {
    char line[192];
    __builtin_memset(line, 'x', 184);
    __builtin_memset(line + 184, 0, 8);
#pragma clang loop unroll(full)
    for (int i = 0; i < 64; i++)
        ring_output(&events, line, sizeof(line), 0);
    return 0;
}
char _license[] SEC("license") = "GPL";
"#;

fn fixture() -> Fixture {
    let Some(object) = object() else {
        // Nothing here can be tried, and all tests of this program are like this one.
        std::process::exit(0);
    };
    let fixture = Fixture::new(env!("CARGO_BIN_EXE_cnova-runtime-ebpf"), "ebpf").unwrap();
    let spec = |program: &str| {
        let mut spec = fixture.artifact("object.o", &object).unwrap();
        spec.settings = settings(program);
        spec
    };
    let few = Case::new(spec("few")).stimulus(send_packet);
    let few = few.line(Stream::Stdout, "line 1").line(Stream::Stdout, "line 2");
    let few = few.line(Stream::Stdout, "line 3");
    let quiet = Case::new(spec("quiet"));
    let many = Case::new(spec("many")).stimulus(send_packet);
    let mut broken = fixture.artifact("broken.o", &object[..object.len() / 2]).unwrap();
    broken.settings = settings("quiet");
    fixture
        .case(Behaviour::RunsForever, quiet)
        .case(Behaviour::Prints, few)
        .case(Behaviour::PrintsALot, many)
        .case(Behaviour::Refused, Case::new(broken).detail("the object is damaged"))
        .not_applicable(Behaviour::ExitsWith, "a program in the kernel has no end of its own")
        .not_applicable(
            Behaviour::PrintsEnvironment,
            "a program in the kernel has no environment",
        )
        .not_applicable(
            Behaviour::Fails,
            "the kernel's verifier lets nothing pass that can fail",
        )
        .not_applicable(Behaviour::IgnoresStop, "detaching asks nobody")
        .not_applicable(
            Behaviour::ExceedsMemory,
            "maps have a fixed size, which is judged before the start",
        )
        .not_applicable(Behaviour::DiesBySignal, "a program in the kernel has no signals")
}

fn settings(program: &str) -> Value {
    json!({
        "programs": [{"name": program, "kind": "socket-filter", "attach": "lo"}],
        "log": "events",
    })
}

fn send_packet() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.send_to(b"hello", "127.0.0.1:9").unwrap();
}

/// The object, or nothing if it cannot be made or loaded here.
fn object() -> Option<Vec<u8>> {
    if !cnova_runtime_ebpf::confine::has(cnova_runtime_ebpf::confine::capability::SYS_ADMIN) {
        eprintln!("skipped: only root can load programs here");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("t.c"), dir.path().join("t.o"));
    std::fs::write(&input, SOURCE).unwrap();
    let made = Command::new("clang")
        .args(["-target", "bpf", "-O2", "-g", "-c", "-o"])
        .args([&output, &input])
        .output();
    let Ok(made) = made else {
        eprintln!("skipped: there is no clang");
        return None;
    };
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Some(std::fs::read(&output).unwrap())
}

conformance!(fixture);
