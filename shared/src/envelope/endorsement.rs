//! A session key that a certified key vouches for.

use coset::cbor::value::Value;
use coset::iana;

use crate::ids::NodeId;
use crate::keys::{Algorithm, PublicKey, SignError, Signer};

/// A key in memory that a node's certified key vouches for. It lives as long as the node's program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endorsement {
    /// The session key.
    pub key: PublicKey,
    /// The certified key's signature over the node's name and the session key.
    pub signature: Vec<u8>,
}

impl Endorsement {
    /// Lets `certified` vouch for `key`.
    ///
    /// # Errors
    /// [`SignError`] when the certified key's holder did not sign.
    pub fn make(node: &NodeId, key: PublicKey, certified: &dyn Signer) -> Result<Self, SignError> {
        let signature = certified.sign(&Self::statement(node, &key))?;
        Ok(Self { key, signature })
    }

    /// Whether `certified` vouched for this session key of `node`.
    #[must_use]
    pub fn holds(&self, node: &NodeId, certified: &PublicKey) -> bool {
        certified.verifies(&Self::statement(node, &self.key), &self.signature)
    }

    /// No envelope begins like this, so that neither signature can pass for the other.
    fn statement(node: &NodeId, key: &PublicKey) -> Vec<u8> {
        let algorithm = match key.algorithm {
            Algorithm::Ed25519 => b"ed25519\0",
            Algorithm::Es256 => b"es256\0\0\0",
        };
        [
            b"cnova-session-v1\0",
            algorithm.as_slice(),
            node.as_str().as_bytes(),
            b"\0",
            &key.bytes,
        ]
        .concat()
    }

    pub(super) fn to_value(&self) -> Value {
        let algorithm = match self.key.algorithm {
            Algorithm::Ed25519 => iana::Algorithm::EdDSA,
            Algorithm::Es256 => iana::Algorithm::ES256,
        };
        Value::Array(vec![
            Value::from(algorithm as i64),
            Value::Bytes(self.key.bytes.clone()),
            Value::Bytes(self.signature.clone()),
        ])
    }

    pub(super) fn from_value(value: &Value) -> Option<Self> {
        let [algorithm, key, signature] = value.as_array()?.as_slice() else {
            return None;
        };
        let algorithm = match i64::try_from(algorithm.as_integer()?).ok()? {
            a if a == iana::Algorithm::EdDSA as i64 => Algorithm::Ed25519,
            a if a == iana::Algorithm::ES256 as i64 => Algorithm::Es256,
            _ => return None,
        };
        Some(Self {
            key: PublicKey {
                algorithm,
                bytes: key.as_bytes()?.clone(),
            },
            signature: signature.as_bytes()?.clone(),
        })
    }
}

/// How an author introduces itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Introduction<'a> {
    /// Its certificate chain, leaf first.
    pub chain: &'a [Vec<u8>],
    /// Its session key, where another than the certified key signs.
    pub endorsement: Option<&'a Endorsement>,
}
