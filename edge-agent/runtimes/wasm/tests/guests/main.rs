//! What a workload may do, and what is said about it: the real executable in state folders, the way the agent runs it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod guests;
mod lifecycle;
mod limits;
mod nn;
#[path = "../../../wasm-nn/tests/support/onnx.rs"]
mod onnx;
mod ral;
mod secrets;
mod support;
