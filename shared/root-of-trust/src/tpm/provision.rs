//! The keys that a node has in its TPM: found, or made where there are none.
//!
//! Each key becomes persistent by one command (TPM2_EvictControl), so a process or machine that dies in between leaves
//! either the key or nothing; nobody has seen a key that was not persistent yet.

use cnova_shared::keys::{Algorithm, PublicKey};
use tss_esapi::Context;
use tss_esapi::attributes::{ObjectAttributes, ObjectAttributesBuilder};
use tss_esapi::handles::{KeyHandle, PersistentTpmHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::dynamic_handles::Persistent;
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::resource_handles::{Hierarchy, Provision};
use tss_esapi::structures::{
    EccPoint, EccScheme, HashScheme, KeyDerivationFunctionScheme, Public, PublicBuilder, PublicEccParameters,
    PublicEccParametersBuilder, SymmetricDefinitionObject,
};

use super::config::TpmConfig;
use super::fault::{At, Fault, refused};
use super::objects::{self, PASSWORD};

/// The keys of this node in a TPM.
#[derive(Clone)]
pub(super) struct Keys {
    pub(super) srk: KeyHandle,
    pub(super) ak: KeyHandle,
    pub(super) ak_public: Public,
    pub(super) device: KeyHandle,
    pub(super) device_public: Public,
}

impl Keys {
    /// The device key as the wire has it.
    pub(super) fn device_key(&self) -> Result<PublicKey, Fault> {
        let odd = || refused("TPM2_ReadPublic", "the device key is not on P-256");
        let Public::Ecc { unique, .. } = &self.device_public else {
            return Err(odd());
        };
        let x = objects::padded(unique.x().value()).ok_or_else(odd)?;
        let y = objects::padded(unique.y().value()).ok_or_else(odd)?;
        Ok(PublicKey {
            algorithm: Algorithm::Es256,
            bytes: [&[4][..], &x, &y].concat(),
        })
    }
}

/// A key of ours: its name for people and what it must be.
#[derive(Clone, Copy)]
struct Role {
    what: &'static str,
    restricted: bool,
}

const ATTESTATION: Role = Role {
    what: "the attestation key",
    restricted: true,
};
const DEVICE: Role = Role {
    what: "the device key",
    restricted: false,
};

/// Finds the keys; makes those that are missing.
pub(super) fn provision(context: &mut Context, config: &TpmConfig) -> Result<Keys, Fault> {
    let srk = match read(context, config.srk_handle)? {
        Some((srk, public)) => storage_key(config.srk_handle, srk, &public)?,
        None => make_srk(context, config.srk_handle)?,
    };
    let (ak, ak_public) = find_or_make(context, srk, config.ak_handle, ATTESTATION)?;
    let (device, device_public) = find_or_make(context, srk, config.device_handle, DEVICE)?;
    Ok(Keys {
        srk,
        ak,
        ak_public,
        device,
        device_public,
    })
}

/// Finds the keys again that were there before; makes none.
pub(super) fn find(context: &mut Context, config: &TpmConfig, known: &Keys) -> Result<Keys, Fault> {
    let mut again = |handle: u32, what: &str| {
        let gone = || {
            let reason = format!(
                "{what} at {handle:#010x} is not the one of before: the TPM was cleared or is another one; \
                 restart this program to begin anew with it (the node must then be enrolled again)"
            );
            refused("TPM2_ReadPublic", reason)
        };
        read(context, handle)?.ok_or_else(gone).map(|found| (found, gone()))
    };
    let ((srk, srk_public), _) = again(config.srk_handle, "the storage key")?;
    let ((ak, ak_public), ak_differs) = again(config.ak_handle, ATTESTATION.what)?;
    let ((device, device_public), device_differs) = again(config.device_handle, DEVICE.what)?;
    if ak_public != known.ak_public {
        return Err(ak_differs);
    }
    if device_public != known.device_public {
        return Err(device_differs);
    }
    Ok(Keys {
        srk: storage_key(config.srk_handle, srk, &srk_public)?,
        ak,
        ak_public,
        device,
        device_public,
    })
}

/// The key under a persistent handle.
pub(super) fn read(context: &mut Context, handle: u32) -> Result<Option<(KeyHandle, Public)>, Fault> {
    let command = "TPM2_ReadPublic";
    if !objects::exists(context, handle)? {
        return Ok(None);
    }
    let tpm_handle = TpmHandle::Persistent(PersistentTpmHandle::new(handle).at(command)?);
    context.execute_without_session(|ctx| {
        let object = ctx.tr_from_tpm_public(tpm_handle).at(command)?;
        let key = KeyHandle::from(object);
        let (public, _, _) = ctx.read_public(key).at(command)?;
        Ok(Some((key, public)))
    })
}

fn storage_key(handle: u32, key: KeyHandle, public: &Public) -> Result<KeyHandle, Fault> {
    let a = public.object_attributes();
    let asymmetric = matches!(public, Public::Ecc { .. } | Public::Rsa { .. });
    if asymmetric && a.restricted() && a.decrypt() && !a.sign_encrypt() && a.fixed_tpm() && a.user_with_auth() {
        return Ok(key);
    }
    Err(not_ours(handle, "a storage key"))
}

fn not_ours(handle: u32, wanted: &str) -> Fault {
    let reason = format!(
        "the key at {handle:#010x} is not {wanted} as this program makes it, and it is not removed because it may be \
         somebody's: free the handle (tpm2_evictcontrol -C o -c {handle:#010x}) or configure another"
    );
    refused("TPM2_ReadPublic", reason)
}

fn make_srk(context: &mut Context, handle: u32) -> Result<KeyHandle, Fault> {
    let public = srk_template()?;
    let made = context
        .execute_with_session(PASSWORD, |ctx| {
            ctx.create_primary(Hierarchy::Owner, public, None, None, None, None)
        })
        .at("TPM2_CreatePrimary")?;
    let key = made.key_handle;
    objects::with_object(context, key, |ctx| keep(ctx, key, handle))
}

fn find_or_make(context: &mut Context, srk: KeyHandle, handle: u32, role: Role) -> Result<(KeyHandle, Public), Fault> {
    let template = signing_template(role)?;
    if let Some((key, public)) = read(context, handle)? {
        return if same_kind(&public, &template) {
            Ok((key, public))
        } else {
            Err(not_ours(handle, role.what))
        };
    }
    tracing::info!(handle = format!("{handle:#010x}"), "making {}", role.what);
    let made = context
        .execute_with_session(PASSWORD, |ctx| ctx.create(srk, template, None, None, None, None))
        .at("TPM2_Create")?;
    let public = made.out_public.clone();
    let loaded = context
        .execute_with_session(PASSWORD, |ctx| ctx.load(srk, made.out_private, made.out_public))
        .at("TPM2_Load")?;
    let key = objects::with_object(context, loaded, |ctx| keep(ctx, loaded, handle))?;
    Ok((key, public))
}

fn keep(context: &mut Context, key: KeyHandle, handle: u32) -> Result<KeyHandle, Fault> {
    let command = "TPM2_EvictControl";
    let persistent = Persistent::Persistent(PersistentTpmHandle::new(handle).at(command)?);
    let kept = context.execute_with_session(PASSWORD, |ctx| {
        ctx.evict_control(Provision::Owner, key.into(), persistent)
    });
    Ok(KeyHandle::from(kept.at(command)?))
}

/// Whether a key is what the template asks for, whatever its public point is.
pub(super) fn same_kind(public: &Public, template: &Public) -> bool {
    match (public, template) {
        (
            Public::Ecc {
                object_attributes: a,
                name_hashing_algorithm: h,
                auth_policy: p,
                parameters: x,
                ..
            },
            Public::Ecc {
                object_attributes: ta,
                name_hashing_algorithm: th,
                auth_policy: tp,
                parameters: tx,
                ..
            },
        ) => a == ta && h == th && p == tp && x == tx,
        (
            Public::Rsa {
                object_attributes: a,
                name_hashing_algorithm: h,
                auth_policy: p,
                parameters: x,
                ..
            },
            Public::Rsa {
                object_attributes: ta,
                name_hashing_algorithm: th,
                auth_policy: tp,
                parameters: tx,
                ..
            },
        ) => a == ta && h == th && p == tp && x == tx,
        _ => false,
    }
}

/// Attributes that every key of ours has: it was made in this TPM and never leaves it. Its password is empty, so there is
/// nothing to guess (noDA), and somebody's wrong guesses elsewhere do not lock it.
fn fixed() -> ObjectAttributesBuilder {
    ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
}

fn ecc_public(attributes: ObjectAttributes, parameters: PublicEccParameters) -> Result<Public, Fault> {
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_ecc_parameters(parameters)
        .with_ecc_unique_identifier(EccPoint::default())
        .build()
        .at("TPM2_Create")
}

/// A storage key over P-256 (TCG EK Credential Profile, annex B.3.4, in the owner's hierarchy).
fn srk_template() -> Result<Public, Fault> {
    let command = "TPM2_CreatePrimary";
    let attributes = fixed().with_restricted(true).with_decrypt(true).build().at(command)?;
    let cipher = SymmetricDefinitionObject::AES_128_CFB;
    let parameters = PublicEccParametersBuilder::new_restricted_decryption_key(cipher, EccCurve::NistP256);
    ecc_public(attributes, parameters.build().at(command)?)
}

fn signing_template(role: Role) -> Result<Public, Fault> {
    let command = "TPM2_Create";
    let attributes = fixed().with_sign_encrypt(true).with_restricted(role.restricted);
    let parameters = PublicEccParametersBuilder::new()
        .with_ecc_scheme(EccScheme::EcDsa(HashScheme::new(HashingAlgorithm::Sha256)))
        .with_curve(EccCurve::NistP256)
        .with_key_derivation_function_scheme(KeyDerivationFunctionScheme::Null)
        .with_is_signing_key(true)
        .with_restricted(role.restricted)
        .build()
        .at(command)?;
    ecc_public(attributes.build().at(command)?, parameters)
}
