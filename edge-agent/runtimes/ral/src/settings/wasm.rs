use serde::{Deserialize, Serialize};

/// Settings of a Wasm workload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Wasm {
    /// Portable bytecode instead of machine code: for a node that must not map memory as executable. 13 to 45 times
    /// slower. The hub compiles for it.
    pub pulley: bool,
    /// Keeps a core dump (`core.wasm` in the state folder) when it traps.
    pub core_dump: bool,
    /// CPU time in milliseconds that one run may use in all; it is ended with reason `budget` within 10 ms of it.
    pub cpu_budget_ms: Option<u64>,
    /// Most instances in one store, for a component that makes some.
    pub instances: Option<u32>,
    /// Models for wasi-nn, loaded before the start and found by name.
    pub models: Vec<NamedModel>,
}

/// A model for wasi-nn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NamedModel {
    /// The name that the workload loads it by.
    pub name: String,
    /// The workload's input file that holds it (`path` of one of its `files`).
    pub file: String,
}
