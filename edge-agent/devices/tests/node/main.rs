//! Whole trees as the kernel lays them out, and this machine.

#![allow(clippy::unwrap_used)]

mod accelerators;
mod capacity;
mod configured;
mod fixture;
mod machine;
mod power;
