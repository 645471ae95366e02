//! The gateway's program around its core: configuration, store, links and the loop that performs what the core decides.
//!
//! ```text
//!  parent <=> upstream \                      / store (SQLite, one transaction per Persist)
//!                       event_loop <=> core --
//!  children <=> downstream /                  \ cache (artifacts on disk)
//! ```

pub mod batch;
pub mod cache;
pub mod clock;
pub mod config;
pub mod doorway;
pub mod downstream;
pub mod event_loop;
pub mod notes;
pub mod seal;
pub mod start;
pub mod store;
pub mod support;
pub mod trust;
pub mod upstream;
