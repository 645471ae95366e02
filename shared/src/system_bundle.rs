//! A system bundle: one operating system for the slots of a board, as one file.
//!
//! ```text
//! 0   magic "CNOVASY1"
//! 8   length of the header, 4 bytes, big endian
//! 12  the header, CBOR
//! ..  zeros up to a multiple of 4096
//!     the parts, each at its offset, zeros between them
//! ```
//!
//! It is an artifact like any other: a twin names it by its SHA-256. The header's own digest stands in the twin as well, so
//! that a node that writes the parts straight into a slot reads nothing of it that was not vouched for.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::Digest;
use crate::limits;
use crate::wire;

/// The first bytes of every bundle.
pub const MAGIC: &[u8; 8] = b"CNOVASY1";
/// The header's version.
pub const VERSION: u32 = 1;
/// Parts begin at multiples of this.
pub const ALIGN: u64 = 4096;
/// Magic and length.
pub const PREFIX_BYTES: usize = 12;

/// What a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PartKind {
    /// The root file system with its dm-verity tree, for the slot's partition.
    Root,
    /// What the firmware or the loader starts: on UEFI a unified kernel image.
    Boot,
}

/// One part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// What it is.
    #[serde(rename = "k")]
    pub kind: PartKind,
    /// Where in the bundle it begins.
    #[serde(rename = "o")]
    pub offset: u64,
    /// Its bytes.
    #[serde(rename = "s")]
    pub size: u64,
    /// Their SHA-256.
    #[serde(rename = "d")]
    pub digest: Digest,
}

impl Part {
    /// The first byte behind it.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.offset + self.size
    }
}

/// What stands before the parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// [`VERSION`].
    pub v: u32,
    /// The board that it is for; a node says the same word of itself.
    #[serde(rename = "c")]
    pub compatible: String,
    /// The system's version; [`compare_versions`] orders them.
    #[serde(rename = "n")]
    pub version: String,
    /// The root hash of its dm-verity tree: the system that runs says it on its command line.
    #[serde(rename = "h")]
    pub root_hash: Digest,
    /// One root and one boot part, in order of their offsets.
    #[serde(rename = "p")]
    pub parts: Vec<Part>,
    /// What the registers of a TPM may hold once it has booted, of those that only the image decides.
    #[serde(rename = "m", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub measured: BTreeMap<u8, BTreeSet<Digest>>,
    /// The programs of it that the firmware measures into register 4, last of all and in this order: what stands before them
    /// is the firmware's and the loader's, and differs between machines.
    #[serde(rename = "l", default, skip_serializing_if = "Vec::is_empty")]
    pub loads: Vec<Digest>,
}

/// Why a bundle is not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BundleError {
    /// It begins otherwise.
    #[error(
        "it is not a system bundle: it does not begin with CNOVASY1; `firmware-images/build BOARD --bundle` makes one"
    )]
    NotOne,
    /// The header is larger than the limit, or cut off.
    #[error("its header has {said} bytes of {here} that are there; at most {max} are read", max = limits::SYSTEM_HEADER_BYTES)]
    Length {
        /// What it says.
        said: usize,
        /// What there is.
        here: usize,
    },
    /// The header is not CBOR of this form.
    #[error("its header cannot be read: {0}")]
    Malformed(String),
    /// A newer format.
    #[error("its header has version {0}, this program reads {VERSION}: update the program first")]
    UnknownVersion(u32),
    /// It breaks a rule.
    #[error("its header says what cannot be: {0}")]
    Invalid(String),
}

impl Header {
    /// How many bytes at the bundle's beginning its header takes, magic and length with it.
    ///
    /// # Errors
    /// [`BundleError::NotOne`], [`BundleError::Length`].
    pub fn length(begin: &[u8]) -> Result<usize, BundleError> {
        let Some((magic, rest)) = begin.split_at_checked(MAGIC.len()) else {
            return Err(BundleError::NotOne);
        };
        if magic != MAGIC {
            return Err(BundleError::NotOne);
        }
        let here = begin.len();
        let Some(length) = rest.first_chunk::<4>() else {
            return Err(BundleError::Length { said: 0, here });
        };
        let said = u32::from_be_bytes(*length) as usize;
        if said == 0 || said > limits::SYSTEM_HEADER_BYTES {
            return Err(BundleError::Length { said, here });
        }
        Ok(PREFIX_BYTES + said)
    }

    /// Reads the header at the beginning of a bundle of `size` bytes.
    ///
    /// # Errors
    /// [`BundleError`].
    pub fn read(begin: &[u8], size: u64) -> Result<Self, BundleError> {
        let length = Self::length(begin)?;
        let Some(cbor) = begin.get(PREFIX_BYTES..length) else {
            let (said, here) = (length - PREFIX_BYTES, begin.len());
            return Err(BundleError::Length { said, here });
        };
        let header: Self = wire::decode(cbor).map_err(|e| BundleError::Malformed(e.to_string()))?;
        if header.v != VERSION {
            return Err(BundleError::UnknownVersion(header.v));
        }
        header.check(length as u64, size).map_err(BundleError::Invalid)?;
        Ok(header)
    }

    /// The header as it stands in a bundle: magic, length, CBOR.
    ///
    /// # Errors
    /// [`BundleError`] where a reader would not take it.
    pub fn to_bytes(&self) -> Result<Vec<u8>, BundleError> {
        let cbor = wire::encode(self).map_err(|e| BundleError::Malformed(e.to_string()))?;
        let said = u32::try_from(cbor.len()).unwrap_or(u32::MAX);
        let bytes = [&MAGIC[..], &said.to_be_bytes(), &cbor].concat();
        let size = self.parts.iter().map(Part::end).max().unwrap_or_default();
        Self::read(&bytes, size)?;
        Ok(bytes)
    }

    fn check(&self, length: u64, size: u64) -> Result<(), String> {
        let word = |what: &str, text: &str| {
            let is_good = |c: char| c.is_ascii_alphanumeric() || "._-+~".contains(c);
            if text.is_empty() || text.len() > limits::SYSTEM_WORD_LEN || !text.chars().all(is_good) {
                let most = limits::SYSTEM_WORD_LEN;
                return Err(format!(
                    "{what} is 1 to {most} letters, digits and . _ - + ~, not {text:?}"
                ));
            }
            Ok(())
        };
        word("the board", &self.compatible)?;
        word("the version", &self.version)?;
        let kinds: Vec<PartKind> = self.parts.iter().map(|p| p.kind).collect();
        if kinds.len() != 2 || !kinds.contains(&PartKind::Root) || !kinds.contains(&PartKind::Boot) {
            return Err(format!(
                "it has the parts {kinds:?}; one root and one boot part are written"
            ));
        }
        let mut free = length;
        for part in &self.parts {
            let kind = part.kind;
            if part.offset % ALIGN != 0 || part.offset < free || part.size == 0 {
                return Err(format!("part {kind:?} of {} bytes at {}", part.size, part.offset));
            }
            free = part
                .offset
                .checked_add(part.size)
                .filter(|end| *end <= size)
                .ok_or_else(|| format!("part {kind:?} ends behind the bundle's {size} bytes"))?;
        }
        if free != size {
            return Err(format!("the bundle has {size} bytes, and its parts end at {free}"));
        }
        if self.part(PartKind::Root).is_some_and(|p| p.size % ALIGN != 0) {
            return Err(format!("the root is no multiple of {ALIGN} bytes"));
        }
        let values = self.measured.values().map(BTreeSet::len).sum::<usize>() + self.loads.len();
        if values > limits::SYSTEM_MEASURED || self.measured.keys().any(|p| *p >= crate::boot_policy::PCR_COUNT) {
            return Err(format!("{values} values of registers, or a register that no TPM has"));
        }
        Ok(())
    }

    /// The part of that kind.
    #[must_use]
    pub fn part(&self, kind: PartKind) -> Option<&Part> {
        self.parts.iter().find(|p| p.kind == kind)
    }

    /// The registers that would not be as this system makes them, if these were all that was allowed.
    #[must_use]
    pub fn missing_in(&self, allowed: impl Fn(u8, &Digest) -> bool) -> Vec<u8> {
        let is_missing = |(pcr, values): &(&u8, &BTreeSet<Digest>)| !values.iter().any(|v| allowed(**pcr, v));
        self.measured.iter().filter(is_missing).map(|(pcr, _)| *pcr).collect()
    }
}

/// Orders versions: numbers by value, words by letter, a part that follows `~` before its absence (`1.5~rc1` < `1.5`), any
/// other part after it (`1.5` < `1.5.1`).
#[must_use]
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (pieces(a), pieces(b));
    loop {
        let order = match (a.next(), b.next()) {
            (None, None) => return Ordering::Equal,
            (Some(Piece::Before), None) => Ordering::Less,
            (None, Some(Piece::Before)) => Ordering::Greater,
            (Some(_), None) => Ordering::Greater,
            (None, Some(_)) => Ordering::Less,
            (Some(x), Some(y)) => x.cmp(&y),
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// In this order where they stand at the same place.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Piece<'a> {
    Before,
    Word(&'a str),
    /// Digits without leading zeros: by length, then by letter.
    Number(usize, &'a str),
}

fn pieces(text: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            let first = rest.chars().next()?;
            if first == '~' {
                rest = &rest[1..];
                return Some(Piece::Before);
            }
            if !first.is_alphanumeric() {
                rest = &rest[first.len_utf8()..];
                continue;
            }
            let is_digit = first.is_ascii_digit();
            let same = |c: char| c.is_alphanumeric() && c.is_ascii_digit() == is_digit;
            let end = rest.find(|c| !same(c)).unwrap_or(rest.len());
            let (piece, after) = rest.split_at(end);
            rest = after;
            return Some(match is_digit {
                true => {
                    let digits = piece.trim_start_matches('0');
                    Piece::Number(digits.len(), digits)
                }
                false => Piece::Word(piece),
            });
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        let part = |kind, offset, size| Part {
            kind,
            offset,
            size,
            digest: Digest::of(b"x"),
        };
        Header {
            v: VERSION,
            compatible: "qemu-x86_64".into(),
            version: "1.5".into(),
            root_hash: Digest::of(b"root"),
            parts: vec![part(PartKind::Root, 4096, 8192), part(PartKind::Boot, 12288, 77)],
            measured: BTreeMap::from([(11, BTreeSet::from([Digest::of(b"eleven")]))]),
            loads: vec![Digest::of(b"kernel")],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = header().to_bytes().unwrap();
        assert_eq!(Header::length(&bytes).unwrap(), bytes.len());
        assert_eq!(Header::read(&bytes, 12365).unwrap(), header());
        // As a bundle begins.
        let mut longer = bytes;
        longer.resize(4096, 0);
        assert_eq!(Header::read(&longer, 12365).unwrap(), header());
    }

    #[test]
    fn what_cannot_be_is_refused_with_words() {
        let said = |header: Header, size: u64| {
            let cbor = wire::encode(&header).unwrap();
            let length = u32::try_from(cbor.len()).unwrap();
            let bytes = [&MAGIC[..], &length.to_be_bytes(), &cbor].concat();
            Header::read(&bytes, size).unwrap_err().to_string()
        };
        assert!(said(header(), 12366).contains("its parts end at 12365"));
        assert!(said(header(), 12364).contains("ends behind the bundle's 12364 bytes"));
        let with = |change: &dyn Fn(&mut Header)| {
            let mut changed = header();
            change(&mut changed);
            said(changed, 12365)
        };
        assert!(with(&|h| h.v = 2).contains("version 2"));
        assert!(with(&|h| h.compatible = "../x".into()).contains("the board is 1 to"));
        assert!(with(&|h| h.version = String::new()).contains("the version is 1 to"));
        assert!(with(&|h| h.parts.swap(0, 1)).contains("part Root of 8192 bytes at 4096"));
        assert!(with(&|h| h.parts[0].offset = 0).contains("part Root of 8192 bytes at 0"));
        assert!(with(&|h| h.parts[1].size = u64::MAX).contains("part Boot ends behind"));
        assert!(with(&|h| h.parts[1].kind = PartKind::Root).contains("one root and one boot part"));
        assert!(with(&|h| h.measured = BTreeMap::from([(24, BTreeSet::from([Digest([0; 32])]))])).contains("register"));
    }

    #[test]
    fn bytes_that_are_no_bundle_are_refused() {
        let good = header().to_bytes().unwrap();
        assert_eq!(Header::read(b"\x7fELF", 4), Err(BundleError::NotOne));
        assert_eq!(Header::read(b"", 0), Err(BundleError::NotOne));
        assert!(matches!(
            Header::read(&good[..10], 12365),
            Err(BundleError::Length { said: 0, here: 10 })
        ));
        assert!(matches!(
            Header::read(&good[..40], 12365),
            Err(BundleError::Length { here: 40, .. })
        ));
        let mut large = good.clone();
        large[8] = 0xff;
        assert!(matches!(Header::read(&large, 12365), Err(BundleError::Length { .. })));
        for at in PREFIX_BYTES..good.len() {
            let mut flipped = good.clone();
            flipped[at] ^= 0x80;
            // Whatever comes of it, it ends.
            let _ = Header::read(&flipped, 12365);
        }
    }

    #[test]
    fn versions_are_ordered_as_people_read_them() {
        let in_order = [
            "0.9",
            "1.0~rc1",
            "1.0~rc2",
            "1.0",
            "1.0.1",
            "1.2",
            "1.10",
            "2",
            "2026.11.21",
            "2026.11.21-2",
        ];
        for (i, a) in in_order.iter().enumerate() {
            for (j, b) in in_order.iter().enumerate() {
                assert_eq!(compare_versions(a, b), i.cmp(&j), "{a} and {b}");
            }
        }
        assert_eq!(compare_versions("1.05", "1.5"), Ordering::Equal);
    }
}
