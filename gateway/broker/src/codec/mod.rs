//! The part of MQTT 5 that the front speaks.
//!
//! Our own, small and total: rumqttd's `V5::read_mut` reaches `unreachable!()` on a packet that only a server
//! may send, and with `panic = "abort"` one such packet from one child would end the whole process.

mod connect;
mod decode;
mod encode;
mod reader;

pub(crate) use connect::{Connect, ConnectError, decode_connect};
pub(crate) use decode::{Incoming, Publish, decode};
pub(crate) use encode::{
    Announcement, connack, connack_v3_refusal, disconnect, pingresp, puback, publish, publish_len, suback, unsuback,
};
pub(crate) use reader::{Malformed, frame_len};

/// Reason codes of MQTT 5, section 2.4.
pub(crate) mod reason {
    pub(crate) const SUCCESS: u8 = 0x00;
    pub(crate) const NO_SUBSCRIPTION_EXISTED: u8 = 0x11;
    pub(crate) const MALFORMED_PACKET: u8 = 0x81;
    pub(crate) const PROTOCOL_ERROR: u8 = 0x82;
    pub(crate) const UNSUPPORTED_PROTOCOL_VERSION: u8 = 0x84;
    pub(crate) const CLIENT_IDENTIFIER_NOT_VALID: u8 = 0x85;
    pub(crate) const NOT_AUTHORIZED: u8 = 0x87;
    pub(crate) const SERVER_BUSY: u8 = 0x89;
    pub(crate) const SERVER_SHUTTING_DOWN: u8 = 0x8B;
    pub(crate) const BAD_AUTHENTICATION_METHOD: u8 = 0x8C;
    pub(crate) const KEEP_ALIVE_TIMEOUT: u8 = 0x8D;
    pub(crate) const SESSION_TAKEN_OVER: u8 = 0x8E;
    pub(crate) const TOPIC_ALIAS_INVALID: u8 = 0x94;
    pub(crate) const PACKET_TOO_LARGE: u8 = 0x95;
    pub(crate) const QUOTA_EXCEEDED: u8 = 0x97;
    pub(crate) const RETAIN_NOT_SUPPORTED: u8 = 0x9A;
    pub(crate) const QOS_NOT_SUPPORTED: u8 = 0x9B;
    pub(crate) const SUBSCRIPTION_ID_NOT_SUPPORTED: u8 = 0xA1;
}

#[cfg(test)]
mod tests;
