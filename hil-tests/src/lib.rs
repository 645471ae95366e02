//! Scenarios for the whole line, and what drives them. The simulator runs the real cores of a hub, gateways and agents
//! in virtual time from one seed.

pub mod sim;
