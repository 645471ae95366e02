//! The agent's decisions, without I/O: events in, actions out, time passed in.
//!
//! [`Agent::handle`] takes one [`Event`]; [`Agent::poll_action`] yields what to do, in order. An [`Action::Persist`]
//! always comes before the effects that depend on it: whoever performs the actions commits it before going on. When a
//! commit fails, the agent value is dropped and made anew from the store ([`Agent::boot`]), as after a crash.

mod agent;
pub mod api;
mod commands;
pub mod intake;
pub mod ledger;
pub mod schedule;
pub mod standing;
mod status;
pub mod system;
pub mod workload;

pub use agent::{Agent, PROVENANCE_AGAIN_MS};
pub use api::{
    Action, Config, Event, Launch, Message, Observed, ObservedState, ProvenanceCheck, RuntimeEvent, Stage,
    SystemAction, SystemEvent, Unproved,
};
pub use status::{AcceleratorStatus, Status, WorkloadStatus};
