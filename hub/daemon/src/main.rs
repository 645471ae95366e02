//! cnova-hub
fn main() {}
