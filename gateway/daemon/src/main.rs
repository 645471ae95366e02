//! cnova-gateway
fn main() {}
