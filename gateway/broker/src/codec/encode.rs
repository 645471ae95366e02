//! The packets we send.

use bytes::{BufMut, BytesMut};

/// What a CONNACK announces of us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Announcement {
    pub(crate) max_packet_bytes: u32,
    pub(crate) receive_maximum: u16,
    /// Present when the client must use another keep-alive than it asked for.
    pub(crate) keep_alive_secs: Option<u16>,
}

/// CONNACK: with `announcement` when the client is welcome, with a reason string when it is not.
pub(crate) fn connack(out: &mut BytesMut, reason: u8, announcement: Option<Announcement>, text: &str) {
    let mut properties = BytesMut::new();
    if let Some(announcement) = announcement {
        properties.put_u8(0x11); // session expiry: no session outlives its connection
        properties.put_u32(0);
        properties.put_u8(0x21);
        properties.put_u16(announcement.receive_maximum);
        properties.put_u8(0x27);
        properties.put_u32(announcement.max_packet_bytes);
        properties.put_u8(0x22); // topic alias maximum
        properties.put_u16(0);
        // maximum QoS, then what is not available: retain, wildcards, subscription identifiers, shared subscriptions
        properties.put_slice(&[0x24, 1, 0x25, 0, 0x28, 0, 0x29, 0, 0x2a, 0]);
        if let Some(secs) = announcement.keep_alive_secs {
            properties.put_u8(0x13);
            properties.put_u16(secs);
        }
    }
    reason_string(&mut properties, text);
    header(out, 0x20, 2 + variable_len(properties.len()) + properties.len());
    out.put_u8(0); // a session is never present
    out.put_u8(reason);
    variable(out, properties.len());
    out.put_slice(&properties);
}

/// What a client of MQTT 3 understands: "unacceptable protocol version".
pub(crate) fn connack_v3_refusal(out: &mut BytesMut) {
    out.put_slice(&[0x20, 2, 0, 1]);
}

/// Bytes that [`publish`] writes for QoS 1.
pub(crate) fn publish_len(topic_len: usize, payload_len: usize) -> usize {
    let remaining = 2 + topic_len + 2 + 1 + payload_len;
    1 + variable_len(remaining) + remaining
}

/// PUBLISH: QoS 1 with a packet identifier, QoS 0 without.
pub(crate) fn publish(out: &mut BytesMut, topic: &str, packet_id: Option<u16>, payload: &[u8]) {
    let id_len = if packet_id.is_some() { 2 } else { 0 };
    let first = if packet_id.is_some() { 0x32 } else { 0x30 };
    header(out, first, 2 + topic.len() + id_len + 1 + payload.len());
    string(out, topic);
    if let Some(id) = packet_id {
        out.put_u16(id);
    }
    out.put_u8(0); // no properties
    out.put_slice(payload);
}

/// PUBACK with "success", which has a form of its own of two bytes.
pub(crate) fn puback(out: &mut BytesMut, packet_id: u16) {
    header(out, 0x40, 2);
    out.put_u16(packet_id);
}

/// SUBACK: one code for each filter.
pub(crate) fn suback(out: &mut BytesMut, packet_id: u16, codes: &[u8]) {
    acknowledge(out, 0x90, packet_id, codes);
}

/// UNSUBACK: one code for each filter.
pub(crate) fn unsuback(out: &mut BytesMut, packet_id: u16, codes: &[u8]) {
    acknowledge(out, 0xb0, packet_id, codes);
}

/// PINGRESP.
pub(crate) fn pingresp(out: &mut BytesMut) {
    header(out, 0xd0, 0);
}

/// DISCONNECT with its reason in words.
pub(crate) fn disconnect(out: &mut BytesMut, reason: u8, text: &str) {
    let mut properties = BytesMut::new();
    reason_string(&mut properties, text);
    header(out, 0xe0, 1 + variable_len(properties.len()) + properties.len());
    out.put_u8(reason);
    variable(out, properties.len());
    out.put_slice(&properties);
}

fn acknowledge(out: &mut BytesMut, first: u8, packet_id: u16, codes: &[u8]) {
    header(out, first, 2 + 1 + codes.len());
    out.put_u16(packet_id);
    out.put_u8(0); // no properties
    out.put_slice(codes);
}

fn header(out: &mut BytesMut, first: u8, remaining: usize) {
    out.reserve(5 + remaining);
    out.put_u8(first);
    variable(out, remaining);
}

fn reason_string(out: &mut BytesMut, text: &str) {
    if !text.is_empty() {
        out.put_u8(0x1f);
        string(out, text);
    }
}

/// Callers pass topics and reason strings, which are short; longer ones are cut at the format's limit.
fn string(out: &mut BytesMut, text: &str) {
    let text = &text[..text.floor_char_boundary(usize::from(u16::MAX))];
    out.put_u16(text.len() as u16);
    out.put_slice(text.as_bytes());
}

fn variable(out: &mut BytesMut, mut value: usize) {
    loop {
        let byte = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            out.put_u8(byte);
            return;
        }
        out.put_u8(byte | 0x80);
    }
}

fn variable_len(value: usize) -> usize {
    match value {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}
