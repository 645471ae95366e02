//! cnova-agent
fn main() {}
