//! The firmware's log of what it measured (`binary_bios_measurements`), in the crypto-agile format of the TCG PC Client
//! Platform Firmware Profile, section 10. It only serves to name the event that differs: what is true, the registers say.

use std::collections::{BTreeMap, BTreeSet};

use cnova_shared::ids::Digest;
use thiserror::Error;

use crate::event_log::{ZERO, extended};
use crate::{Pcr, limits};

const ALG_SHA256: u16 = 0x000b;
const SHA1_BYTES: usize = 20;
const DIGEST_MAX: u16 = 64;
const EV_NO_ACTION: u32 = 3;
const SIGNATURE: &[u8; 16] = b"Spec ID Event03\0";
const STARTUP_LOCALITY: &[u8; 16] = b"StartupLocality\0";

/// Why a log cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FirmwareLogError {
    /// It is larger than what is taken.
    #[error("it has {0} bytes, at most {max} are taken", max = limits::FIRMWARE_LOG_BYTES)]
    TooLarge(usize),
    /// It ends in the middle of an event.
    #[error("it ends in the middle of event {0}")]
    Short(usize),
    /// It is not in the crypto-agile format.
    #[error("it does not begin with \"Spec ID Event03\": it is of an older format")]
    OtherFormat,
    /// It has no digests of the bank that we quote.
    #[error("it has no SHA-256 digests")]
    NoSha256,
    /// It claims a bank that there is not, twice the same, or too many.
    #[error("event {0} has banks of digests that the log's header does not name")]
    Banks(usize),
    /// It has too many events.
    #[error("it has more than {max} events", max = limits::FIRMWARE_EVENTS)]
    TooMany,
}

/// One measured event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirmwareEvent {
    /// Its place in the log; 0 is the header.
    pub index: usize,
    /// The register.
    pub pcr: u32,
    /// Its type (`EV_...`).
    pub kind: u32,
    /// What the register was extended with.
    pub digest: Digest,
}

impl FirmwareEvent {
    /// The type's name.
    #[must_use]
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            0x0000_0001 => "EV_POST_CODE",
            0x0000_0003 => "EV_NO_ACTION",
            0x0000_0004 => "EV_SEPARATOR",
            0x0000_0005 => "EV_ACTION",
            0x0000_0006 => "EV_EVENT_TAG",
            0x0000_0007 => "EV_S_CRTM_CONTENTS",
            0x0000_0008 => "EV_S_CRTM_VERSION",
            0x0000_0009 => "EV_CPU_MICROCODE",
            0x0000_000a => "EV_PLATFORM_CONFIG_FLAGS",
            0x0000_000b => "EV_TABLE_OF_DEVICES",
            0x0000_000c => "EV_COMPACT_HASH",
            0x0000_000d => "EV_IPL",
            0x0000_000e => "EV_IPL_PARTITION_DATA",
            0x0000_000f => "EV_NONHOST_CODE",
            0x0000_0010 => "EV_NONHOST_CONFIG",
            0x0000_0011 => "EV_NONHOST_INFO",
            0x8000_0001 => "EV_EFI_VARIABLE_DRIVER_CONFIG",
            0x8000_0002 => "EV_EFI_VARIABLE_BOOT",
            0x8000_0003 => "EV_EFI_BOOT_SERVICES_APPLICATION",
            0x8000_0004 => "EV_EFI_BOOT_SERVICES_DRIVER",
            0x8000_0005 => "EV_EFI_RUNTIME_SERVICES_DRIVER",
            0x8000_0006 => "EV_EFI_GPT_EVENT",
            0x8000_0007 => "EV_EFI_ACTION",
            0x8000_0008 => "EV_EFI_PLATFORM_FIRMWARE_BLOB",
            0x8000_0009 => "EV_EFI_HANDOFF_TABLES",
            0x8000_000a => "EV_EFI_PLATFORM_FIRMWARE_BLOB2",
            0x8000_000b => "EV_EFI_HANDOFF_TABLES2",
            0x8000_000c => "EV_EFI_VARIABLE_BOOT2",
            0x8000_0010 => "EV_EFI_HCRTM_EVENT",
            0x8000_00e0 => "EV_EFI_VARIABLE_AUTHORITY",
            0x8000_00e1 => "EV_EFI_SPDM_FIRMWARE_BLOB",
            _ => "event of another type",
        }
    }
}

/// A log that could be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FirmwareLog {
    events: Vec<FirmwareEvent>,
    locality: u8,
}

impl FirmwareLog {
    /// Reads a log.
    ///
    /// # Errors
    /// [`FirmwareLogError`] with the event at which it stops making sense.
    pub fn read(bytes: &[u8]) -> Result<Self, FirmwareLogError> {
        if bytes.len() > limits::FIRMWARE_LOG_BYTES {
            return Err(FirmwareLogError::TooLarge(bytes.len()));
        }
        let mut rest = bytes;
        let banks = read_header(&mut rest)?;
        let mut log = Self::default();
        for index in 1.. {
            if rest.is_empty() {
                break;
            }
            if index > limits::FIRMWARE_EVENTS {
                return Err(FirmwareLogError::TooMany);
            }
            let (event, data) = read_event(&mut rest, index, &banks)?;
            if event.kind != EV_NO_ACTION {
                log.events.push(event);
            } else if let Some(locality) = data.strip_prefix(STARTUP_LOCALITY) {
                log.locality = locality.first().copied().unwrap_or(0);
            }
        }
        Ok(log)
    }

    /// What the log says that this register holds.
    #[must_use]
    pub fn replay(&self, pcr: u8) -> Pcr {
        let mut start = ZERO;
        if pcr == 0 {
            // Part 1, section 34.3: PCR 0 begins with the locality that started the TPM.
            start.0[31] = self.locality;
        }
        self.of(pcr).fold(start, |value, e| extended(&value, &e.digest))
    }

    /// The first event of this register whose digest is not among `known`.
    #[must_use]
    pub fn first_unknown(&self, pcr: u8, known: &BTreeSet<Digest>) -> Option<&FirmwareEvent> {
        self.of(pcr).find(|e| !known.contains(&e.digest))
    }

    /// The digests of a register's events, for reference values.
    #[must_use]
    pub fn digests(&self, pcr: u8) -> BTreeSet<Digest> {
        self.of(pcr).map(|e| e.digest).collect()
    }

    /// The same in the order in which they were measured.
    #[must_use]
    pub fn events_of(&self, pcr: u8) -> Vec<Digest> {
        self.of(pcr).map(|e| e.digest).collect()
    }

    fn of(&self, pcr: u8) -> impl Iterator<Item = &FirmwareEvent> {
        self.events.iter().filter(move |e| e.pcr == u32::from(pcr))
    }
}

fn take<'a>(rest: &mut &'a [u8], len: usize, event: usize) -> Result<&'a [u8], FirmwareLogError> {
    let (head, tail) = rest.split_at_checked(len).ok_or(FirmwareLogError::Short(event))?;
    *rest = tail;
    Ok(head)
}

fn number<const N: usize>(rest: &mut &[u8], event: usize) -> Result<[u8; N], FirmwareLogError> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or(FirmwareLogError::Short(event))?;
    *rest = tail;
    Ok(*head)
}

fn u16_le(rest: &mut &[u8], event: usize) -> Result<u16, FirmwareLogError> {
    number(rest, event).map(u16::from_le_bytes)
}

fn u32_le(rest: &mut &[u8], event: usize) -> Result<u32, FirmwareLogError> {
    number(rest, event).map(u32::from_le_bytes)
}

fn size(rest: &mut &[u8], event: usize) -> Result<usize, FirmwareLogError> {
    usize::try_from(u32_le(rest, event)?).map_err(|_| FirmwareLogError::Short(event))
}

/// `TCG_PCR_EVENT` with a `TCG_EfiSpecIDEvent`: which banks there are, and how long their digests.
fn read_header(rest: &mut &[u8]) -> Result<BTreeMap<u16, usize>, FirmwareLogError> {
    let _pcr = u32_le(rest, 0)?;
    if u32_le(rest, 0)? != EV_NO_ACTION {
        return Err(FirmwareLogError::OtherFormat);
    }
    take(rest, SHA1_BYTES, 0)?;
    let len = size(rest, 0)?;
    let mut data = take(rest, len, 0)?;
    if take(&mut data, SIGNATURE.len(), 0)? != SIGNATURE {
        return Err(FirmwareLogError::OtherFormat);
    }
    // Platform class, versions and the size of an integer.
    take(&mut data, 8, 0)?;
    let count = size(&mut data, 0)?;
    if count > limits::FIRMWARE_ALGORITHMS {
        return Err(FirmwareLogError::Banks(0));
    }
    let mut banks = BTreeMap::new();
    for _ in 0..count {
        let (algorithm, len) = (u16_le(&mut data, 0)?, u16_le(&mut data, 0)?);
        if len > DIGEST_MAX || banks.insert(algorithm, usize::from(len)).is_some() {
            return Err(FirmwareLogError::Banks(0));
        }
    }
    if banks.get(&ALG_SHA256) != Some(&32) {
        return Err(FirmwareLogError::NoSha256);
    }
    Ok(banks)
}

/// `TCG_PCR_EVENT2`.
fn read_event<'a>(
    rest: &mut &'a [u8],
    index: usize,
    banks: &BTreeMap<u16, usize>,
) -> Result<(FirmwareEvent, &'a [u8]), FirmwareLogError> {
    let (pcr, kind) = (u32_le(rest, index)?, u32_le(rest, index)?);
    let count = size(rest, index)?;
    if count > banks.len() {
        return Err(FirmwareLogError::Banks(index));
    }
    let mut sha256 = None;
    for _ in 0..count {
        let algorithm = u16_le(rest, index)?;
        let len = *banks.get(&algorithm).ok_or(FirmwareLogError::Banks(index))?;
        let bytes = take(rest, len, index)?;
        if algorithm == ALG_SHA256 {
            sha256 = bytes.try_into().ok().map(Digest);
        }
    }
    let digest = sha256.ok_or(FirmwareLogError::NoSha256)?;
    let len = size(rest, index)?;
    let data = take(rest, len, index)?;
    let event = FirmwareEvent {
        index,
        pcr,
        kind,
        digest,
    };
    Ok((event, data))
}
