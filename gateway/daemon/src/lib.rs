//! The gateway's program around its core: configuration, store, links and the loop that performs what the core decides.

pub mod batch;
pub mod config;
pub mod seal;
#[path = "store/rows.rs"]
pub mod rows;
