//! cnova-wasm-engine
