//! Endorsement keys and what is shown of them at enrolment (TCG EK Credential Profile for TPM Family 2.0, version 2.5).

use cnova_attestation::{Credential, TpmEnrolment};
use serde_bytes::ByteBuf;
use tss_esapi::Context;
use tss_esapi::abstraction::{AsymmetricAlgorithmSelection, KeyCustomization, ek, nv};
use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::constants::SessionType;
use tss_esapi::handles::{AuthHandle, KeyHandle, NvIndexHandle, NvIndexTpmHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::key_bits::RsaKeyBits;
use tss_esapi::interface_types::resource_handles::NvAuth;
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{
    Data, Digest as TpmDigest, DigestList, EccPoint, EncryptedSecret, IdObject, Nonce, Public, PublicBuilder,
    PublicKeyRsa, SignatureScheme,
};
use tss_esapi::traits::Marshall;
use zeroize::Zeroizing;

use super::config::TpmConfig;
use super::fault::{At, Fault, refused};
use super::objects::{self, PASSWORD};
use super::provision::{self, Keys};

/// Longest certificate that is read from NV, in bytes.
const CERTIFICATE_BYTES_MAX: usize = 4096;
/// Longest certificate chain that is read from NV, in bytes.
const CHAIN_BYTES_MAX: usize = 32 * 1024;
/// Most certificates of a chain.
const CHAIN_CERTIFICATES_MAX: usize = 8;
/// Where the chain lies in NV (section 2.2.1.5.2).
const CHAIN_INDICES: std::ops::RangeInclusive<u32> = 0x01C0_0100..=0x01C0_01FF;

/// PolicyB of the high range for SHA-256: PolicySecret(endorsement) or an NV policy (annex B.6.5).
const POLICY_B_SHA256: [u8; 32] = [
    0xca, 0x3d, 0x0a, 0x99, 0xa2, 0xb9, 0x39, 0x06, 0xf7, 0xa3, 0x34, 0x24, 0x14, 0xef, 0xcf, 0xb3, 0xa3, 0x85, 0xd4,
    0x4c, 0xd1, 0xfd, 0x45, 0x90, 0x89, 0xd1, 0x9b, 0x50, 0x71, 0xc0, 0xb7, 0xa0,
];

/// PolicyC: TPM2_PolicyAuthorizeNV of an index that the platform's owner may make (annex B.6.4).
const POLICY_C_SHA256: [u8; 32] = [
    0x37, 0x67, 0xe2, 0xed, 0xd4, 0x3f, 0xf4, 0x5a, 0x3a, 0x7e, 0x1e, 0xae, 0xfc, 0xef, 0x78, 0x64, 0x3d, 0xca, 0x96,
    0x46, 0x32, 0xe7, 0xaa, 0xd8, 0x2c, 0x67, 0x3a, 0x30, 0xd8, 0x63, 0x3f, 0xde,
];
const POLICY_C_SHA384: [u8; 48] = [
    0xd6, 0x03, 0x2c, 0xe6, 0x1f, 0x2f, 0xb3, 0xc2, 0x40, 0xeb, 0x3c, 0xf6, 0xa3, 0x32, 0x37, 0xef, 0x2b, 0x6a, 0x16,
    0xf4, 0x29, 0x3c, 0x22, 0xb4, 0x55, 0xe2, 0x61, 0xcf, 0xfd, 0x21, 0x7a, 0xd5, 0xb4, 0x94, 0x7c, 0x2d, 0x73, 0xe6,
    0x30, 0x05, 0xee, 0xd2, 0xdc, 0x2b, 0x35, 0x93, 0xd1, 0x65,
];

/// Which of a TPM's endorsement keys; in a configuration `p384`, `p256-high`, `p256`, `rsa2048-high`, `rsa2048`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EkKind {
    /// P-384 by template H-3, certificate at 0x01C00016.
    P384,
    /// P-256 by template H-2, certificate at 0x01C00014.
    P256High,
    /// P-256 by template L-2, certificate at 0x01C0000A.
    P256,
    /// RSA-2048 by template H-1, certificate at 0x01C00012.
    Rsa2048High,
    /// RSA-2048 by template L-1, certificate at 0x01C00002.
    Rsa2048,
}

impl EkKind {
    /// The order in which a TPM is searched. Elliptic curves first: making an RSA key again from its seed takes hardware
    /// up to a minute, and 2048 bits are the weakest of these. Of two P-256 keys the newer template goes first.
    pub const ORDER: [Self; 5] = [Self::P384, Self::P256High, Self::P256, Self::Rsa2048High, Self::Rsa2048];

    /// What is shown by a TPM without any certificate: every PC client TPM since profile 1.03 can make it.
    const WITHOUT_CERTIFICATE: Self = Self::P256;

    /// The NV index of its certificate (section 2.2.1.4 and 2.2.1.5).
    #[must_use]
    pub const fn certificate_index(self) -> u32 {
        match self {
            Self::P384 => 0x01C0_0016,
            Self::P256High => 0x01C0_0014,
            Self::P256 => 0x01C0_000A,
            Self::Rsa2048High => 0x01C0_0012,
            Self::Rsa2048 => 0x01C0_0002,
        }
    }

    /// Where makers and tools keep the key itself, if they do.
    const fn persistent_handle(self) -> u32 {
        match self {
            Self::P384 => 0x8101_0016,
            Self::P256High => 0x8101_0014,
            Self::P256 => 0x8101_0002,
            Self::Rsa2048High => 0x8101_0012,
            Self::Rsa2048 => 0x8101_0001,
        }
    }

    const fn algorithm(self) -> AsymmetricAlgorithmSelection {
        match self {
            Self::P384 => AsymmetricAlgorithmSelection::Ecc(EccCurve::NistP384),
            Self::P256High | Self::P256 => AsymmetricAlgorithmSelection::Ecc(EccCurve::NistP256),
            Self::Rsa2048High | Self::Rsa2048 => AsymmetricAlgorithmSelection::Rsa(RsaKeyBits::Rsa2048),
        }
    }
}

/// Makes of tss-esapi's template for the low range the one for the high range.
#[derive(Clone, Copy)]
struct HighRange(EkKind);

impl KeyCustomization for HighRange {
    fn attributes(&self, builder: ObjectAttributesBuilder) -> ObjectAttributesBuilder {
        builder.with_user_with_auth(true)
    }

    fn template(&self, builder: PublicBuilder) -> PublicBuilder {
        let builder = match TpmDigest::try_from(POLICY_B_SHA256.as_slice()) {
            Ok(policy) => builder.with_auth_policy(policy),
            Err(_) => builder,
        };
        match self.0.algorithm() {
            AsymmetricAlgorithmSelection::Rsa(_) => builder.with_rsa_unique_identifier(PublicKeyRsa::default()),
            AsymmetricAlgorithmSelection::Ecc(_) => builder.with_ecc_unique_identifier(EccPoint::default()),
        }
    }
}

/// The template of an endorsement key (annex B.3 and B.4).
pub(crate) fn template(kind: EkKind) -> tss_esapi::Result<Public> {
    let algorithm = kind.algorithm();
    match kind {
        EkKind::P256High | EkKind::Rsa2048High => {
            ek::create_ek_public_from_default_template_2(algorithm, HighRange(kind))
        }
        EkKind::P384 | EkKind::P256 | EkKind::Rsa2048 => {
            ek::create_ek_public_from_default_template_2(algorithm, tss_esapi::abstraction::DefaultKey)
        }
    }
}

/// Everything that admission by a TPM needs.
pub(super) fn enrolment(
    context: &mut Context,
    keys: &Keys,
    config: &TpmConfig,
    qualifying: &[u8],
) -> Result<TpmEnrolment, Fault> {
    let (kind, mut certificates) = certificate(context, config)?;
    let ek_public = with_ek(context, kind, certificates.first(), |_, _, public| {
        public.marshall().at("TPM2_CreatePrimary")
    })?;
    if !certificates.is_empty() {
        certificates.extend(chain(context)?);
    }
    let command = "TPM2_Certify";
    let data = Data::try_from(qualifying).at(command)?;
    let (certify, signature) = context
        .execute_with_sessions((PASSWORD, PASSWORD, None), |ctx| {
            ctx.certify(keys.device.into(), keys.ak, data, SignatureScheme::Null)
        })
        .at(command)?;
    Ok(TpmEnrolment {
        ek_certificates: certificates,
        ek_public: ByteBuf::from(ek_public),
        ak_public: ByteBuf::from(keys.ak_public.marshall().at(command)?),
        device_public: ByteBuf::from(keys.device_public.marshall().at(command)?),
        certify: ByteBuf::from(certify.marshall().at(command)?),
        certify_signature: ByteBuf::from(signature.marshall().at(command)?),
    })
}

/// Opens a credential that was made for the endorsement key that [`enrolment`] shows.
pub(super) fn activate(
    context: &mut Context,
    keys: &Keys,
    config: &TpmConfig,
    credential: &Credential,
) -> Result<Zeroizing<Vec<u8>>, Fault> {
    let command = "TPM2_ActivateCredential";
    let odd = |what: &str| refused(command, format!("the credential's {what} is not of the TPM's form"));
    let blob = sized(&credential.blob).and_then(|b| IdObject::try_from(b).ok());
    let blob = blob.ok_or_else(|| odd("blob (TPM2B_ID_OBJECT)"))?;
    let secret = sized(&credential.secret).and_then(|s| EncryptedSecret::try_from(s).ok());
    let secret = secret.ok_or_else(|| odd("secret (TPM2B_ENCRYPTED_SECRET)"))?;
    let (kind, certificates) = certificate(context, config)?;
    with_ek(context, kind, certificates.first(), |ctx, ek, public| {
        let hash = public.name_hashing_algorithm();
        objects::with_session(ctx, SessionType::Policy, hash, None, |ctx, session| {
            satisfy(ctx, session, public)?;
            let opened = ctx.execute_with_sessions((PASSWORD, Some(session), None), |ctx| {
                ctx.activate_credential(keys.ak, ek, blob, secret)
            });
            Ok(Zeroizing::new(opened.at(command)?.to_vec()))
        })
    })
}

/// The policy of an endorsement key: PolicyA in the low range, PolicyA or PolicyC in the high one (annex B.6). Those of the
/// high range would take their empty password too, but not from a TPM in lockout, and a TPM whose power failed some times
/// is in lockout.
fn satisfy(context: &mut Context, session: AuthSession, public: &Public) -> Result<(), Fault> {
    let command = "TPM2_PolicySecret";
    let policy = PolicySession::try_from(session).at(command)?;
    context
        .execute_with_session(PASSWORD, |ctx| {
            let (nonce, digest) = (Nonce::default(), TpmDigest::default());
            ctx.policy_secret(policy, AuthHandle::Endorsement, nonce, digest, Nonce::default(), None)
        })
        .at(command)?;
    if !public.object_attributes().user_with_auth() {
        return Ok(());
    }
    let command = "TPM2_PolicyOR";
    let policy_c: &[u8] = match public.name_hashing_algorithm() {
        HashingAlgorithm::Sha384 => &POLICY_C_SHA384,
        _ => &POLICY_C_SHA256,
    };
    context.execute_without_session(|ctx| {
        let mut either = DigestList::new();
        either.add(ctx.policy_get_digest(policy).at(command)?).at(command)?;
        either.add(TpmDigest::try_from(policy_c).at(command)?).at(command)?;
        ctx.policy_or(policy, either).at(command)
    })
}

/// What follows the two bytes of length of a TPM2B structure.
fn sized(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    (usize::from(u16::from_be_bytes(*length)) == rest.len()).then_some(rest)
}

/// Which endorsement key is shown, and its certificate where there is one.
fn certificate(context: &mut Context, config: &TpmConfig) -> Result<(EkKind, Vec<ByteBuf>), Fault> {
    let candidates = config.ek.as_ref().map_or(&EkKind::ORDER[..], std::slice::from_ref);
    for kind in candidates {
        if let Some(bytes) = read_nv(context, kind.certificate_index())? {
            // The index may be larger than the certificate.
            let der = der_prefix(&bytes).ok_or_else(|| {
                let index = kind.certificate_index();
                refused(
                    "TPM2_NV_Read",
                    format!("NV index {index:#010x} holds no certificate in DER"),
                )
            })?;
            return Ok((*kind, vec![ByteBuf::from(der)]));
        }
    }
    Ok((config.ek.unwrap_or(EkKind::WITHOUT_CERTIFICATE), Vec::new()))
}

/// Has the endorsement key loaded for `job`: the one that is kept in the TPM, else made again from its seed.
fn with_ek<T>(
    context: &mut Context,
    kind: EkKind,
    certificate: Option<&ByteBuf>,
    job: impl FnOnce(&mut Context, KeyHandle, &Public) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let command = "TPM2_CreatePrimary";
    let template = template(kind).at(command)?;
    let certified = |public: &Public| certificate.is_some_and(|c| is_about(c, public));
    if let Some((key, public)) = provision::read(context, kind.persistent_handle())?
        && provision::same_kind(&public, &template)
        && certified(&public)
    {
        return job(context, key, &public);
    }
    let made = context
        .execute_with_session(PASSWORD, |ctx| {
            let hierarchy = tss_esapi::interface_types::resource_handles::Hierarchy::Endorsement;
            ctx.create_primary(hierarchy, template, None, None, None, None)
        })
        .at(command)?;
    objects::with_object(context, made.key_handle, |ctx| {
        if certificate.is_some() && !certified(&made.out_public) {
            let index = kind.certificate_index();
            let reason = format!(
                "the certificate at {index:#010x} is about another key than the standard template makes; this TPM's maker \
                 has a template of its own, which is not supported: choose another endorsement key in the configuration"
            );
            return Err(refused(command, reason));
        }
        job(ctx, made.key_handle, &made.out_public)
    })
}

/// Whether a certificate contains this key. No proof of anything, the verifier has that; it tells a key made by the wrong
/// template here, where the reason is known.
fn is_about(certificate: &[u8], public: &Public) -> bool {
    let key = match public {
        Public::Rsa { unique, .. } => unique.to_vec(),
        Public::Ecc { unique, .. } => [unique.x().value(), unique.y().value()].concat(),
        _ => return false,
    };
    certificate.windows(key.len().max(1)).any(|window| window == key)
}

/// The certificates above the endorsement key's own, as far as the TPM holds them: DER after DER, over several indices.
fn chain(context: &mut Context) -> Result<Vec<ByteBuf>, Fault> {
    let first = *CHAIN_INDICES.start();
    let count = CHAIN_INDICES.end() - first + 1;
    let mut bytes = Vec::new();
    for index in objects::handles(context, first, count.min(254))? {
        if !CHAIN_INDICES.contains(&index) || bytes.len() >= CHAIN_BYTES_MAX {
            break;
        }
        bytes.extend(read_nv(context, index)?.unwrap_or_default());
    }
    Ok(split_der(&bytes))
}

fn split_der(mut bytes: &[u8]) -> Vec<ByteBuf> {
    let mut out = Vec::new();
    while out.len() < CHAIN_CERTIFICATES_MAX
        && let Some(der) = der_prefix(bytes)
    {
        out.push(ByteBuf::from(der));
        bytes = &bytes[der.len()..];
    }
    out
}

/// The DER SEQUENCE at the beginning.
fn der_prefix(bytes: &[u8]) -> Option<&[u8]> {
    let (header, length) = match bytes {
        [0x30, length @ 0..=0x7F, ..] => (2, usize::from(*length)),
        [0x30, 0x81, length, ..] => (3, usize::from(*length)),
        [0x30, 0x82, high, low, ..] => (4, usize::from(u16::from_be_bytes([*high, *low]))),
        _ => return None,
    };
    bytes.get(..header + length)
}

fn read_nv(context: &mut Context, index: u32) -> Result<Option<Vec<u8>>, Fault> {
    let command = "TPM2_NV_Read";
    if !objects::exists(context, index)? {
        return Ok(None);
    }
    let tpm_handle = NvIndexTpmHandle::new(index).at(command)?;
    let object = context
        .execute_without_session(|ctx| ctx.tr_from_tpm_public(TpmHandle::NvIndex(tpm_handle)))
        .at("TPM2_NV_ReadPublic")?;
    let nv_index = NvIndexHandle::from(object);
    let (public, _) = context
        .execute_without_session(|ctx| ctx.nv_read_public(nv_index))
        .at("TPM2_NV_ReadPublic")?;
    if !public.attributes().written() {
        return Ok(None);
    }
    if public.data_size() > CERTIFICATE_BYTES_MAX {
        let reason = format!(
            "NV index {index:#010x} has {} bytes, more than a certificate",
            public.data_size()
        );
        return Err(refused(command, reason));
    }
    let auth = if public.attributes().auth_read() {
        NvAuth::NvIndex(nv_index)
    } else {
        NvAuth::Owner
    };
    let bytes = context.execute_with_session(PASSWORD, |ctx| nv::read_full(ctx, auth, tpm_handle));
    bytes.at(command).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_high_ranges_policy_is_the_or_of_a_and_c() {
        let or_of = |kind: EkKind, hash: &'static ring::digest::Algorithm, c: &[u8]| {
            let digest = |parts: &[&[u8]]| ring::digest::digest(hash, &parts.concat()).as_ref().to_vec();
            let zero = vec![0; hash.output_len()];
            // PolicyA: TPM2_PolicySecret of the endorsement hierarchy, without a reference.
            let secret = digest(&[&zero, &0x151_u32.to_be_bytes(), &0x4000_000B_u32.to_be_bytes()]);
            let a = digest(&[&secret]);
            let b = digest(&[&zero, &0x171_u32.to_be_bytes(), &a, c]);
            let template = template(kind).unwrap();
            let (Public::Ecc { auth_policy, .. } | Public::Rsa { auth_policy, .. }) = template else {
                panic!("asymmetric")
            };
            assert_eq!(auth_policy.to_vec(), b, "{kind:?}");
        };
        or_of(EkKind::P256High, &ring::digest::SHA256, &POLICY_C_SHA256);
        or_of(EkKind::Rsa2048High, &ring::digest::SHA256, &POLICY_C_SHA256);
        or_of(EkKind::P384, &ring::digest::SHA384, &POLICY_C_SHA384);
    }

    #[test]
    fn der_is_cut_out_of_what_surrounds_it() {
        let short = [0x30, 2, 5, 0];
        let long = [&[0x30, 0x82, 1, 0][..], &[7; 256]].concat();
        let middle = [&[0x30, 0x81, 0x80][..], &[7; 128]].concat();
        let all = [&short[..], &long, &middle, &[0xFF; 9]].concat();
        let parts = split_der(&all);
        assert_eq!(parts, [short.to_vec(), long, middle]);
        assert_eq!(der_prefix(&[0x30, 0x82, 0xFF, 0xFF, 0]), None);
        assert_eq!(der_prefix(&[0; 4]), None);
        assert_eq!(der_prefix(&[]), None);
    }

    #[test]
    fn sizes_must_be_exact() {
        assert_eq!(sized(&[0, 1, 9]), Some(&[9][..]));
        assert_eq!(sized(&[0, 2, 9]), None);
        assert_eq!(sized(&[0]), None);
    }
}
