//! CONNECT, the first packet.

use super::reader::{Malformed, Property, Reader};

/// What a client asks for when it connects. User name and password are read over: the certificate is the identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Connect {
    pub(crate) client_id: String,
    pub(crate) keep_alive_secs: u16,
    pub(crate) has_will: bool,
    pub(crate) has_authentication_method: bool,
    /// Most QoS 1 messages the client takes unacknowledged.
    pub(crate) receive_maximum: u16,
    /// Largest packet the client takes.
    pub(crate) maximum_packet_size: Option<u32>,
}

/// Why a first packet is not a CONNECT that we can answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ConnectError {
    NotConnect,
    Version(u8),
    Malformed(Malformed),
}

impl From<Malformed> for ConnectError {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

/// Reads one whole packet, which must be a CONNECT.
pub(crate) fn decode_connect(packet: &[u8]) -> Result<Connect, ConnectError> {
    if packet.first() != Some(&0x10) {
        return Err(ConnectError::NotConnect);
    }
    let mut reader = Reader::body(packet)?;
    let name = reader.string()?;
    let level = reader.u8()?;
    match (name, level) {
        ("MQTT", 5) => {}
        ("MQTT" | "MQIsdp", other) => return Err(ConnectError::Version(other)),
        _ => return Err(ConnectError::NotConnect),
    }
    let flags = reader.u8()?;
    if flags & 0x01 != 0 {
        return Err(Malformed::packet("the reserved flag of CONNECT is set").into());
    }
    let mut connect = Connect {
        client_id: String::new(),
        keep_alive_secs: reader.u16()?,
        has_will: flags & 0x04 != 0,
        has_authentication_method: false,
        receive_maximum: u16::MAX,
        maximum_packet_size: None,
    };
    reader.properties(|id, value| property(&mut connect, id, value))?;
    connect.client_id = reader.string()?.to_owned();
    if connect.has_will {
        reader.properties(|_, _| Ok(()))?;
        reader.string()?;
        reader.binary()?;
    }
    if flags & 0x80 != 0 {
        reader.string()?;
    }
    if flags & 0x40 != 0 {
        reader.binary()?;
    }
    if !reader.is_empty() {
        return Err(Malformed::packet("CONNECT has bytes left over").into());
    }
    Ok(connect)
}

fn property(connect: &mut Connect, id: u8, value: Property<'_>) -> Result<(), Malformed> {
    match (id, value) {
        (0x21 | 0x27, Property::Number(0)) => return Err(Malformed::protocol("a maximum of CONNECT is zero")),
        (0x21, Property::Number(number)) => connect.receive_maximum = u16::try_from(number).unwrap_or(u16::MAX),
        (0x27, Property::Number(number)) => connect.maximum_packet_size = Some(number),
        (0x15, _) => connect.has_authentication_method = true,
        // Session expiry, topic alias maximum, request flags, user properties, authentication data: nothing
        // that the client asks for here changes what we do, and CONNACK says what it gets.
        (0x11 | 0x16 | 0x17 | 0x19 | 0x22 | 0x26, _) => {}
        _ => return Err(Malformed::protocol("a property does not belong into CONNECT")),
    }
    Ok(())
}
