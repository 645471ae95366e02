//! The hub's side against the real worker, and against impostors.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cnova_aot::{AotError, AotLimits, AotOutcome, precompile_in_subprocess};
use tempfile::TempDir;

const TARGET: &str = "x86_64-unknown-linux-gnu";
const WORKER: &str = env!("CARGO_BIN_EXE_cnova-aot");
const MODULE: &str = r#"(module
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 1)
    (func (export "_start") (call $exit (i32.const 7))))"#;

struct Bench {
    dir: TempDir,
    limits: AotLimits,
}

impl Bench {
    fn new() -> Bench {
        Bench {
            dir: tempfile::tempdir().unwrap(),
            limits: AotLimits::default(),
        }
    }

    fn output(&self) -> PathBuf {
        self.dir.path().join("out.cwasm")
    }

    fn compile_with(&self, worker: &Path, target: &str, wasm: &[u8]) -> Result<AotOutcome, AotError> {
        let input = self.dir.path().join("in.wasm");
        fs::write(&input, wasm).unwrap();
        let result = precompile_in_subprocess(worker, &input, target, &self.output(), &self.limits);
        let mut left: Vec<String> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".part") || name == "out.cwasm")
            .collect();
        left.sort();
        let expected: &[&str] = if result.is_ok() { &["out.cwasm"] } else { &[] };
        assert_eq!(left, expected, "{result:?}");
        result
    }

    fn compile(&self, wasm: &[u8]) -> Result<AotOutcome, AotError> {
        self.compile_with(Path::new(WORKER), TARGET, wasm)
    }

    fn rejection(&self, wasm: &[u8]) -> String {
        match self.compile(wasm) {
            Err(AotError::Rejected { rejection, .. }) => rejection.code,
            other => panic!("{other:?}"),
        }
    }

    /// A worker that is a shell script.
    fn impostor(&self, script: &str) -> Result<AotOutcome, AotError> {
        let path = self.dir.path().join("worker.sh");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        self.compile_with(&path, TARGET, b"")
    }
}

fn wasm(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}

/// A valid module whose function takes long to compile: a deep nest of arithmetic, many times.
fn heavy(functions: usize) -> Vec<u8> {
    let mut text = String::from("(module (memory (export \"memory\") 1) (func (export \"_start\"))");
    for number in 0..functions {
        text.push_str(&format!(
            "(func (export \"f{number}\") (param i64) (result i64) local.get 0"
        ));
        for step in 0..2_000 {
            text.push_str(&format!(" i64.const {step} i64.mul local.get 0 i64.xor"));
        }
        text.push(')');
    }
    text.push(')');
    wasm(&text)
}

#[test]
fn a_module_is_compiled_and_described() {
    let bench = Bench::new();
    let outcome = bench.compile(&wasm(MODULE)).unwrap();
    assert_eq!(outcome.kind, "module");
    assert_eq!(outcome.imports, ["wasi_snapshot_preview1.proc_exit"]);
    assert_eq!(outcome.size, fs::metadata(bench.output()).unwrap().len());
    assert_eq!(
        (outcome.target.as_str(), outcome.engine.as_str()),
        (TARGET, "cnova-1-wasmtime-48.0.8")
    );
}

#[test]
fn the_caller_chooses_the_interpreter() {
    let bench = Bench::new();
    let outcome = bench
        .compile_with(Path::new(WORKER), "pulley64", &wasm(MODULE))
        .unwrap();
    assert_eq!(
        (outcome.target.as_str(), outcome.engine.as_str()),
        ("pulley64", "cnova-1-wasmtime-48.0.8")
    );
}

#[test]
fn a_module_is_compiled_for_another_processor() {
    // ELF header, `e_machine`: EM_X86_64 and EM_AARCH64.
    for (target, machine) in [(TARGET, 62), ("aarch64-unknown-linux-gnu", 183_u16)] {
        let bench = Bench::new();
        let outcome = bench.compile_with(Path::new(WORKER), target, &wasm(MODULE)).unwrap();
        assert_eq!(outcome.target, target);
        let made = fs::read(bench.output()).unwrap();
        assert_eq!(made[18..20], machine.to_le_bytes(), "{target}");
    }
}

#[test]
fn what_is_wrong_with_the_input_comes_back_as_a_code() {
    let bench = Bench::new();
    let module = wasm(MODULE);
    assert_eq!(bench.rejection(b""), "not_wasm");
    assert_eq!(bench.rejection(b"\x7fELF garbage"), "not_wasm");
    assert_eq!(bench.rejection(&module[..module.len() - 2]), "invalid");
    assert_eq!(
        bench.rejection(&wasm("(module (import \"env\" \"x\" (func)))")),
        "import"
    );
    assert_eq!(bench.rejection(&wasm("(module)")), "no_entry");
    assert_eq!(bench.rejection(&wasm("(module (memory 1 1 shared))")), "feature");
    let error = bench
        .compile_with(Path::new(WORKER), "mips-unknown-none", &module)
        .unwrap_err();
    assert!(
        error.to_string().contains("aarch64-unknown-linux-gnu") && error.is_permanent(),
        "{error}"
    );
}

#[test]
fn flipped_bytes_never_do_more_than_fail() {
    let bench = Bench::new();
    let module = wasm(MODULE);
    for at in (0..module.len()).step_by(5) {
        let mut bytes = module.clone();
        bytes[at] ^= 0x55;
        match bench.compile(&bytes) {
            Ok(_) => fs::remove_file(bench.output()).unwrap(),
            Err(error) => assert!(matches!(error, AotError::Rejected { .. }), "{error}"),
        }
    }
}

#[test]
fn each_limit_ends_the_worker() {
    let mut bench = Bench::new();
    bench.limits.output_bytes = 4_000;
    let error = bench.compile(&wasm(MODULE)).unwrap_err();
    assert!(
        matches!(error, AotError::Died { .. }) && error.to_string().contains("output"),
        "{error}"
    );

    let heavy = heavy(250);
    let mut bench = Bench::new();
    bench.limits.memory_bytes = 48 << 20;
    let error = bench.compile(&heavy).unwrap_err();
    assert!(matches!(error, AotError::Died { .. }), "{error}");

    let mut bench = Bench::new();
    bench.limits.cpu_seconds = 1;
    let error = bench.compile(&heavy).unwrap_err();
    assert!(
        matches!(error, AotError::Died { .. }) && error.to_string().contains("CPU"),
        "{error}"
    );
}

#[test]
fn a_worker_that_never_ends_is_killed() {
    let mut bench = Bench::new();
    bench.limits.wall = Duration::from_millis(50);
    let error = bench.impostor("exec sleep 1000").unwrap_err();
    assert!(
        matches!(error, AotError::Timeout { .. }) && !error.is_permanent(),
        "{error}"
    );
}

#[test]
fn impostors_and_missing_workers_are_told_apart() {
    let bench = Bench::new();
    let missing = bench
        .compile_with(Path::new("/nonexistent/cnova-aot"), TARGET, b"")
        .unwrap_err();
    assert!(matches!(missing, AotError::Spawn { .. }), "{missing}");
    for script in [
        "exit 0",
        "echo hello",
        "echo '{\"ok\":true}'",
        "echo '{\"ok\":false}'; exit 1",
        "echo 'usage' >&2; exit 2",
        "yes | head -c 3000000",
    ] {
        let error = bench.impostor(script).unwrap_err();
        assert!(matches!(error, AotError::Protocol { .. }), "{script}: {error}");
    }
    let panicked = bench.impostor("echo 'thread main panicked' >&2; exit 101").unwrap_err();
    assert!(
        matches!(&panicked, AotError::Died { .. }) && panicked.to_string().contains("panicked"),
        "{panicked}"
    );
}
