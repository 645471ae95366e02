//! The one place with the settings of the Wasm engine.
//!
//! The hub compiles, the device only loads. Loading succeeds only if both sides agree on every setting that shaped
//! the machine code, so both take them from here, and nothing here depends on which cargo features of wasmtime
//! happen to be on. Whoever changes a setting raises the number in [`ENGINE`]: artifacts made before are then refused
//! with a clear message.

#[cfg(feature = "compile")]
mod inspect;
#[cfg(feature = "compile")]
mod precompile;

#[cfg(feature = "compile")]
pub use inspect::{InspectError, Inspection, Kind, inspect};
#[cfg(feature = "compile")]
pub use precompile::{PrecompileError, precompile};

use wasmtime::{Config, Inlining, ModuleVersionStrategy, WasmBacktraceDetails, WasmFeatures};

/// Settings and engine version of an artifact. It is written into every artifact and checked at load.
pub const ENGINE: &str = "cnova-1-wasmtime-48.0.8";

/// Targets that artifacts are compiled for.
pub const TARGETS: [&str; 3] = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", PULLEY_TARGET];

/// Bytecode of wasmtime's own interpreter instead of machine code, the same for every 64-bit little-endian machine.
/// The interpreter is in every runtime, but a runtime takes such an artifact only if the manifest asks for it.
pub const PULLEY_TARGET: &str = "pulley64";

/// The target of the machine this was built for, if artifacts can be compiled for it.
pub const HOST_TARGET: Option<&str> = if cfg!(all(target_arch = "x86_64", target_os = "linux")) {
    Some(TARGETS[0])
} else if cfg!(all(target_arch = "aarch64", target_os = "linux")) {
    Some(TARGETS[1])
} else {
    None
};

/// Address space set aside for a linear memory, in bytes; growing past it moves the memory.
pub const MEMORY_RESERVATION: u64 = 64 << 20;
/// Unmapped space after it, in bytes.
pub const MEMORY_GUARD: u64 = 64 << 10;
/// What a guest may put on its stack, in bytes.
pub const WASM_STACK: usize = 512 << 10;
/// The stack that a guest and the host functions it calls share, in bytes.
pub const TASK_STACK: usize = 1 << 20;

/// Address space a memory gains beyond its size when it has to move, in bytes. Only the device uses it.
const RESERVATION_FOR_GROWTH: u64 = 16 << 20;

/// What compilers for WASI emit today, and no more. No threads, no garbage collection, no 64-bit memories; no relaxed
/// SIMD because its results differ between machines.
pub fn features() -> WasmFeatures {
    WasmFeatures::MUTABLE_GLOBAL
        | WasmFeatures::SATURATING_FLOAT_TO_INT
        | WasmFeatures::SIGN_EXTENSION
        | WasmFeatures::REFERENCE_TYPES
        | WasmFeatures::CALL_INDIRECT_OVERLONG
        | WasmFeatures::MULTI_VALUE
        | WasmFeatures::BULK_MEMORY
        | WasmFeatures::BULK_MEMORY_OPT
        | WasmFeatures::SIMD
        | WasmFeatures::FLOATS
        | WasmFeatures::EXTENDED_CONST
        | WasmFeatures::TAIL_CALL
        | WasmFeatures::MULTI_MEMORY
        | WasmFeatures::COMPONENT_MODEL
}

/// The engine's settings, the same for whoever compiles and whoever runs.
pub fn config() -> Config {
    let mut config = Config::new();
    config
        // Every feature is set one way or the other, for the defaults follow wasmtime's cargo features.
        .wasm_features(WasmFeatures::all(), false)
        .wasm_features(features(), true)
        .concurrency_support(false)
        .shared_memory(false)
        // Stopping a guest and sharing the CPU both work by epochs.
        .epoch_interruption(true)
        .consume_fuel(false)
        .memory_reservation(MEMORY_RESERVATION)
        .memory_guard_size(MEMORY_GUARD)
        .memory_reservation_for_growth(RESERVATION_FOR_GROWTH)
        .memory_may_move(true)
        .guard_before_linear_memory(false)
        .max_wasm_stack(WASM_STACK)
        .async_stack_size(TASK_STACK)
        .compiler_inlining(Inlining::No)
        .debug_info(false)
        .debug_symbols(false)
        .generate_address_map(true)
        // The default asks an environment variable, which would make two hubs compile differently.
        .wasm_backtrace_details(WasmBacktraceDetails::Disable);
    #[cfg(feature = "compile")]
    config.cranelift_opt_level(wasmtime::OptLevel::Speed);
    if config
        .module_version(ModuleVersionStrategy::Custom(ENGINE.to_owned()))
        .is_err()
    {
        unreachable!("an engine name of more than 255 bytes");
    }
    config
}

/// The settings of an engine that runs [`PULLEY_TARGET`] and nothing else: it never maps memory as executable.
pub fn pulley_config() -> Config {
    let mut config = config();
    if config.target(PULLEY_TARGET).is_err() {
        unreachable!("wasmtime without its interpreter");
    }
    config
}
