//! A model in a Wasm workload, on the processor and on an NPU.

use std::time::Duration;

use cnova_shared::wire::v1::WorkloadState;

use super::application::{Application, Inference};
use super::{Done, Run, Trouble};

#[path = "../../../edge-agent/runtimes/wasm-nn/tests/support/onnx.rs"]
mod onnx;

/// What the hub says of a node without one.
const NO_NPU: &str = "no accelerator npu";
/// What the model makes of its input.
const ANSWER: &str = "y = 7 0";

/// A module that loads its model once and computes it every second: `y = relu(x * w)`.
pub(super) fn guest(on: Inference) -> String {
    // wasi-nn's execution targets.
    let target = match on {
        Inference::Processor => 0,
        Inference::Accelerator(_) => 2,
    };
    let escape = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("\\{byte:02x}")).collect() };
    let model = onnx::small();
    let length = u32::try_from(model.len()).unwrap_or(u32::MAX);
    GUEST
        .replace("MODEL", &escape(&model))
        .replace("LENGTH", &escape(&length.to_le_bytes()))
        .replace("TARGET", &target.to_string())
}

const GUEST: &str = r#"(module
  (import "wasi_ephemeral_nn" "load" (func $load (param i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_ephemeral_nn" "init_execution_context" (func $init (param i32 i32) (result i32)))
  (import "wasi_ephemeral_nn" "set_input" (func $set (param i32 i32 i32) (result i32)))
  (import "wasi_ephemeral_nn" "compute" (func $compute (param i32) (result i32)))
  (import "wasi_ephemeral_nn" "get_output" (func $get (param i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 4)
  (data (i32.const 4096) "MODEL")
  ;; The model's only part, the shape [1, 3], its elements 1 2 3, and the tensor of both.
  (data (i32.const 64) "\00\10\00\00LENGTH")
  (data (i32.const 128) "\01\00\00\00\03\00\00\00")
  (data (i32.const 160) "\00\00\80\3f\00\00\00\40\00\00\40\40")
  (data (i32.const 192) "\80\00\00\00\02\00\00\00\01\00\00\00\a0\00\00\00\0c\00\00\00")
  (data (i32.const 300) "y = ? ?\n")
  ;; A second, by the monotonic clock.
  (data (i32.const 416) "\01\00\00\00\00\00\00\00\00\ca\9a\3b\00\00\00\00")
  (func $check (param i32) (if (local.get 0) (then (call $exit (local.get 0)))))
  (func $digit (param $at i32) (param $to i32)
    (i32.store8 (local.get $to) (i32.add (i32.const 48) (i32.trunc_f32_u (f32.load (local.get $at))))))
  (func (export "_start")
    (call $check (call $load (i32.const 64) (i32.const 1) (i32.const 1) (i32.const TARGET) (i32.const 16)))
    (call $check (call $init (i32.load (i32.const 16)) (i32.const 20)))
    (loop $on
      (call $check (call $set (i32.load (i32.const 20)) (i32.const 0) (i32.const 192)))
      (call $check (call $compute (i32.load (i32.const 20))))
      (call $check (call $get (i32.load (i32.const 20)) (i32.const 0) (i32.const 256) (i32.const 16) (i32.const 24)))
      (call $digit (i32.const 256) (i32.const 304))
      (call $digit (i32.const 260) (i32.const 306))
      (i32.store (i32.const 32) (i32.const 300))
      (i32.store (i32.const 36) (i32.const 8))
      (drop (call $write (i32.const 1) (i32.const 32) (i32.const 1) (i32.const 40)))
      (drop (call $poll (i32.const 400) (i32.const 464) (i32.const 1) (i32.const 512)))
      (br $on))))"#;

/// The model computes on the processor.
pub(super) fn on_processor(run: &mut Run<'_>) -> Done {
    run.prepare()?;
    let application = Application::inference(Inference::Processor);
    instead_of_the_others(run, &application)?;
    computes(run, &application)?;
    again_the_others(run, &application)
}

/// A small board has no room for a model beside all the others.
fn instead_of_the_others(run: &mut Run<'_>, application: &Application) -> Done {
    // First, so that what cannot have it loses nothing.
    run.target.deploy(application)?;
    run.target.remove(super::application::NAME)
}

fn again_the_others(run: &mut Run<'_>, application: &Application) -> Done {
    run.target.remove(application.name)?;
    let others = run.next_version();
    run.target.deploy(&others)?;
    run.until_running(&others.workloads())
}

fn computes(run: &mut Run<'_>, application: &Application) -> Done {
    let id = application.workloads().remove(0);
    let begin = run.target.now();
    run.until_running(std::slice::from_ref(&id))?;
    run.until("the workload says what the model computed", |run| {
        Ok(run.target.workload_log(&id)?.contains(ANSWER))
    })?;
    let took = run.target.now().saturating_sub(begin);
    run.measure("deploy to the first answer of the model", seconds(took));
    Ok(())
}

/// The same on an accelerator that the agent found and leased.
pub(super) fn on_npu(run: &mut Run<'_>) -> Done {
    run.prepare()?;
    let status = run.status()?;
    let found = status.accelerators.first().cloned();
    let application = Application::inference(Inference::Accelerator("npu"));
    let id = application.workloads().remove(0);
    let Some(found) = found else {
        run.target.deploy(&application)?;
        run.until("the hub says that no node has an NPU", |run| {
            Ok(run.target.explain(&id)?.contains(NO_NPU))
        })?;
        let said = run.target.explain(&id)?;
        let why = said
            .lines()
            .find(|line| line.contains(NO_NPU))
            .unwrap_or_default()
            .trim()
            .to_owned();
        run.target.remove(application.name)?;
        let runs = run
            .status()?
            .workloads
            .iter()
            .any(|w| w.id == id && w.state == WorkloadState::Running);
        return Err(match runs {
            true => Trouble::failed("the workload runs without the NPU that it asks for"),
            false => Trouble::Unsupported(format!(
                "the board has no NPU. Seen instead: the workload is not placed, and the hub says why: {why}"
            )),
        });
    };
    instead_of_the_others(run, &application)?;
    run.measure("accelerator", format!("{} ({})", found.id, found.kind));
    run.until("the accelerator is leased to the workload", |run| {
        let status = run.status()?;
        Ok(status.accelerators.iter().any(|a| a.leased_to == id))
    })?;
    if found.kind.starts_with("hailo") {
        again_the_others(run, &application)?;
        return Err(Trouble::Unsupported(format!(
            "{} was found and leased; a Hailo computes only what its vendor's compiler made (.hef), and the scenarios carry no such \
             model",
            found.kind
        )));
    }
    computes(run, &application)?;
    again_the_others(run, &application)
}

/// For a report.
pub(super) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_are_modules() {
        for on in [Inference::Processor, Inference::Accelerator("npu")] {
            wat::parse_str(guest(on)).unwrap();
        }
    }
}
