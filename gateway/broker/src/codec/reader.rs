//! Bytes to fields. Every step checks that the bytes are there.

use super::reason;

/// A packet that breaks the protocol, with the reason code to close with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed {
    pub(crate) reason: u8,
    pub(crate) what: &'static str,
}

impl Malformed {
    pub(crate) const fn packet(what: &'static str) -> Self {
        Self {
            reason: reason::MALFORMED_PACKET,
            what,
        }
    }

    pub(crate) const fn protocol(what: &'static str) -> Self {
        Self {
            reason: reason::PROTOCOL_ERROR,
            what,
        }
    }
}

/// Length of the first packet in `buffer`, fixed header included; `None` while too little of it has arrived.
///
/// A packet above `max` is refused by its header, before its body is read.
pub(crate) fn frame_len(buffer: &[u8], max: usize) -> Result<Option<usize>, Malformed> {
    let Some(rest) = buffer.get(1..) else { return Ok(None) };
    let mut reader = Reader { bytes: rest };
    let remaining = match reader.variable() {
        Ok(remaining) => remaining,
        Err(_) if rest.len() < 4 => return Ok(None),
        Err(malformed) => return Err(malformed),
    };
    let total = 1 + (rest.len() - reader.bytes.len()) + remaining;
    if total > max {
        return Err(Malformed {
            reason: reason::PACKET_TOO_LARGE,
            what: "the packet exceeds the maximum packet size",
        });
    }
    Ok((buffer.len() >= total).then_some(total))
}

/// A view of the bytes not yet read.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    /// The body of one whole packet, as found by [`frame_len`].
    pub(crate) fn body(packet: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader {
            bytes: packet.get(1..).unwrap_or_default(),
        };
        let remaining = reader.variable()?;
        if remaining != reader.bytes.len() {
            return Err(Malformed::packet("the remaining length is wrong"));
        }
        Ok(reader)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self
            .bytes
            .split_at_checked(count)
            .ok_or(Malformed::packet("the packet ends too early"))?;
        self.bytes = tail;
        Ok(head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// A variable byte integer: at most four bytes.
    pub(crate) fn variable(&mut self) -> Result<usize, Malformed> {
        let mut value = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.u8()?;
            value |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed::packet("a length has more than four bytes"))
    }

    pub(crate) fn binary(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.u16()?;
        self.take(usize::from(len))
    }

    pub(crate) fn string(&mut self) -> Result<&'a str, Malformed> {
        let text = std::str::from_utf8(self.binary()?).map_err(|_| Malformed::packet("a string is not UTF-8"))?;
        if text.contains('\0') {
            return Err(Malformed::packet("a string contains NUL"));
        }
        Ok(text)
    }

    /// A packet identifier, which is never zero.
    pub(crate) fn packet_id(&mut self) -> Result<u16, Malformed> {
        match self.u16()? {
            0 => Err(Malformed::protocol("the packet identifier is zero")),
            id => Ok(id),
        }
    }

    /// Hands every property to `each`; the property list is read to its end, known or not to `each`.
    pub(crate) fn properties(
        &mut self,
        mut each: impl FnMut(u8, Property<'a>) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        let len = self.variable()?;
        let mut list = Reader { bytes: self.take(len)? };
        while !list.is_empty() {
            let id = list.u8()?;
            let value = list.property(id)?;
            each(id, value)?;
        }
        Ok(())
    }

    fn property(&mut self, id: u8) -> Result<Property<'a>, Malformed> {
        Ok(match id {
            0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28 | 0x29 | 0x2a => Property::Number(u32::from(self.u8()?)),
            0x13 | 0x21 | 0x22 | 0x23 => Property::Number(u32::from(self.u16()?)),
            0x02 | 0x11 | 0x18 | 0x27 => Property::Number(self.u32()?),
            0x0b => {
                self.variable()?;
                Property::Other
            }
            0x03 | 0x08 | 0x12 | 0x15 | 0x1a | 0x1c | 0x1f => Property::Text(self.string()?),
            0x09 | 0x16 => {
                self.binary()?;
                Property::Other
            }
            0x26 => {
                self.string()?;
                self.string()?;
                Property::Other
            }
            _ => return Err(Malformed::packet("unknown property")),
        })
    }
}

/// The value of a property, as far as the front looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Property<'a> {
    Number(u32),
    Text(&'a str),
    Other,
}
