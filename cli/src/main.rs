//! cnova
fn main() {}
