//! COSE_Key (RFC 9052 section 7) of the two kinds of keys on the wire, and the `cnf` claim (RFC 8747) around it.

use cnova_shared::keys::{Algorithm, PublicKey};
use cnova_shared::wire;
use serde_bytes::ByteBuf;

use crate::labels::labelled_map;

const KTY_OKP: i64 = 1;
const KTY_EC2: i64 = 2;
const CRV_P256: i64 = 1;
const CRV_ED25519: i64 = 6;
const COORDINATE_LEN: usize = 32;
const UNCOMPRESSED: u8 = 4;

labelled_map! {
    /// A COSE_Key with what is needed and nothing else, in deterministic order (RFC 9679 section 4).
    struct CoseKey {
        kty: i64 = 1,
        crv: i64 = -1,
        x: ByteBuf = -2,
        ? y: ByteBuf = -3,
    }
}

labelled_map! {
    /// The `cnf` claim: `{1: COSE_Key}`.
    struct Confirmation {
        key: CoseKey = 1,
    }
}

impl From<&PublicKey> for CoseKey {
    fn from(key: &PublicKey) -> Self {
        match key.algorithm {
            Algorithm::Ed25519 => Self {
                kty: KTY_OKP,
                crv: CRV_ED25519,
                x: ByteBuf::from(key.bytes.clone()),
                y: None,
            },
            Algorithm::Es256 => {
                // The first byte says "uncompressed point"; a key of another length encodes as one that nobody decodes.
                let point = key.bytes.get(1..).unwrap_or_default();
                let (x, y) = point.split_at(point.len().min(COORDINATE_LEN));
                Self {
                    kty: KTY_EC2,
                    crv: CRV_P256,
                    x: ByteBuf::from(x),
                    y: Some(ByteBuf::from(y)),
                }
            }
        }
    }
}

impl TryFrom<CoseKey> for PublicKey {
    type Error = String;

    fn try_from(key: CoseKey) -> Result<Self, String> {
        let whole = |c: &ByteBuf| c.len() == COORDINATE_LEN;
        match (key.kty, key.crv, key.y) {
            (KTY_OKP, CRV_ED25519, None) if whole(&key.x) => Ok(PublicKey {
                algorithm: Algorithm::Ed25519,
                bytes: key.x.into_vec(),
            }),
            (KTY_EC2, CRV_P256, Some(y)) if whole(&key.x) && whole(&y) => Ok(PublicKey {
                algorithm: Algorithm::Es256,
                bytes: [&[UNCOMPRESSED], key.x.as_slice(), y.as_slice()].concat(),
            }),
            (kty, crv, _) => Err(format!(
                "the key in cnf (type {kty}, curve {crv}) is neither Ed25519 nor a whole point of P-256"
            )),
        }
    }
}

/// The deterministic CBOR of a public key as COSE_Key: what a quote binds.
#[must_use]
pub fn encode(key: &PublicKey) -> Vec<u8> {
    // Integers and byte strings always encode; an empty encoding would be bound to nothing and verify nowhere.
    wire::encode(&CoseKey::from(key)).unwrap_or_default()
}
