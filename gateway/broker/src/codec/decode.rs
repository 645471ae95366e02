//! The packets a client sends once it is connected.

use bytes::Bytes;

use super::reader::{Malformed, Reader};
use super::reason;

/// One packet from a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Incoming {
    Publish(Publish),
    PubAck(u16),
    Subscribe {
        packet_id: u16,
        /// Filter and the most QoS that is wanted.
        filters: Vec<(String, u8)>,
    },
    Unsubscribe {
        packet_id: u16,
        filters: Vec<String>,
    },
    PingReq,
    Disconnect,
}

/// A message from a client. Its properties are not carried on: what a message means is inside its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Publish {
    pub(crate) topic: String,
    /// Present for QoS 1, which wants a PUBACK.
    pub(crate) packet_id: Option<u16>,
    /// A copy: a slice would keep the whole read buffer alive in the router's log.
    pub(crate) payload: Bytes,
}

/// Reads one whole packet, as found by [`frame_len`](super::frame_len).
pub(crate) fn decode(packet: &[u8]) -> Result<Incoming, Malformed> {
    let first = packet.first().copied().unwrap_or_default();
    let reader = Reader::body(packet)?;
    match (first >> 4, first & 0x0f) {
        (3, flags) => publish(flags, reader).map(Incoming::Publish),
        (4, 0) => puback(reader),
        (8, 2) => subscribe(reader),
        (10, 2) => unsubscribe(reader),
        (12, 0) if reader.is_empty() => Ok(Incoming::PingReq),
        (14, 0) => Ok(Incoming::Disconnect),
        (5..=7, _) => Err(Malformed {
            reason: reason::QOS_NOT_SUPPORTED,
            what: "QoS 2 is not served here",
        }),
        (4 | 8 | 10 | 12 | 14, _) => Err(Malformed::packet("the flags of the packet are wrong")),
        _ => Err(Malformed::protocol("a client does not send this packet")),
    }
}

fn publish(flags: u8, mut reader: Reader<'_>) -> Result<Publish, Malformed> {
    let qos = (flags >> 1) & 0x03;
    match qos {
        0 | 1 => {}
        2 => {
            return Err(Malformed {
                reason: reason::QOS_NOT_SUPPORTED,
                what: "QoS 2 is not served here",
            });
        }
        _ => return Err(Malformed::packet("QoS 3 does not exist")),
    }
    if flags & 0x01 != 0 {
        return Err(Malformed {
            reason: reason::RETAIN_NOT_SUPPORTED,
            what: "nothing is retained here",
        });
    }
    let topic = reader.string()?.to_owned();
    let packet_id = if qos == 1 { Some(reader.packet_id()?) } else { None };
    reader.properties(|id, _| match id {
        0x23 => Err(Malformed {
            reason: reason::TOPIC_ALIAS_INVALID,
            what: "topic aliases are not served here",
        }),
        0x01 | 0x02 | 0x03 | 0x08 | 0x09 | 0x26 => Ok(()),
        _ => Err(Malformed::protocol("a property does not belong into PUBLISH")),
    })?;
    Ok(Publish {
        topic,
        packet_id,
        payload: Bytes::copy_from_slice(reader.rest()),
    })
}

fn puback(mut reader: Reader<'_>) -> Result<Incoming, Malformed> {
    // Reason and properties are of no use: a message is acknowledged for good by an application-level report.
    Ok(Incoming::PubAck(reader.packet_id()?))
}

fn subscribe(mut reader: Reader<'_>) -> Result<Incoming, Malformed> {
    let packet_id = reader.packet_id()?;
    reader.properties(|id, _| match id {
        0x0b => Err(Malformed {
            reason: reason::SUBSCRIPTION_ID_NOT_SUPPORTED,
            what: "subscription identifiers are not served here",
        }),
        0x26 => Ok(()),
        _ => Err(Malformed::protocol("a property does not belong into SUBSCRIBE")),
    })?;
    let mut filters = Vec::new();
    while !reader.is_empty() {
        let filter = reader.string()?.to_owned();
        let options = reader.u8()?;
        if options & 0xc0 != 0 || options & 0x03 == 3 || options & 0x30 == 0x30 {
            return Err(Malformed::protocol("the options of a subscription are wrong"));
        }
        filters.push((filter, options & 0x03));
    }
    if filters.is_empty() {
        return Err(Malformed::protocol("SUBSCRIBE names nothing"));
    }
    Ok(Incoming::Subscribe { packet_id, filters })
}

fn unsubscribe(mut reader: Reader<'_>) -> Result<Incoming, Malformed> {
    let packet_id = reader.packet_id()?;
    reader.properties(|id, _| match id {
        0x26 => Ok(()),
        _ => Err(Malformed::protocol("a property does not belong into UNSUBSCRIBE")),
    })?;
    let mut filters = Vec::new();
    while !reader.is_empty() {
        filters.push(reader.string()?.to_owned());
    }
    if filters.is_empty() {
        return Err(Malformed::protocol("UNSUBSCRIBE names nothing"));
    }
    Ok(Incoming::Unsubscribe { packet_id, filters })
}
