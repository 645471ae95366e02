//! What each kind of runtime understands in [`crate::Spec::settings`], and in a manifest's `settings`.
//!
//! The hub checks a manifest against these before it accepts it, and the runtime reads them again: a field that one of
//! them does not know is refused, never ignored, because it may be the one that was to protect something.

mod container;
mod ebpf;
mod wasm;

pub use container::{Container, ContainerVolume, HttpProbe, Isolation, Network, OwnNetwork, Probe, Seccomp};
pub use ebpf::{Ebpf, LogEncoding, MapMetric, Program, ProgramKind};
pub use wasm::{NamedModel, Wasm};

use serde::de::DeserializeOwned;

/// Reads settings; none are the defaults.
///
/// # Errors
/// What is wrong and where, for a person.
pub fn read<T: DeserializeOwned + Default>(value: &serde_json::Value) -> Result<T, String> {
    if value.is_null() {
        return Ok(T::default());
    }
    serde_json::from_value(value.clone()).map_err(|e| format!("settings: {e}"))
}
