//! Inference for Wasm workloads, in a process of its own.
//!
//! A workload with `grants.nn` talks wasi-nn to its runtime, and the runtime talks this protocol to `cnova-wasm-nn`, the
//! worker that it starts beside itself. Inference engines and the drivers of accelerators are large, are fed by
//! strangers, and some abort on bad input: what they break is the worker, and the workload gets an error. The runtime
//! stays small, for it holds no engine.
//!
//! The worker speaks on its standard input, a socket pair: one [`Request`] and then one [`Answer`], each as a frame of
//! [`FRAME_BYTES`] (lengths of header and body, little-endian `u32` each), a header in JSON and a body of raw bytes.

mod protocol;
mod tensor;

pub use protocol::{Answer, Code, Encoding, Failure, FrameError, Request, Slot, Target, read_frame, write_frame};
pub use tensor::{Kind, Tensor, check_shape};

/// Length of what precedes a header.
pub const FRAME_BYTES: usize = 8;
/// Longest header, in bytes.
pub const HEADER_BYTES_MAX: u32 = 64 << 10;
/// Largest model, all its parts together, in bytes.
pub const MODEL_BYTES_MAX: u64 = 256 << 20;
/// Parts of a model: OpenVINO's IR has two.
pub const MODEL_PARTS_MAX: usize = 4;
/// Largest tensor, in bytes.
pub const TENSOR_BYTES_MAX: u64 = 64 << 20;
/// Most dimensions of a tensor.
pub const RANK_MAX: usize = 8;
/// Longest name of a tensor or a model, in bytes.
pub const NAME_BYTES_MAX: usize = 256;
/// Models that a workload may have loaded at once, those that its settings name included.
pub const GRAPHS_MAX: usize = 16;
/// Execution contexts that a workload may have at once.
pub const CONTEXTS_MAX: usize = 32;
/// Inputs and outputs of a model, each.
pub const PORTS_MAX: usize = 64;

/// The largest body: a model.
pub const BODY_BYTES_MAX: u64 = MODEL_BYTES_MAX;
