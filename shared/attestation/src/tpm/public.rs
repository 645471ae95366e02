//! `TPMT_PUBLIC` (part 2, section 12.2.4): public areas of RSA-2048, P-256 and P-384 keys, and their names.

use super::reader::Reader;
use super::{Hash, TpmError};

const ALG_RSA: u16 = 0x0001;
const ALG_AES: u16 = 0x0006;
const ALG_NULL: u16 = 0x0010;
const ALG_RSASSA: u16 = 0x0014;
const ALG_ECDSA: u16 = 0x0018;
const ALG_ECC: u16 = 0x0023;
const ALG_CFB: u16 = 0x0043;
const CURVE_P256: u16 = 0x0003;
const CURVE_P384: u16 = 0x0004;
const RSA_BITS: u16 = 2048;
const RSA_BYTES: usize = 256;
const DEFAULT_EXPONENT: u32 = 65_537;
const DIGEST_MAX: usize = 64;

/// `TPMA_OBJECT` (part 2, section 8.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes(pub u32);

impl Attributes {
    /// It never leaves the TPM it was made in.
    pub const FIXED_TPM: Self = Self(1 << 1);
    /// It never gets another parent.
    pub const FIXED_PARENT: Self = Self(1 << 4);
    /// The TPM made its private part itself.
    pub const SENSITIVE_DATA_ORIGIN: Self = Self(1 << 5);
    /// Its password or an HMAC session is enough to use it.
    pub const USER_WITH_AUTH: Self = Self(1 << 6);
    /// It signs or decrypts only what the TPM made itself.
    pub const RESTRICTED: Self = Self(1 << 16);
    /// It decrypts.
    pub const DECRYPT: Self = Self(1 << 17);
    /// It signs.
    pub const SIGN: Self = Self(1 << 18);

    const RESERVED: u32 = !0x000f_0ff6;
    const NAMES: [(Self, &'static str); 7] = [
        (Self::FIXED_TPM, "fixedTPM"),
        (Self::FIXED_PARENT, "fixedParent"),
        (Self::SENSITIVE_DATA_ORIGIN, "sensitiveDataOrigin"),
        (Self::USER_WITH_AUTH, "userWithAuth"),
        (Self::RESTRICTED, "restricted"),
        (Self::DECRYPT, "decrypt"),
        (Self::SIGN, "sign"),
    ];

    /// Whether all of `wanted` are set.
    #[must_use]
    pub fn has(self, wanted: Self) -> bool {
        self.0 & wanted.0 == wanted.0
    }

    /// What is wrong with these attributes: which of `wanted` are missing, which of `refused` are set; empty when nothing.
    #[must_use]
    pub fn faults(self, wanted: &[Self], refused: &[Self]) -> String {
        let name = |a: &Self| Self::NAMES.iter().find(|(b, _)| a == b).map_or("?", |(_, n)| *n);
        let missing = wanted
            .iter()
            .filter(|w| !self.has(**w))
            .map(|w| format!("{} is not set", name(w)));
        let extra = refused
            .iter()
            .filter(|r| self.has(**r))
            .map(|r| format!("{} is set", name(r)));
        missing.chain(extra).collect::<Vec<_>>().join(", ")
    }
}

/// A curve (`TPM_ECC_CURVE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Curve {
    /// NIST P-256.
    P256,
    /// NIST P-384.
    P384,
}

impl Curve {
    /// Bytes of a coordinate.
    #[must_use]
    pub fn coordinate_len(self) -> usize {
        match self {
            Curve::P256 => 32,
            Curve::P384 => 48,
        }
    }
}

/// AES-CFB with which a storage key wraps what is imported under it (`TPMT_SYM_DEF_OBJECT`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Symmetric {
    /// None: the key is no storage key.
    None,
    /// AES-128 in CFB mode.
    Aes128,
    /// AES-256 in CFB mode.
    Aes256,
}

/// The signature scheme that a key is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// None: the caller chooses, or the key does not sign.
    None,
    /// RSASSA-PKCS1-v1_5.
    Rsassa(Hash),
    /// ECDSA.
    Ecdsa(Hash),
}

/// The key itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// RSA with 2048 bits.
    Rsa {
        /// The modulus, 256 bytes.
        modulus: Vec<u8>,
        /// The public exponent.
        exponent: u32,
    },
    /// A point on a curve; coordinates with leading zeros, so that each has the curve's length.
    Ecc {
        /// The curve.
        curve: Curve,
        /// x.
        x: Vec<u8>,
        /// y.
        y: Vec<u8>,
    },
}

impl Key {
    /// The uncompressed point (SEC 1 section 2.3.3); nothing for RSA.
    #[must_use]
    pub fn point(&self) -> Option<Vec<u8>> {
        match self {
            Key::Rsa { .. } => None,
            Key::Ecc { x, y, .. } => Some([&[4], x.as_slice(), y].concat()),
        }
    }
}

/// A public area.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Public {
    /// The hash of its name.
    pub name_alg: Hash,
    /// What it may be used for.
    pub attributes: Attributes,
    /// How its children are wrapped.
    pub symmetric: Symmetric,
    /// How it signs.
    pub scheme: Scheme,
    /// The key.
    pub key: Key,
    bytes: Vec<u8>,
}

impl Public {
    /// Reads a `TPMT_PUBLIC`.
    ///
    /// # Errors
    /// [`TpmError`] when it is not one, or not of a supported kind.
    pub fn read(bytes: &[u8]) -> Result<Self, TpmError> {
        let mut r = Reader::new(bytes);
        let kind = r.u16("its type")?;
        let name_alg = Hash::from_id("its name algorithm", r.u16("its name algorithm")?)?;
        let attributes = r.u32("its attributes")?;
        if attributes & Attributes::RESERVED != 0 {
            return Err(TpmError::Value {
                what: "its attributes",
                value: attributes.into(),
            });
        }
        let policy = r.sized("its policy", DIGEST_MAX)?;
        if !policy.is_empty() && policy.len() != name_alg.digest_len() {
            return Err(TpmError::Value {
                what: "the length of its policy",
                value: policy.len() as u64,
            });
        }
        let (symmetric, scheme, key) = match kind {
            ALG_RSA => read_rsa(&mut r)?,
            ALG_ECC => read_ecc(&mut r)?,
            other => {
                return Err(TpmError::Value {
                    what: "its type",
                    value: other.into(),
                });
            }
        };
        r.end()?;
        Ok(Self {
            name_alg,
            attributes: Attributes(attributes),
            symmetric,
            scheme,
            key,
            bytes: bytes.to_vec(),
        })
    }

    /// Its name: the hash algorithm and the hash of the public area (part 1, section 16).
    #[must_use]
    pub fn name(&self) -> Vec<u8> {
        let digest = self.name_alg.digest(&[&self.bytes]);
        [&self.name_alg.id().to_be_bytes()[..], &digest].concat()
    }

    /// The structure as it was read.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn read_rsa(r: &mut Reader<'_>) -> Result<(Symmetric, Scheme, Key), TpmError> {
    let symmetric = read_symmetric(r)?;
    let scheme = read_scheme(r, ALG_RSASSA, Scheme::Rsassa)?;
    let bits = r.u16("its key bits")?;
    if bits != RSA_BITS {
        return Err(TpmError::Value {
            what: "its key bits",
            value: bits.into(),
        });
    }
    let exponent = match r.u32("its exponent")? {
        0 => DEFAULT_EXPONENT,
        e if e > 2 && e % 2 == 1 => e,
        e => {
            return Err(TpmError::Value {
                what: "its exponent",
                value: e.into(),
            });
        }
    };
    let modulus = r.sized("its modulus", RSA_BYTES)?.to_vec();
    if modulus.len() != RSA_BYTES || modulus.first().is_none_or(|b| b & 0x80 == 0) {
        return Err(TpmError::Value {
            what: "the length of its modulus",
            value: modulus.len() as u64,
        });
    }
    Ok((symmetric, scheme, Key::Rsa { modulus, exponent }))
}

fn read_ecc(r: &mut Reader<'_>) -> Result<(Symmetric, Scheme, Key), TpmError> {
    let symmetric = read_symmetric(r)?;
    let scheme = read_scheme(r, ALG_ECDSA, Scheme::Ecdsa)?;
    let curve = match r.u16("its curve")? {
        CURVE_P256 => Curve::P256,
        CURVE_P384 => Curve::P384,
        value => {
            return Err(TpmError::Value {
                what: "its curve",
                value: value.into(),
            });
        }
    };
    let kdf = r.u16("its key derivation")?;
    if kdf != ALG_NULL {
        return Err(TpmError::Value {
            what: "its key derivation",
            value: kdf.into(),
        });
    }
    let x = coordinate("its x", r, curve)?;
    let y = coordinate("its y", r, curve)?;
    Ok((symmetric, scheme, Key::Ecc { curve, x, y }))
}

/// Some TPMs leave out leading zeros.
fn coordinate(what: &'static str, r: &mut Reader<'_>, curve: Curve) -> Result<Vec<u8>, TpmError> {
    let short = r.sized(what, curve.coordinate_len())?;
    if short.is_empty() {
        return Err(TpmError::Short(what));
    }
    Ok(super::signature::padded(short, curve.coordinate_len()))
}

fn read_symmetric(r: &mut Reader<'_>) -> Result<Symmetric, TpmError> {
    let bad = |what, value: u16| TpmError::Value {
        what,
        value: value.into(),
    };
    match r.u16("its symmetric algorithm")? {
        ALG_NULL => return Ok(Symmetric::None),
        ALG_AES => {}
        other => return Err(bad("its symmetric algorithm", other)),
    }
    let symmetric = match r.u16("its symmetric key bits")? {
        128 => Symmetric::Aes128,
        256 => Symmetric::Aes256,
        other => return Err(bad("its symmetric key bits", other)),
    };
    match r.u16("its symmetric mode")? {
        ALG_CFB => Ok(symmetric),
        other => Err(bad("its symmetric mode", other)),
    }
}

fn read_scheme(r: &mut Reader<'_>, wanted: u16, scheme: fn(Hash) -> Scheme) -> Result<Scheme, TpmError> {
    match r.u16("its scheme")? {
        ALG_NULL => Ok(Scheme::None),
        id if id == wanted => Hash::from_id("its scheme's hash", r.u16("its scheme's hash")?).map(scheme),
        id => Err(TpmError::Value {
            what: "its scheme",
            value: id.into(),
        }),
    }
}
