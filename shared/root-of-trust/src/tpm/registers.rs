//! Platform configuration registers: reading, extending, quoting.

use std::collections::BTreeMap;

use cnova_attestation::{Pcr, Quote};
use cnova_shared::ids::Digest;
use serde_bytes::ByteBuf;
use tss_esapi::Context;
use tss_esapi::handles::PcrHandle;
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::structures::{
    AttestInfo, Data, Digest as TpmDigest, DigestValues, PcrSelectSize, PcrSelectionList, PcrSlot, SignatureScheme,
};
use tss_esapi::traits::Marshall;

use super::fault::{At, Fault, refused};
use super::objects::PASSWORD;
use super::provision::Keys;
use crate::RootError;
use crate::boot_policy::PCR_COUNT;

/// Most digests that TPM2_PCR_Read returns at once.
const PCRS_PER_READ: usize = 8;
/// How often registers are read anew when somebody extends them between reading and quoting.
const QUOTE_TRIES: usize = 5;

/// Sorted, each once, all of them possible; at least one.
pub(super) fn checked(command: &'static str, pcrs: &[u8]) -> Result<Vec<u8>, RootError> {
    let mut sorted = pcrs.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let bad = sorted.last().is_none_or(|last| *last >= PCR_COUNT);
    if bad {
        let reason = format!(
            "it takes 1 to {PCR_COUNT} registers from 0 to {}, not {pcrs:?}",
            PCR_COUNT - 1
        );
        return Err(RootError::Refused { command, reason });
    }
    Ok(sorted)
}

pub(super) fn selection(command: &'static str, pcrs: &[u8]) -> Result<PcrSelectionList, Fault> {
    let slots: Result<Vec<PcrSlot>, _> = pcrs.iter().map(|p| PcrSlot::try_from(1_u32 << p)).collect();
    PcrSelectionList::builder()
        .with_size_of_select(PcrSelectSize::ThreeOctets)
        .with_selection(HashingAlgorithm::Sha256, &slots.at(command)?)
        .build()
        .at(command)
}

pub(super) fn read(context: &mut Context, pcrs: &[u8]) -> Result<BTreeMap<u8, Pcr>, Fault> {
    let command = "TPM2_PCR_Read";
    let mut out = BTreeMap::new();
    for some in pcrs.chunks(PCRS_PER_READ) {
        let selection = selection(command, some)?;
        let (_, _, digests) = context
            .execute_without_session(|ctx| ctx.pcr_read(selection))
            .at(command)?;
        let digests = digests.value();
        if digests.len() != some.len() {
            let reason = format!(
                "it returned {} of {} values: switch its SHA-256 bank on in the firmware",
                digests.len(),
                some.len()
            );
            return Err(refused(command, reason));
        }
        for (pcr, digest) in some.iter().zip(digests) {
            let value = <[u8; 32]>::try_from(digest.as_ref());
            let value = value.map_err(|_| refused(command, format!("PCR {pcr} has {} bytes", digest.len())))?;
            out.insert(*pcr, Digest(value));
        }
    }
    Ok(out)
}

pub(super) fn extend(context: &mut Context, pcr: u8, digest: &Digest) -> Result<(), Fault> {
    let command = "TPM2_PCR_Extend";
    let register = handle(pcr).ok_or_else(|| refused(command, format!("there is no PCR {pcr}")))?;
    let mut values = DigestValues::new();
    values.set(
        HashingAlgorithm::Sha256,
        TpmDigest::try_from(digest.0.as_slice()).at(command)?,
    );
    context
        .execute_with_session(PASSWORD, |ctx| ctx.pcr_extend(register, values))
        .at(command)
}

const fn handle(pcr: u8) -> Option<PcrHandle> {
    use PcrHandle as H;
    const ALL: [PcrHandle; PCR_COUNT as usize] = [
        H::Pcr0,
        H::Pcr1,
        H::Pcr2,
        H::Pcr3,
        H::Pcr4,
        H::Pcr5,
        H::Pcr6,
        H::Pcr7,
        H::Pcr8,
        H::Pcr9,
        H::Pcr10,
        H::Pcr11,
        H::Pcr12,
        H::Pcr13,
        H::Pcr14,
        H::Pcr15,
        H::Pcr16,
        H::Pcr17,
        H::Pcr18,
        H::Pcr19,
        H::Pcr20,
        H::Pcr21,
        H::Pcr22,
        H::Pcr23,
    ];
    if pcr < PCR_COUNT { Some(ALL[pcr as usize]) } else { None }
}

/// A quote and the values that it is about. Other programs extend registers too (IMA does so all the time), so both are
/// taken anew until they fit.
pub(super) fn quote(context: &mut Context, keys: &Keys, qualifying: &Digest, pcrs: &[u8]) -> Result<Quote, Fault> {
    let command = "TPM2_Quote";
    for _ in 0..QUOTE_TRIES {
        let values = read(context, pcrs)?;
        let data = Data::try_from(qualifying.0.as_slice()).at(command)?;
        let selection = selection(command, pcrs)?;
        let (attest, signature) = context
            .execute_with_session(PASSWORD, |ctx| {
                ctx.quote(keys.ak, data, SignatureScheme::Null, selection)
            })
            .at(command)?;
        let AttestInfo::Quote { info } = attest.attested() else {
            return Err(refused(command, "it answered with something else than a quote"));
        };
        let concatenated: Vec<u8> = values.values().flat_map(|v| v.0).collect();
        if **info.pcr_digest() == Digest::of(&concatenated).0 {
            return Ok(Quote {
                attest: ByteBuf::from(attest.marshall().at(command)?),
                signature: ByteBuf::from(signature.marshall().at(command)?),
                pcrs: values,
            });
        }
    }
    Err(refused(
        command,
        format!(
            "registers {pcrs:?} changed during each of {QUOTE_TRIES} quotes; quote fewer, or none that IMA extends"
        ),
    ))
}
