//! Drives the real executable with real objects, packets and kernel events. Needs root, and clang for the objects.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod attach;
mod damaged;
mod fieldbus;
mod kernel;
mod life;
mod network;
mod objects;
mod refusals;
mod support;
