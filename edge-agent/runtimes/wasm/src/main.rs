//! cnova-runtime-wasm
fn main() {}
