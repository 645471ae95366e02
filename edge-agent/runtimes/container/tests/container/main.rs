//! The runtime as a whole: the executable, real images, the kernel.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

mod confinement;
mod external;
mod guest;
mod health;
mod images;
mod life;
mod limits;
mod network;
mod remains;
mod secrets;
mod support;
