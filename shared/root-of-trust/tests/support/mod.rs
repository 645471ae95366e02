//! What several of these tests need.
#![allow(dead_code)]

use cnova_shared::keys::SoftKey;

/// A new key in memory.
pub(crate) fn es256() -> SoftKey {
    let key = rcgen::KeyPair::generate().unwrap();
    SoftKey::from_pkcs8(&key.serialize_der()).unwrap()
}
