//! cnova-aot
fn main() {}
