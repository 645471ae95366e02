//! The Runtime Abstraction Layer: what the agent and every runtime executable agree on.
//!
//! A runtime is an executable with two verbs, `describe` and `run --state DIR`. Everything the two sides say to
//! each other goes through the files of the state folder and through one local socket in it, so that the agent may
//! be killed, restarted or updated while a workload runs on, and find it again. `docs/RAL.md` is the specification;
//! this crate is its only implementation in Rust.
//!
//! - both sides: [`Spec`], [`State`], [`Exit`], [`Description`], [`Health`], [`Metrics`]
//! - the agent: [`write_spec`], [`cgroup`], [`spawn_in`], [`read_state`], [`is_alive`], [`Handle`], [`Client`], [`read_exit`], [`tail_log`]
//! - a runtime: [`open_folder`], [`serve`], [`Control`], [`Grace`], [`LogWriter`], [`write_state`], [`write_exit`]

pub mod cgroup;
mod client;
mod folder;
mod grace;
mod log;
mod process;
mod protocol;
mod server;
pub mod settings;
mod spec;
mod state;

pub use client::{CALL_TIMEOUT, CallError, Client};
pub use folder::{FolderError, FolderLock, is_held, open_folder, prepare_folder, read_spec, write_spec};
pub use grace::Grace;
pub use log::{LINE_BYTES_MAX, LOG_BYTES_MIN, Lines, LogError, LogLine, LogStats, LogWriter, Stream, tail_log};
pub use process::{
    Handle, HandleError, boot_id, describe, is_alive, own_session, pidfd_open, process_start_time, run_command, spawn,
    spawn_in,
};
pub use protocol::{
    CONNECTIONS_MAX, COUNTERS_MAX, Health, Metrics, REPLY_BYTES_MAX, REQUEST_BYTES_MAX, Reply, Request,
};
pub use server::{Control, IDLE_TIMEOUT, ServeError, Server, serve};
pub use spec::{Description, Device, Grants, Limits, Mount, Part, Spec, SpecError, parse_digest};
pub use state::{
    DETAIL_BYTES_MAX, Exit, ExitReason, Phase, State, bounded_detail, read_exit, read_state, write_exit, write_state,
};

/// The version of the interface that this crate speaks. A runtime refuses a spec of another version.
pub const RAL_VERSION: u32 = 1;

/// Names of the files of a state folder.
pub mod file {
    /// Written by the agent before it starts the runtime: [`crate::Spec`].
    pub const SPEC: &str = "spec.json";
    /// Written by the runtime once the workload runs: [`crate::State`].
    pub const STATE: &str = "state.json";
    /// Written by the runtime as the last thing it does: [`crate::Exit`].
    pub const EXIT: &str = "exit.json";
    /// The local socket that answers health, metrics and stop.
    pub const SOCKET: &str = "ral.sock";
    /// Held locked by the runtime for as long as it lives, so that two never share a folder.
    pub const LOCK: &str = "lock";
    /// The workload's log.
    pub const LOG: &str = "log";
    /// The older half of the workload's log.
    pub const LOG_OLD: &str = "log.1";
    /// What the runtime itself, not the workload, printed: panics and usage errors.
    pub const RUNTIME_ERR: &str = "runtime.err";
}
