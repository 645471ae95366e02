//! A cursor over big-endian structures that never reads past their end.

use super::TpmError;

pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn take<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], TpmError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(TpmError::Short(what))?;
        self.rest = rest;
        Ok(*head)
    }

    pub(super) fn u8(&mut self, what: &'static str) -> Result<u8, TpmError> {
        self.take::<1>(what).map(|[b]| b)
    }

    pub(super) fn u16(&mut self, what: &'static str) -> Result<u16, TpmError> {
        self.take(what).map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, TpmError> {
        self.take(what).map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, TpmError> {
        self.take(what).map(u64::from_be_bytes)
    }

    pub(super) fn bytes(&mut self, what: &'static str, len: usize) -> Result<&'a [u8], TpmError> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(TpmError::Short(what))?;
        self.rest = rest;
        Ok(head)
    }

    /// A `TPM2B`: two bytes of length and that many bytes.
    pub(super) fn sized(&mut self, what: &'static str, max: usize) -> Result<&'a [u8], TpmError> {
        let len = usize::from(self.u16(what)?);
        if len > max {
            return Err(TpmError::Long { what, len, max });
        }
        self.bytes(what, len)
    }

    pub(super) fn end(self) -> Result<(), TpmError> {
        match self.rest.len() {
            0 => Ok(()),
            len => Err(TpmError::Trailing(len)),
        }
    }
}
