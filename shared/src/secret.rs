//! Secrets on their way: COSE_Encrypt (RFC 9052 section 5.1) to one node's *box key*, direct key agreement by
//! ECDH-ES + HKDF-256 on P-256 (RFC 9053 section 6.3.1), content by A256GCM.
//!
//! The node, the secret's name and its version are authenticated with it, so that nobody on the way can give a node
//! another one's secret, or an older one under a newer number. Randomness is passed in, values are wiped.

use coset::cbor::value::Value;
use coset::{
    AsCborValue, CborSerializable, CoseEncrypt, CoseEncryptBuilder, CoseKdfContextBuilder, CoseKeyBuilder,
    CoseRecipient, CoseRecipientBuilder, Header, HeaderBuilder, SuppPubInfoBuilder, TaggedCborSerializable, iana,
};
use p256::elliptic_curve::sec1::ToEncodedPoint;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::ids::{Digest, Name, NodeId};
use crate::keys::KeyId;
use crate::limits;
use crate::wire;

/// What stands first in what is authenticated with every secret.
const CONTEXT: &str = "cnova/v1/secret";
/// The ephemeral key of the sender, in the recipient's header (RFC 9053 section 6.3.1).
const LABEL_EPHEMERAL: i64 = iana::HeaderAlgorithmParameter::EphemeralKey as i64;
/// Bytes of a coordinate.
const COORDINATE: usize = 32;
/// Bytes of an AES-256 key, and of a private key on P-256.
pub const KEY_BYTES: usize = 32;
/// Bytes of the number that must never be used twice with one key.
pub const IV_BYTES: usize = NONCE_LEN;

/// These bytes are no key on P-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("this is not a key on P-256")]
pub struct BadBoxKey;

/// Why a secret was not encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SealError {
    /// Its value is too large.
    #[error("{len} bytes, at most {} are taken", limits::SECRET_BYTES)]
    TooLarge {
        /// Its length.
        len: usize,
    },
    /// The cipher refused; which none of our inputs can bring about.
    #[error("it could not be encrypted")]
    Cipher,
}

/// Why a secret was not opened. None of these say anything about its value.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OpenError {
    /// Not what [`seal`] makes.
    #[error("it is not an encrypted secret of this protocol: {0}")]
    Malformed(&'static str),
    /// Made for another key.
    #[error("it is encrypted to key {found}, and this node's is {own}")]
    OtherKey {
        /// Whose it is.
        found: KeyId,
        /// The key at hand.
        own: KeyId,
    },
    /// Changed, or of another node, name or version.
    #[error("it does not open: it was changed, or it is of another node, name or version")]
    NotGenuine,
}

/// A node's private key for secrets. Wiped when it is dropped, and never printed.
#[derive(Clone)]
pub struct BoxKey(p256::SecretKey);

impl std::fmt::Debug for BoxKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BoxKey({})", self.public().id())
    }
}

impl BoxKey {
    /// Takes 32 random bytes for a key.
    ///
    /// # Errors
    /// [`BadBoxKey`] for the one in 2^32 that is no number below the curve's order: draw others.
    pub fn from_bytes(bytes: &[u8; KEY_BYTES]) -> Result<Self, BadBoxKey> {
        p256::SecretKey::from_slice(bytes).map(Self).map_err(|_| BadBoxKey)
    }

    /// The private number, to be encrypted and kept.
    #[must_use]
    pub fn expose(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.to_bytes().to_vec())
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> BoxPublicKey {
        BoxPublicKey(self.0.public_key())
    }
}

/// A node's public key for secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoxPublicKey(p256::PublicKey);

impl BoxPublicKey {
    /// Reads an uncompressed point (SEC 1).
    ///
    /// # Errors
    /// [`BadBoxKey`] when it is none, not on the curve, or written otherwise.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BadBoxKey> {
        let key = p256::PublicKey::from_sec1_bytes(bytes)
            .map(Self)
            .map_err(|_| BadBoxKey)?;
        // One key has one form, so that it has one id.
        if key.to_bytes() == bytes {
            Ok(key)
        } else {
            Err(BadBoxKey)
        }
    }

    /// The uncompressed point.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.to_encoded_point(false).as_bytes().to_vec()
    }

    /// The first bytes of its digest.
    #[must_use]
    pub fn id(&self) -> KeyId {
        let mut id = [0; 8];
        id.copy_from_slice(&Digest::of(&self.to_bytes()).0[..8]);
        KeyId(id)
    }
}

/// What a secret is authenticated as.
#[derive(Clone, Copy, Debug)]
pub struct Address<'a> {
    /// The node it is for.
    pub node: &'a NodeId,
    /// Its name.
    pub name: &'a Name,
    /// Which value of it.
    pub version: u64,
}

impl Address<'_> {
    fn aad(&self) -> Vec<u8> {
        // Texts and a number can always be encoded.
        wire::encode(&(CONTEXT, self.node, self.name, self.version)).unwrap_or_default()
    }
}

/// Encrypts a value for one node. `ephemeral` is a fresh key and `iv` is random; neither may be used twice.
///
/// # Errors
/// [`SealError`].
pub fn seal(
    value: &[u8],
    to: &BoxPublicKey,
    address: Address<'_>,
    ephemeral: &BoxKey,
    iv: [u8; IV_BYTES],
) -> Result<Vec<u8>, SealError> {
    if value.len() > limits::SECRET_BYTES {
        return Err(SealError::TooLarge { len: value.len() });
    }
    let recipient_header = HeaderBuilder::new()
        .algorithm(iana::Algorithm::ECDH_ES_HKDF_256)
        .build();
    let key = content_key(&ephemeral.0, &to.0, &recipient_header).ok_or(SealError::Cipher)?;
    let recipient = CoseRecipientBuilder::new()
        .protected(recipient_header)
        .unprotected(recipient_hints(&to.id(), &ephemeral.public()))
        .ciphertext(Vec::new())
        .build();
    let encrypted = CoseEncryptBuilder::new()
        .protected(HeaderBuilder::new().algorithm(iana::Algorithm::A256GCM).build())
        .unprotected(HeaderBuilder::new().iv(iv.to_vec()).build())
        .try_create_ciphertext(value, &address.aad(), |value, aad| encrypt(&key, iv, aad, value))?
        .add_recipient(recipient)
        .build();
    encrypted.to_tagged_vec().map_err(|_| SealError::Cipher)
}

/// Opens a secret. Its value is wiped when it is dropped.
///
/// # Errors
/// [`OpenError`].
pub fn open(bytes: &[u8], key: &BoxKey, address: Address<'_>) -> Result<Zeroizing<Vec<u8>>, OpenError> {
    if bytes.len() > limits::SECRET_BYTES + limits::SEALED_SECRET_EXTRA {
        return Err(OpenError::Malformed("it is too large"));
    }
    let encrypted = CoseEncrypt::from_tagged_slice(bytes).map_err(|_| OpenError::Malformed("not a COSE_Encrypt"))?;
    let [recipient] = encrypted.recipients.as_slice() else {
        return Err(OpenError::Malformed("not for one recipient"));
    };
    let own = key.public().id();
    let found = KeyId(
        <[u8; 8]>::try_from(recipient.unprotected.key_id.as_slice())
            .map_err(|_| OpenError::Malformed("the key has no id"))?,
    );
    let ephemeral = ephemeral_of(recipient).ok_or(OpenError::Malformed("no ephemeral key"))?;
    let iv = <[u8; IV_BYTES]>::try_from(encrypted.unprotected.iv.as_slice())
        .map_err(|_| OpenError::Malformed("the IV has another length"))?;
    check_form(bytes, &encrypted, recipient, (&found, &ephemeral, iv))?;
    if found != own {
        return Err(OpenError::OtherKey { found, own });
    }
    let header = recipient.protected.header.clone();
    let content_key = content_key(&key.0, &ephemeral.0, &header).ok_or(OpenError::NotGenuine)?;
    let not_there = || OpenError::Malformed("it holds nothing");
    let value = encrypted.decrypt_ciphertext(&address.aad(), not_there, |sealed, aad| {
        decrypt(&content_key, iv, aad, sealed).ok_or(OpenError::NotGenuine)
    })?;
    Ok(Zeroizing::new(value))
}

/// Nothing is in it but what [`seal`] writes, encoded as it writes it.
fn check_form(
    bytes: &[u8],
    encrypted: &CoseEncrypt,
    recipient: &CoseRecipient,
    (id, ephemeral, iv): (&KeyId, &BoxPublicKey, [u8; IV_BYTES]),
) -> Result<(), OpenError> {
    let algorithm = |algorithm| HeaderBuilder::new().algorithm(algorithm).build();
    let is_ours = encrypted.protected.header == algorithm(iana::Algorithm::A256GCM)
        && encrypted.unprotected == HeaderBuilder::new().iv(iv.to_vec()).build()
        && recipient.protected.header == algorithm(iana::Algorithm::ECDH_ES_HKDF_256)
        && recipient.unprotected == recipient_hints(id, ephemeral)
        && recipient.ciphertext.as_ref().is_some_and(Vec::is_empty)
        && recipient.recipients.is_empty();
    let canonical = || encrypted.clone().to_tagged_vec().is_ok_and(|again| again == bytes);
    if is_ours && canonical() {
        Ok(())
    } else {
        Err(OpenError::Malformed("its headers or its encoding are others"))
    }
}

fn recipient_hints(id: &KeyId, ephemeral: &BoxPublicKey) -> Header {
    let point = ephemeral.to_bytes();
    let (x, y) = (point[1..=COORDINATE].to_vec(), point[1 + COORDINATE..].to_vec());
    let key = CoseKeyBuilder::new_ec2_pub_key(iana::EllipticCurve::P_256, x, y).build();
    let header = HeaderBuilder::new().key_id(id.0.to_vec());
    // A key of these parts can always be written.
    header
        .value(LABEL_EPHEMERAL, key.to_cbor_value().unwrap_or(Value::Null))
        .build()
}

fn ephemeral_of(recipient: &CoseRecipient) -> Option<BoxPublicKey> {
    let [(_, key)] = recipient.unprotected.rest.as_slice() else {
        return None;
    };
    let key = coset::CoseKey::from_cbor_value(key.clone()).ok()?;
    let coordinate = |label: iana::Ec2KeyParameter| {
        let wanted = coset::Label::Int(label as i64);
        let value = key.params.iter().find(|(l, _)| *l == wanted).map(|(_, v)| v)?;
        value.as_bytes().filter(|b| b.len() == COORDINATE)
    };
    let (x, y) = (
        coordinate(iana::Ec2KeyParameter::X)?,
        coordinate(iana::Ec2KeyParameter::Y)?,
    );
    let point = [&[4], x.as_slice(), y.as_slice()].concat();
    BoxPublicKey::from_bytes(&point).ok()
}

/// The key of the content, by RFC 9053 section 5.2: from what the two keys have in common, for A256GCM and this header.
fn content_key(own: &p256::SecretKey, other: &p256::PublicKey, header: &Header) -> Option<LessSafeKey> {
    let info = CoseKdfContextBuilder::new()
        .algorithm(iana::Algorithm::A256GCM)
        .supp_pub_info(
            SuppPubInfoBuilder::new()
                .key_data_length(8 * KEY_BYTES as u64)
                .protected(header.clone())
                .build(),
        )
        .build()
        .to_vec()
        .ok()?;
    let shared = p256::ecdh::diffie_hellman(own.to_nonzero_scalar(), other.as_affine());
    let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(shared.raw_secret_bytes());
    let info = [info.as_slice()];
    let expanded = extracted.expand(&info, &AES_256_GCM).ok()?;
    Some(LessSafeKey::new(UnboundKey::from(expanded)))
}

fn encrypt(key: &LessSafeKey, iv: [u8; IV_BYTES], aad: &[u8], value: &[u8]) -> Result<Vec<u8>, SealError> {
    // With room for the tag from the beginning: growing would leave a copy of the value behind.
    let mut buffer = Vec::with_capacity(value.len() + AES_256_GCM.tag_len());
    buffer.extend_from_slice(value);
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(iv), Aad::from(aad), &mut buffer)
        .map_err(|_| SealError::Cipher)?;
    Ok(buffer)
}

fn decrypt(key: &LessSafeKey, iv: [u8; IV_BYTES], aad: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
    let mut buffer = sealed.to_vec();
    let nonce = Nonce::assume_unique_for_key(iv);
    let len = key.open_in_place(nonce, Aad::from(aad), &mut buffer).ok()?.len();
    buffer.truncate(len);
    Some(buffer)
}

/// Encrypts what lies on a disk under a key of its owner: `iv`, then A256GCM's ciphertext and tag. `purpose` says what it
/// is, and is authenticated. `iv` is random and may not be used twice.
///
/// # Errors
/// [`SealError::Cipher`].
pub fn lock(value: &[u8], key: &[u8; KEY_BYTES], purpose: &[u8], iv: [u8; IV_BYTES]) -> Result<Vec<u8>, SealError> {
    let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| SealError::Cipher)?;
    let sealed = encrypt(&LessSafeKey::new(key), iv, purpose, value)?;
    Ok([iv.as_slice(), &sealed].concat())
}

/// Opens what [`lock`] made.
///
/// # Errors
/// [`OpenError`]; the key, the purpose or the bytes are others.
pub fn unlock(locked: &[u8], key: &[u8; KEY_BYTES], purpose: &[u8]) -> Result<Zeroizing<Vec<u8>>, OpenError> {
    let (iv, sealed) = locked
        .split_first_chunk::<IV_BYTES>()
        .ok_or(OpenError::Malformed("it is too short"))?;
    let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| OpenError::NotGenuine)?;
    let value = decrypt(&LessSafeKey::new(key), *iv, purpose, sealed).ok_or(OpenError::NotGenuine)?;
    Ok(Zeroizing::new(value))
}
