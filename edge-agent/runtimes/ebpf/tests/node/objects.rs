//! Objects for the tests, compiled when they are needed.

use std::process::Command;

/// What every test program begins with.
const PRELUDE: &str = r#"
typedef unsigned char u8; typedef unsigned short u16; typedef unsigned int u32; typedef unsigned long long u64;
#define SEC(name) __attribute__((section(name), used))
#define UINT(name, value) int(*name)[value]
#define TYPE(name, type) type *name
static void *(*map_lookup)(void *map, const void *key) = (void *)1;
static long (*map_update)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*probe_read)(void *to, u32 size, const void *from) = (void *)113;
static long (*ring_output)(void *ring, const void *data, u64 size, u64 flags) = (void *)130;
char _license[] SEC("license") = "GPL";
"#;

/// Counts its runs in the first element of an array.
pub(crate) const COUNTER: &str = r#"
struct { UINT(type, 2); UINT(max_entries, 1); TYPE(key, u32); TYPE(value, u64); } seen SEC(".maps");
static __attribute__((always_inline)) void count(void) {
    u32 zero = 0; u64 *n = map_lookup(&seen, &zero);
    if (n) __sync_fetch_and_add(n, 1);
}
"#;

/// A program that counts, of the given section, with the given name and return value.
pub(crate) fn counter(section: &str, name: &str, result: i32) -> Option<Vec<u8>> {
    compile(&format!(
        "{COUNTER}\nSEC(\"{section}\") int {name}(void *context) {{ count(); return {result}; }}\n"
    ))
}

/// The bytes that clang makes of C, or nothing if there is no clang.
pub(crate) fn compile(source: &str) -> Option<Vec<u8>> {
    compile_with(source, &["-g"])
}

pub(crate) fn compile_with(source: &str, flags: &[&str]) -> Option<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("t.c"), dir.path().join("t.o"));
    std::fs::write(&input, format!("{PRELUDE}{source}")).unwrap();
    let made = Command::new("clang")
        .args(["-target", "bpf", "-O2", "-Wall", "-Wno-unused", "-c", "-o"])
        .arg(&output)
        .args(flags)
        .arg(&input)
        .output();
    let Ok(made) = made else {
        eprintln!("skipped: there is no clang");
        return None;
    };
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Some(std::fs::read(&output).unwrap())
}

/// What the example's build script makes, or nothing if there is no clang.
pub(crate) fn fieldbus_watch() -> Option<Vec<u8>> {
    if Command::new("clang").arg("--version").output().is_err() {
        eprintln!("skipped: there is no clang");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../examples/fieldbus-watch/build.sh");
    let made = Command::new(script).arg(dir.path()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Some(std::fs::read(dir.path().join("fieldbus_watch.o")).unwrap())
}
