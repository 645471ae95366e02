//! The simulator: real cores, virtual time, one seed.
//!
//! A run has two halves. In the first, messages are dropped, doubled, delayed, swapped and corrupted, links break,
//! processes crash before and after what they write, machines restart, stores are lost, clocks jump, workloads die,
//! and forged twins are sent. In the second all that stops, and every node must converge or say why not. The
//! invariants of [`invariants`] are checked at every step of both.
//!
//! [`run_delegated`] is another run: every node has a TPM, the hub is cut off for hours, and a gateway appraises in its place.

pub mod agents;
pub mod bench;
mod delegated;
pub mod faults;
pub mod gateways;
pub mod hubs;
pub mod invariants;
mod lives;
pub mod manifests;
mod mishaps;
pub mod net;
mod perform;
mod perform_gateway;
mod perform_hub;
pub mod pki;
pub mod provenance;
mod rotate;
pub mod world;

pub use delegated::run_delegated;
pub use faults::Faults;
pub use world::{Outcome, Violation, run};
