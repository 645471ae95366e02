//! Scenarios for the whole line, and what drives them. The simulator runs the real cores of a hub, gateways and agents
//! in virtual time from one seed; the demo runs the real programs on loopback; a board boots a real image in QEMU.

pub mod board;
pub mod demo;
pub mod measure;
pub mod scenario;
pub mod sim;
