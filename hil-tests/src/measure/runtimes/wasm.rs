//! Wasm: from the start of the process to the guest's first instruction, beside the `wasmtime` command.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cnova_ral::cgroup::{Group, Parent};
use cnova_ral::{Spec, spawn_in, write_spec};
use serde_json::json;

use super::super::table::Table;
use super::super::wrong;
use super::Options;
use super::container::{end, lap, now_ns, said, stamp};
use super::contest::{Lap, Laps, rows};
use crate::demo::DemoError;

/// Prints the time in nanoseconds as 20 digits; then, where it says so, sleeps for ever.
const GUEST: &str = r#"(module
  (import "wasi_snapshot_preview1" "clock_time_get" (func $time (param i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  ;; 0: the time, 16: the text and where it is, 64: a subscription to 100 s of the monotonic clock
  (data (i32.const 40) "\20\01\00\00\15\00\00\00")
  (data (i32.const 80) "\01\00\00\00")
  (data (i32.const 88) "\00\e8\76\48\17\00\00\00")
  (func (export "_start") (local $left i64) (local $at i32)
    (drop (call $time (i32.const 0) (i64.const 1) (i32.const 0)))
    (local.set $left (i64.load (i32.const 0)))
    (local.set $at (i32.const 307))
    (i32.store8 (i32.const 308) (i32.const 10))
    (loop $digit
      (i32.store8 (local.get $at)
        (i32.add (i32.const 48) (i32.wrap_i64 (i64.rem_u (local.get $left) (i64.const 10)))))
      (local.set $left (i64.div_u (local.get $left) (i64.const 10)))
      (local.set $at (i32.sub (local.get $at) (i32.const 1)))
      (br_if $digit (i32.ge_u (local.get $at) (i32.const 288))))
    (drop (call $write (i32.const 1) (i32.const 40) (i32.const 1) (i32.const 32)))
    REST))"#;
const STAY: &str =
    "(loop $on (drop (call $poll (i32.const 64) (i32.const 128) (i32.const 1) (i32.const 32))) (br $on))";
/// Limits of the compiler: memory, seconds, bytes of its output.
const COMPILER: [&str; 3] = ["1000000000", "60", "100000000"];

/// How a guest is run.
enum Host {
    /// By our runtime.
    Ours(PathBuf, Box<Spec>),
    /// By `wasmtime` with these arguments.
    Command(PathBuf, Vec<String>),
}

/// The guest as the hub gets it.
pub(super) fn guest(stays: bool) -> Result<Vec<u8>, DemoError> {
    wat::parse_str(GUEST.replace("REST", if stays { STAY } else { "" })).map_err(wrong)
}

pub(super) fn measure(options: &Options, groups: &Parent, table: &mut Table) -> Result<(), DemoError> {
    let dir = options.dir.join("wasm");
    fs::create_dir_all(&dir).map_err(wrong)?;
    let source = dir.join("guest.wasm");
    fs::write(&source, guest(false)?).map_err(wrong)?;
    let mut hosts = vec![(Laps::of("ours"), ours(options, &dir, &source)?)];
    match &options.wasmtime {
        Some(wasmtime) => hosts.extend(commands(wasmtime, &dir, &source)?),
        None => table.add(
            "Wasm beside the `wasmtime` command",
            "not compared",
            "no --wasmtime given",
        ),
    }
    for round in 0..options.rounds {
        for (laps, host) in &mut hosts {
            let group = Group::create(groups, &format!("wasm-{round}")).map_err(wrong)?;
            laps.laps.push(run(host, &dir, &group)?);
            end(&group)?;
        }
    }
    let all: Vec<Laps> = hosts.into_iter().map(|(laps, _)| laps).collect();
    let how = format!(
        "medians of {} rounds in turns, from before the spawn; a guest of {} bytes for preview 1 that prints its clock; ours \
         hashes the artifact, opens its socket, log and state file besides",
        options.rounds,
        fs::metadata(&source).map_or(0, |meta| meta.len())
    );
    rows(table, "Wasm", &all, &how);
    Ok(())
}

fn ours(options: &Options, dir: &Path, source: &Path) -> Result<Host, DemoError> {
    let artifact = dir.join("guest.cwasm");
    let runtime = options.bin.join("cnova-runtime-wasm");
    let target = cnova_ral::describe(&runtime).map_err(wrong)?.targets;
    let target = target
        .first()
        .ok_or_else(|| wrong("the Wasm runtime names no target"))?;
    let mut compiler = Command::new(options.bin.join("cnova-aot"));
    compiler.arg(target).args(COMPILER).args([source, &artifact]);
    succeed(&mut compiler)?;
    let digest = cnova_oci::Digest::of(&fs::read(&artifact).map_err(wrong)?);
    let spec: Spec = serde_json::from_value(json!({
        "ral": 1, "workload": "measured", "artifact": artifact, "digest": digest.to_string(),
        "limits": {"memory_bytes": 1 << 20},
    }))
    .map_err(wrong)?;
    Ok(Host::Ours(runtime, Box::new(spec)))
}

/// Compiled before, and compiled as it starts.
fn commands(wasmtime: &Path, dir: &Path, source: &Path) -> Result<[(Laps, Host); 2], DemoError> {
    let compiled = dir.join("theirs.cwasm");
    let mut compiler = Command::new(wasmtime);
    compiler.arg("compile").arg("-o").args([&compiled, source]);
    succeed(&mut compiler)?;
    let text = |path: &Path| path.display().to_string();
    let host = |words: &[String]| Host::Command(wasmtime.to_owned(), words.to_vec());
    let ahead = host(&["run".into(), "--allow-precompiled".into(), text(&compiled)]);
    let just_in_time = host(&["run".into(), "-C".into(), "cache=n".into(), text(source)]);
    Ok([
        (Laps::of("wasmtime precompiled"), ahead),
        (Laps::of("wasmtime compiling"), just_in_time),
    ])
}

fn succeed(command: &mut Command) -> Result<(), DemoError> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .map_err(|e| wrong(format!("{command:?}: {e}")))?;
    let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    out.status
        .success()
        .then_some(())
        .ok_or_else(|| wrong(format!("{command:?} ended with {}: {said}", out.status)))
}

fn run(host: &Host, dir: &Path, group: &Group) -> Result<Lap, DemoError> {
    let (state, printed) = (dir.join("state"), dir.join("printed"));
    let (begin, mut child) = match host {
        Host::Ours(runtime, spec) => {
            let _ = fs::remove_dir_all(&state);
            write_spec(&state, spec).map_err(wrong)?;
            (now_ns()?, spawn_in(runtime, &state, Some(group)).map_err(wrong)?)
        }
        Host::Command(wasmtime, words) => {
            let out = File::create(&printed).map_err(wrong)?;
            let mut command = Command::new(wasmtime);
            command.args(words).stdin(Stdio::null());
            command.stderr(out.try_clone().map_err(wrong)?).stdout(out);
            group.enter_command(&mut command).map_err(wrong)?;
            (now_ns()?, command.spawn().map_err(wrong)?)
        }
    };
    let status = child.wait().map_err(wrong)?;
    let gone = now_ns()?;
    let text = match host {
        Host::Ours(..) => said(&state),
        Host::Command(..) => fs::read_to_string(&printed).unwrap_or_default(),
    };
    if !status.success() {
        return Err(wrong(format!("a Wasm guest ended with {status}: {text}")));
    }
    lap(begin, gone, stamp(&text), group)
}

#[cfg(test)]
mod tests {
    #[test]
    fn both_guests_are_modules() {
        for stays in [false, true] {
            let guest = super::guest(stays).unwrap();
            assert!(guest.starts_with(b"\0asm"), "{guest:?}");
        }
    }
}
