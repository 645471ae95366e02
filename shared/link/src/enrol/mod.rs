//! Enrolment on the wire: TLS 1.3 with the server's certificate only, and frames of a big-endian `u32` length and CBOR.
//!
//! A newcomer has no certificate, so it cannot speak MQTT. It checks the server against the authorities of the trust bundle
//! that it was flashed with, says [`v1::EnrolStep`]s and hears [`v1::EnrolAnswer`]s. [`Door`] is the server's side, at a
//! hub or a gateway; [`Newcomer`] the client's. docs/ENROLMENT.md draws it.
//!
//! [`v1::EnrolStep`]: cnova_shared::wire::v1::EnrolStep
//! [`v1::EnrolAnswer`]: cnova_shared::wire::v1::EnrolAnswer

mod client;
mod door;
mod frame;
mod keeper;

pub use client::{EnrolError, Newcomer};
pub use door::{Asked, Door, DoorError, DoorLimits};
pub use frame::FrameError;
pub use keeper::{Before, Identified, Keeper, identify};
