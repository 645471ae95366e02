//! Everything that must not be loaded, refused with a message that says what and why.

use serde_json::json;

use crate::kernel;
use crate::objects::{COUNTER, compile, compile_with, counter};
use crate::support::{Workload, is_root, one, wait_for};

/// A lookup in it may fail, and the kernel knows no key for which it cannot.
const TABLE: &str =
    "struct { UINT(type, 1); UINT(max_entries, 1); TYPE(key, u32); TYPE(value, u64); } table SEC(\".maps\");";

/// The refusal of an object with one socket filter `name`.
fn refusal_of(source: &str, name: &str) -> Option<String> {
    let object = compile(source)?;
    Some(Workload::new(&object, one(name, "socket-filter", "lo")).refusal())
}

#[test]
fn a_helper_that_reads_the_kernel_never_reaches_the_kernel() {
    let source = r#"SEC("socket") int r_probe(void *c) { u64 x = 0; probe_read(&x, 8, c); return (int)x; }"#;
    let Some(detail) = refusal_of(source, "r_probe") else {
        return;
    };
    assert_eq!(
        detail,
        "refused by policy: program `r_probe`: calls bpf_probe_read_kernel, which a socket-filter may not: add it to \
         settings.helpers if policy grants it"
    );
}

#[test]
fn a_helper_is_found_in_a_function_that_is_called() {
    let source = r#"
        __attribute__((noinline)) u64 deep(void *c) { u64 x = 0; probe_read(&x, 8, c); return x; }
        __attribute__((noinline)) u64 deeper(void *c) { return deep(c) + 1; }
        SEC("socket") int r_deep(void *c) { return (int)deeper(c); }"#;
    let Some(detail) = refusal_of(source, "r_deep") else {
        return;
    };
    assert!(
        detail.contains("program `r_deep`: calls bpf_probe_read_kernel"),
        "{detail}"
    );
}

#[test]
fn a_granted_helper_is_left_to_the_kernel_which_asks_for_more_rights() {
    let source = r#"SEC("socket") int r_grant(void *c) { u64 x = 0; probe_read(&x, 8, c); return (int)x; }"#;
    let Some(object) = compile(source) else { return };
    if !is_root() {
        return;
    }
    let mut settings = one("r_grant", "socket-filter", "lo");
    settings["helpers"] = json!(["bpf_probe_read_kernel"]);
    let detail = Workload::new(&object, settings).refusal();
    // The loader has CAP_BPF and not CAP_PERFMON, so that the kernel is the second wall.
    assert!(
        detail.contains("the kernel's verifier rejects program `r_grant`"),
        "{detail}"
    );
}

#[test]
fn kernel_functions_are_refused() {
    let source = r#"
        extern void *bpf_task_acquire(void *) __attribute__((section(".ksyms")));
        SEC("socket") int r_kfunc(void *c) { return bpf_task_acquire(c) != 0; }"#;
    let Some(detail) = refusal_of(source, "r_kfunc") else {
        return;
    };
    assert!(
        detail.contains("uses `bpf_task_acquire` of the kernel: kernel functions (kfuncs)"),
        "{detail}"
    );
}

#[test]
fn maps_are_refused_by_type_size_and_pinning() {
    let cases = [
        (
            "UINT(type, 3); UINT(max_entries, 4); TYPE(key, u32); TYPE(value, u32);",
            "map `m`: is of type 3, which is not",
        ),
        (
            "UINT(type, 2); UINT(max_entries, 1000000); TYPE(key, u32); TYPE(value, u64);",
            "settings.mapBytes allows 4194304",
        ),
        (
            "UINT(type, 27); UINT(max_entries, 16777216);",
            "settings.mapBytes allows 4194304",
        ),
        (
            "UINT(type, 2); UINT(max_entries, 1); TYPE(key, u32); TYPE(value, u64); UINT(pinning, 1);",
            "map `m`: wants to be pinned",
        ),
    ];
    for (map, expected) in cases {
        let source = format!(
            "struct {{ {map} }} m SEC(\".maps\");\n\
             SEC(\"socket\") int r_map(void *c) {{ u32 k = 0; return map_lookup(&m, &k) != 0; }}"
        );
        let Some(detail) = refusal_of(&source, "r_map") else {
            return;
        };
        assert!(detail.contains(expected), "{detail}");
    }
}

#[test]
fn the_limit_of_map_bytes_can_be_granted() {
    let map = "UINT(type, 2); UINT(max_entries, 1000000); TYPE(key, u32); TYPE(value, u64);";
    let source = format!(
        "struct {{ {map} }} m SEC(\".maps\");\n\
             SEC(\"socket\") int r_big(void *c) {{ u32 k = 0; return map_lookup(&m, &k) == 0; }}"
    );
    let Some(object) = compile(&source) else { return };
    if !is_root() {
        return;
    }
    let mut settings = one("r_big", "socket-filter", "lo");
    settings["mapBytes"] = json!(9 << 20);
    let mut workload = Workload::new(&object, settings);
    workload.start_and_wait();
    assert!(workload.metrics().memory_bytes > 8_000_000, "the maps are accounted");
    workload.stop();
}

#[test]
fn legacy_maps_and_kernel_types_are_refused() {
    let legacy = r#"
        struct { u32 type, key, value, entries, flags; } old SEC("maps") = { 2, 4, 8, 1, 0 };
        SEC("socket") int r_old(void *c) { u32 k = 0; return map_lookup(&old, &k) != 0; }"#;
    let Some(detail) = refusal_of(legacy, "r_old") else {
        return;
    };
    assert!(
        detail.contains("section `maps` holds maps in the legacy form"),
        "{detail}"
    );
    let core = r#"
        struct sock_like { int a; int b; } __attribute__((preserve_access_index));
        SEC("socket") int r_core(struct sock_like *c) { return c->b; }"#;
    let detail = refusal_of(core, "r_core").unwrap();
    assert!(
        detail.contains("must be fitted to the kernel's types (CO-RE)"),
        "{detail}"
    );
}

#[test]
fn the_kind_must_be_what_the_section_says() {
    let Some(object) = counter("xdp", "r_kind", 2) else {
        return;
    };
    let detail = Workload::new(&object, one("r_kind", "socket-filter", "lo")).refusal();
    assert!(
        detail.ends_with("program `r_kind`: settings say socket-filter, its section makes it xdp"),
        "{detail}"
    );
    let detail = Workload::new(&object, one("r_king", "xdp", "lo")).refusal();
    assert!(
        detail.ends_with("program `r_king`: is not in the object, which has `r_kind`"),
        "{detail}"
    );
    let object = counter("kprobe/do_exit", "r_kprobe", 0).unwrap();
    let detail = Workload::new(&object, one("r_kprobe", "tracepoint", "sched/sched_switch")).refusal();
    assert!(
        detail.ends_with("settings say tracepoint, its section makes it KProbe"),
        "{detail}"
    );
}

#[test]
fn what_the_verifier_rejects_comes_with_the_end_of_its_log() {
    let source = format!(
        "{TABLE}\n\
         SEC(\"socket\") int r_verify(void *c) {{ u32 z = 0; u64 *n = map_lookup(&table, &z); return (int)*n; }}"
    );
    let Some(object) = compile(&source) else { return };
    if !is_root() {
        return;
    }
    let detail = Workload::new(&object, one("r_verify", "socket-filter", "lo")).refusal();
    assert!(
        detail.starts_with("the kernel's verifier rejects program `r_verify`"),
        "{detail}"
    );
    assert!(detail.contains("invalid mem access 'map_value_or_null'"), "{detail}");
    assert!(kernel::programs("r_verify").is_empty());
}

#[test]
fn a_long_verifier_log_keeps_its_end() {
    // Many steps, and the mistake comes last.
    let steps = "count();\n".repeat(200);
    let source = format!(
        "{COUNTER}{TABLE}\nSEC(\"socket\") int r_long(void *c) {{ u32 z = 0;\n{steps}
         u64 *n = map_lookup(&table, &z); return (int)*n; }}"
    );
    let Some(object) = compile(&source) else { return };
    if !is_root() {
        return;
    }
    let detail = Workload::new(&object, one("r_long", "socket-filter", "lo")).refusal();
    assert!(detail.len() > 5000 && detail.len() < 8000, "{}", detail.len());
    assert!(detail.contains("invalid mem access 'map_value_or_null'"), "{detail}");
}

#[test]
fn what_is_no_object_is_refused() {
    let elf = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let cases = [
        (&b"#!/bin/sh\n"[..], "not an eBPF object (no ELF header)"),
        (b"", "no ELF header"),
        (&elf[..4096], "not an eBPF object"),
    ];
    for (bytes, expected) in cases {
        let detail = Workload::new(bytes, one("x", "socket-filter", "lo")).refusal();
        assert!(detail.contains(expected), "{detail}");
    }
    let long = vec![0; (4 << 20) + 1];
    let detail = Workload::new(&long, one("x", "socket-filter", "lo")).refusal();
    assert!(detail.contains("is longer than 4194304 bytes"), "{detail}");
}

#[test]
fn settings_are_read_strictly() {
    let Some(object) = counter("socket", "r_set", 0) else {
        return;
    };
    let mut settings = one("r_set", "socket-filter", "lo");
    settings["pinning"] = json!("/sys/fs/bpf");
    let detail = Workload::new(&object, settings).refusal();
    assert!(detail.contains("unknown field `pinning`"), "{detail}");
    let detail = Workload::new(&object, json!(null)).refusal();
    assert!(detail.contains("settings.programs: 0 programs are named"), "{detail}");
}

#[test]
fn global_variables_are_maps_like_others() {
    let source = r#"
        volatile const u32 step = 3; volatile u64 total; volatile u32 start = 7;
        SEC("socket") int r_global(void *c) { total += step + start; return 0; }"#;
    let Some(object) = compile(source) else { return };
    if !is_root() {
        return;
    }
    let mut settings = one("r_global", "socket-filter", "lo");
    settings["metrics"] = json!({ ".bss": {"elements": ["total"]} });
    let mut workload = Workload::new(&object, settings);
    workload.start_and_wait();
    wait_for("packets", || {
        std::net::UdpSocket::bind("127.0.0.1:0")
            .unwrap()
            .send_to(b"x", "127.0.0.1:9")
            .unwrap();
        (workload.counter("total") >= 20.0).then_some(())
    });
    workload.stop();
}

#[test]
fn an_object_without_types_is_loaded_if_it_has_no_maps() {
    let Some(object) = compile_with("SEC(\"socket\") int r_plain(void *c) { return 0; }", &["-g0"]) else {
        return;
    };
    if !is_root() {
        return;
    }
    let mut workload = Workload::new(&object, one("r_plain", "socket-filter", "lo"));
    workload.start_and_wait();
    workload.stop();
}

#[test]
fn places_that_are_not_there_are_named_with_those_that_are() {
    let Some(object) = counter("socket", "r_place", 0) else {
        return;
    };
    if !is_root() {
        return;
    }
    let detail = Workload::new(&object, one("r_place", "socket-filter", "nope0")).refusal();
    assert!(
        detail.contains("program `r_place`: there is no interface `nope0` on this node, which has lo"),
        "{detail}"
    );
    let object = counter("tracepoint", "r_trace", 0).unwrap();
    for (place, expected) in [
        (
            "sched/no_such_event",
            "there is no tracepoint `sched/no_such_event` in this kernel",
        ),
        ("../../etc", "write it as `category/name`"),
    ] {
        let detail = Workload::new(&object, one("r_trace", "tracepoint", place)).refusal();
        assert!(detail.contains(expected), "{detail}");
    }
    let object = counter("cgroup_skb/ingress", "r_cgroup", 1).unwrap();
    for (place, expected) in [
        (
            "/tmp",
            "`/tmp` is not a control group of version 2: it lies in another file system",
        ),
        ("/no/such", "`/no/such` is not a control group of version 2"),
        ("relative", "must be absolute"),
    ] {
        let detail = Workload::new(&object, one("r_cgroup", "cgroup-skb", place)).refusal();
        assert!(detail.contains(expected), "{detail}");
    }
}
