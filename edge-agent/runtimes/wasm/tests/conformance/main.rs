//! Drives the real executable in state folders, the way the agent does.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod guests;
mod ral;
mod support;
