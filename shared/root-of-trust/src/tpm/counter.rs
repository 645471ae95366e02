//! The monotonic counter in NV memory.

use tss_esapi::Context;
use tss_esapi::attributes::NvIndexAttributesBuilder;
use tss_esapi::constants::NvIndexType;
use tss_esapi::handles::{NvIndexHandle, NvIndexTpmHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::{NvAuth, Provision};
use tss_esapi::structures::{NvPublic, NvPublicBuilder};

use super::fault::{At, Fault, refused};
use super::objects::{self, PASSWORD};

/// Bytes of a counter (TPM_NT_COUNTER).
const COUNTER_BYTES: u16 = 8;

/// The value; `None` when there is no counter or it was never counted up.
pub(super) fn read(context: &mut Context, index: u32) -> Result<Option<u64>, Fault> {
    match find(context, index)? {
        Some((handle, public)) if public.attributes().written() => value(context, handle).map(Some),
        _ => Ok(None),
    }
}

/// Counts up by one. A counter that was removed and made again goes on above every value that any counter of this TPM had
/// (TPM 2.0 Library, part 1, section 37.2.4.3).
pub(super) fn count_up(context: &mut Context, index: u32) -> Result<u64, Fault> {
    let handle = match find(context, index)? {
        Some((handle, _)) => handle,
        None => define(context, index)?,
    };
    context
        .execute_with_session(PASSWORD, |ctx| ctx.nv_increment(NvAuth::Owner, handle))
        .at("TPM2_NV_Increment")?;
    value(context, handle)
}

fn template(index: u32) -> Result<NvPublic, Fault> {
    let command = "TPM2_NV_DefineSpace";
    let attributes = NvIndexAttributesBuilder::new()
        .with_owner_write(true)
        .with_owner_read(true)
        .with_no_da(true)
        .with_nv_index_type(NvIndexType::Counter)
        .build()
        .at(command)?;
    NvPublicBuilder::new()
        .with_nv_index(NvIndexTpmHandle::new(index).at(command)?)
        .with_index_name_algorithm(HashingAlgorithm::Sha256)
        .with_index_attributes(attributes)
        .with_data_area_size(usize::from(COUNTER_BYTES))
        .build()
        .at(command)
}

fn define(context: &mut Context, index: u32) -> Result<NvIndexHandle, Fault> {
    let public = template(index)?;
    tracing::info!(index = format!("{index:#010x}"), "making the monotonic counter");
    context
        .execute_with_session(PASSWORD, |ctx| ctx.nv_define_space(Provision::Owner, None, public))
        .at("TPM2_NV_DefineSpace")
}

fn find(context: &mut Context, index: u32) -> Result<Option<(NvIndexHandle, NvPublic)>, Fault> {
    let command = "TPM2_NV_ReadPublic";
    if !objects::exists(context, index)? {
        return Ok(None);
    }
    let tpm_handle = TpmHandle::NvIndex(NvIndexTpmHandle::new(index).at(command)?);
    let (handle, public) = context.execute_without_session(|ctx| {
        let handle = NvIndexHandle::from(ctx.tr_from_tpm_public(tpm_handle).at(command)?);
        let (public, _) = ctx.nv_read_public(handle).at(command)?;
        Ok::<_, Fault>((handle, public))
    })?;
    let attributes = public.attributes();
    let is_counter = matches!(attributes.index_type(), Ok(NvIndexType::Counter));
    if is_counter && attributes.owner_read() && attributes.owner_write() {
        return Ok(Some((handle, public)));
    }
    let reason = format!(
        "NV index {index:#010x} is not a counter of the owner's, and it is not removed because it may be somebody's: \
         free it (tpm2_nvundefine -C o {index:#010x}) or configure another"
    );
    Err(refused(command, reason))
}

fn value(context: &mut Context, handle: NvIndexHandle) -> Result<u64, Fault> {
    let command = "TPM2_NV_Read";
    let bytes = context
        .execute_with_session(PASSWORD, |ctx| ctx.nv_read(NvAuth::Owner, handle, COUNTER_BYTES, 0))
        .at(command)?;
    let bytes = <[u8; COUNTER_BYTES as usize]>::try_from(bytes.as_slice());
    let bytes = bytes.map_err(|_| refused(command, "a counter has 8 bytes"))?;
    Ok(u64::from_be_bytes(bytes))
}
