//! What the hub compiles must load with the shared settings, and with no others.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use cnova_wasm_engine::{
    HOST_TARGET, PULLEY_TARGET, PrecompileError, TARGETS, config, inspect, precompile, pulley_config,
};
use wasmtime::component::Component;
use wasmtime::{Config, Engine, Module, ModuleVersionStrategy};

const MODULE: &str = r#"(module
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 1)
    (func (export "_start") (call $exit (i32.const 7))))"#;

fn host() -> &'static str {
    HOST_TARGET.expect("these tests run on a target that we compile for")
}

fn wasm(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}

fn load(config: &Config, compiled: &[u8]) -> Result<Module, String> {
    let engine = Engine::new(config).unwrap();
    // SAFETY: the bytes were made by `precompile` in this test.
    unsafe { Module::deserialize(&engine, compiled) }.map_err(|error| format!("{error:#}"))
}

fn code(target: &str, bytes: &[u8]) -> (&'static str, String) {
    let error = precompile(target, bytes).unwrap_err();
    (error.code(), error.to_string())
}

#[test]
fn what_is_compiled_here_loads_here() {
    let compiled = precompile(host(), &wasm(MODULE)).unwrap();
    assert_eq!(
        Engine::detect_precompiled(&compiled),
        Some(wasmtime::Precompiled::Module)
    );
    load(&config(), &compiled).unwrap();
}

#[test]
fn every_target_compiles_and_the_other_one_is_refused_by_name() {
    for target in TARGETS {
        let compiled = precompile(target, &wasm(MODULE)).unwrap();
        let loaded = load(&config(), &compiled);
        if target == host() {
            loaded.unwrap();
        } else {
            assert!(loaded.unwrap_err().contains("compiled for architecture"));
        }
    }
    let (code, message) = code("riscv64gc-unknown-linux-gnu", &wasm(MODULE));
    assert_eq!(code, "target");
    assert!(TARGETS.iter().all(|target| message.contains(target)), "{message}");
}

#[test]
fn the_interpreters_engine_takes_its_own_artifacts_and_no_machine_code() {
    load(&pulley_config(), &precompile(PULLEY_TARGET, &wasm(MODULE)).unwrap()).unwrap();
    let machine_code = precompile(host(), &wasm(MODULE)).unwrap();
    let message = load(&pulley_config(), &machine_code).unwrap_err();
    assert!(message.contains("compiled for architecture"), "{message}");
}

#[test]
fn each_flipped_setting_is_refused() {
    let compiled = precompile(host(), &wasm(MODULE)).unwrap();
    type Flip = fn(&mut Config) -> &mut Config;
    let flips: [(Flip, &str); 6] = [
        (|c| c.epoch_interruption(false), "epoch interruption"),
        (|c| c.consume_fuel(true), "fuel"),
        (|c| c.memory_reservation(128 << 20), "memory reservation"),
        (|c| c.memory_guard_size(1 << 20), "memory guard size"),
        (|c| c.memory_may_move(false), "memory may move"),
        (
            |c| {
                c.module_version(ModuleVersionStrategy::Custom("cnova-0-wasmtime-48.0.8".into()))
                    .unwrap()
            },
            "incompatible version 'cnova-1",
        ),
    ];
    for (flip, expected) in flips {
        let mut other = config();
        flip(&mut other);
        let message = load(&other, &compiled).unwrap_err();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_truncated_artifact_is_refused_at_any_length() {
    let compiled = precompile(host(), &wasm(MODULE)).unwrap();
    for length in [0, 1, 64, 1_000, compiled.len() / 2, compiled.len() - 1] {
        load(&config(), &compiled[..length]).unwrap_err();
    }
}

#[test]
fn what_is_not_wasm_says_so() {
    for bytes in [&b""[..], b"\0as", b"#!/bin/sh\n", b"(module)"] {
        assert_eq!(code(host(), bytes).0, "not_wasm");
    }
    for (bytes, expected) in [
        (&b""[..], "empty"),
        (b"#!/bin/sh\n", "script"),
        (b" (module)", "as text"),
        (b"\x7fELF...", "ELF"),
        (b"\x1f\x8b..", "gzip"),
    ] {
        let message = code(host(), bytes).1;
        assert!(message.contains(expected), "{message}");
    }
    let whole = wasm(MODULE);
    for length in [4, 8, 20, whole.len() - 1] {
        let (code, message) = code(host(), &whole[..length]);
        assert!(code == "invalid" || code == "no_entry", "{length}: {message}");
    }
}

#[test]
fn what_the_engine_lacks_is_named() {
    let threads = wasm(
        r#"(module (memory 1 1 shared) (func (export "_start")
        (drop (i32.atomic.load (i32.const 0)))))"#,
    );
    let wide = wasm(r#"(module (memory i64 1) (func (export "_start")))"#);
    for (bytes, expected) in [(threads, "threads"), (wide, "64-bit memories")] {
        let (code, message) = code(host(), &bytes);
        assert_eq!(code, "feature");
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn foreign_imports_and_missing_entries_are_found_before_a_device_sees_them() {
    let foreign = wasm(r#"(module (import "env" "gpio_set" (func)) (func (export "_start")))"#);
    let (foreign_code, message) = code(host(), &foreign);
    assert_eq!(foreign_code, "import");
    assert!(message.contains("env.gpio_set"), "{message}");
    for library in ["(module (func (export \"add\")))", "(component)"] {
        assert_eq!(code(host(), &wasm(library)).0, "no_entry");
    }
    assert_eq!(
        code(
            host(),
            &wasm(r#"(component (import "wasi:http/types@0.2.0" (instance)))"#)
        )
        .0,
        "import"
    );
}

#[test]
fn a_workload_that_is_asked_and_wasi_nn_are_known() {
    let lifecycle = r#"(component (instance $i) (export "cnova:workload/lifecycle@1.0.0" (instance $i)))"#;
    assert_eq!(inspect(&wasm(lifecycle)).unwrap().kind.as_str(), "component");
    let nn =
        r#"(module (import "wasi_ephemeral_nn" "compute" (func (param i32) (result i32))) (func (export "_start")))"#;
    assert_eq!(inspect(&wasm(nn)).unwrap().imports, ["wasi_ephemeral_nn.compute"]);
}

#[test]
fn a_component_is_told_from_a_module() {
    let component = wasm(include_str!("run.wat"));
    let found = inspect(&component).unwrap();
    assert_eq!(found.kind.as_str(), "component");
    let compiled = precompile(host(), &component).unwrap();
    assert!(
        load(&config(), &compiled).is_err(),
        "a component must not load as a module"
    );
    let engine = Engine::new(&config()).unwrap();
    // SAFETY: the bytes were made by `precompile` above.
    unsafe { Component::deserialize(&engine, &compiled) }.unwrap();
}

#[test]
fn compiling_twice_gives_the_same_bytes() {
    let once = precompile(host(), &wasm(MODULE)).unwrap();
    assert_eq!(once, precompile(host(), &wasm(MODULE)).unwrap());
    assert!(matches!(precompile("", &[]), Err(PrecompileError::Target { .. })));
}
