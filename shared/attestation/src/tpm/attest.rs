//! `TPMS_ATTEST` (part 2, section 10.12.12): what TPM2_Quote and TPM2_Certify sign.

use super::TpmError;
use super::reader::Reader;

const GENERATED: u32 = 0xff54_4347;
const TAG_CERTIFY: u16 = 0x8017;
const TAG_QUOTE: u16 = 0x8018;
const NAME_MAX: usize = 66;
const DATA_MAX: usize = 66;
const DIGEST_MAX: usize = 64;
const BANKS_MAX: u32 = 16;
const SELECT_MIN: u8 = 3;
const SELECT_MAX: u8 = 4;

/// When a TPM said something (`TPMS_CLOCK_INFO`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockInfo {
    /// Milliseconds that the TPM was powered; it may go back after a power cut.
    pub clock_ms: u64,
    /// Resets since the TPM was cleared: every boot of the machine counts.
    pub reset_count: u32,
    /// Suspends since the last reset.
    pub restart_count: u32,
    /// Whether the clock certainly never went back.
    pub safe: bool,
}

/// Registers of one bank (`TPMS_PCR_SELECTION`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PcrSelection {
    /// The bank's hash algorithm (`TPM_ALG_ID`).
    pub bank: u16,
    /// The registers, ascending.
    pub pcrs: Vec<u8>,
}

/// What was attested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attested {
    /// TPM2_Quote.
    Quote {
        /// The registers, in the order in which they were digested.
        selection: Vec<PcrSelection>,
        /// The digest over their values.
        digest: Vec<u8>,
    },
    /// TPM2_Certify.
    Certify {
        /// The name of the key that was certified.
        name: Vec<u8>,
    },
}

/// An attestation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attest {
    /// What the caller of the TPM wanted in it.
    pub extra_data: Vec<u8>,
    /// When.
    pub clock: ClockInfo,
    /// The version of the TPM's firmware, as its maker counts.
    pub firmware_version: u64,
    /// What was attested.
    pub attested: Attested,
}

impl Attest {
    /// Reads a `TPMS_ATTEST` of a quote or a certification.
    ///
    /// # Errors
    /// [`TpmError`] when it is not one.
    pub fn read(bytes: &[u8]) -> Result<Self, TpmError> {
        let mut r = Reader::new(bytes);
        if r.u32("its magic")? != GENERATED {
            return Err(TpmError::NotGenerated);
        }
        let kind = r.u16("its type")?;
        r.sized("its signer", NAME_MAX)?;
        let extra_data = r.sized("its extra data", DATA_MAX)?.to_vec();
        let clock = ClockInfo {
            clock_ms: r.u64("its clock")?,
            reset_count: r.u32("its reset count")?,
            restart_count: r.u32("its restart count")?,
            safe: match r.u8("its clock's safety")? {
                0 => false,
                1 => true,
                value => {
                    return Err(TpmError::Value {
                        what: "its clock's safety",
                        value: value.into(),
                    });
                }
            },
        };
        let firmware_version = r.u64("its firmware version")?;
        let attested = match kind {
            TAG_QUOTE => Attested::Quote {
                selection: read_selection(&mut r)?,
                digest: r.sized("its digest", DIGEST_MAX)?.to_vec(),
            },
            TAG_CERTIFY => {
                let name = r.sized("the certified name", NAME_MAX)?.to_vec();
                r.sized("the certified qualified name", NAME_MAX)?;
                Attested::Certify { name }
            }
            other => {
                return Err(TpmError::Value {
                    what: "its type",
                    value: other.into(),
                });
            }
        };
        r.end()?;
        Ok(Self {
            extra_data,
            clock,
            firmware_version,
            attested,
        })
    }
}

fn read_selection(r: &mut Reader<'_>) -> Result<Vec<PcrSelection>, TpmError> {
    let banks = r.u32("its number of banks")?;
    if banks > BANKS_MAX {
        return Err(TpmError::Value {
            what: "its number of banks",
            value: banks.into(),
        });
    }
    let mut selection = Vec::new();
    for _ in 0..banks {
        let bank = r.u16("a bank's hash")?;
        let size = r.u8("a bank's size")?;
        if !(SELECT_MIN..=SELECT_MAX).contains(&size) {
            return Err(TpmError::Value {
                what: "a bank's size",
                value: size.into(),
            });
        }
        let bits = r.bytes("a bank's registers", size.into())?;
        let set = |pcr: &u8| bits[usize::from(pcr / 8)] >> (pcr % 8) & 1 == 1;
        let pcrs = (0..size * 8).filter(set).collect();
        selection.push(PcrSelection { bank, pcrs });
    }
    Ok(selection)
}
