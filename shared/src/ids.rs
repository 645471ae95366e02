//! Names: node ids, site paths, workload names, digests. Each can only hold a valid value.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::limits;

/// A name that broke the rules of its kind.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{kind} {value:?} is not valid: {rule}")]
pub struct InvalidName {
    /// What was being named.
    pub kind: &'static str,
    /// The offending value, cut to 80 bytes.
    pub value: String,
    /// The rule it must follow.
    pub rule: &'static str,
}

fn invalid(kind: &'static str, value: &str, rule: &'static str) -> InvalidName {
    InvalidName {
        kind,
        value: limits::clip_to(value, 80),
        rule,
    }
}

/// Lower-case letters, digits and `extra`, beginning and ending with a letter or digit.
fn is_label(s: &str, max: usize, extra: &[u8]) -> bool {
    let b = s.as_bytes();
    let edge = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    !b.is_empty()
        && b.len() <= max
        && b.first().is_some_and(edge)
        && b.last().is_some_and(edge)
        && b.iter().all(|c| edge(c) || extra.contains(c))
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            /// Checks and takes the name.
            ///
            /// # Errors
            /// [`InvalidName`] with the rule that was broken.
            pub fn new(value: impl AsRef<str>) -> Result<Self, InvalidName> {
                let value = value.as_ref();
                let check: fn(&str) -> bool = $check;
                if check(value) { Ok(Self(value.into())) } else { Err(invalid($kind, value, $rule)) }
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(value: String) -> Result<Self, InvalidName> {
                Self::new(value)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(value: &str) -> Result<Self, InvalidName> {
                Self::new(value)
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0.into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// A node: its certificate's CN, its MQTT client id and its place in every topic.
    NodeId,
    "node id",
    "1 to 63 of a-z, 0-9, '-' and '.', beginning and ending with a letter or digit",
    |s| is_label(s, limits::NODE_ID_LEN, b"-.")
);

name_type!(
    /// The name of an application or of a workload in it.
    Name,
    "name",
    "1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit",
    |s| is_label(s, limits::NAME_LEN, b"-")
);

name_type!(
    /// Where a node hangs in the tree: `plant-7/line-2/plc-14`.
    SitePath,
    "site path",
    "1 to 16 names of a-z, 0-9, '-' and '.', joined by '/', at most 255 bytes",
    |s| {
        s.len() <= limits::SITE_PATH_LEN
            && s.split('/').count() <= limits::SITE_PATH_SEGMENTS
            && s.split('/').all(|seg| is_label(seg, limits::NAME_LEN, b"-."))
    }
);

/// The audience of what a node says to the root of the tree, whatever the hub's own node id is.
pub const HUB_AUDIENCE: &str = "hub";

/// A workload on a node: application and workload name, `vibration-watch/detector`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkloadId {
    /// The application it belongs to.
    #[serde(rename = "a")]
    pub application: Name,
    /// Its name in that application.
    #[serde(rename = "n")]
    pub name: Name,
}

impl fmt::Display for WorkloadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.application, self.name)
    }
}

impl FromStr for WorkloadId {
    type Err = InvalidName;
    fn from_str(value: &str) -> Result<Self, InvalidName> {
        let (a, n) = value
            .split_once('/')
            .ok_or_else(|| invalid("workload", value, "an application and a workload name, joined by '/'"))?;
        Ok(Self {
            application: Name::new(a)?,
            name: Name::new(n)?,
        })
    }
}

/// SHA-256 of some bytes; what names an artifact.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let d = ring::digest::digest(&ring::digest::SHA256, bytes);
        let mut out = [0; 32];
        out.copy_from_slice(d.as_ref());
        Self(out)
    }

    /// Sixty-four hexadecimal digits, without a prefix; safe as a file name.
    #[must_use]
    pub fn hex(&self) -> String {
        use fmt::Write;
        self.0.iter().fold(String::with_capacity(64), |mut s, b| {
            let _ = write!(s, "{b:02x}");
            s
        })
    }

    /// The first twelve hexadecimal digits, for people.
    #[must_use]
    pub fn short(&self) -> String {
        self.hex()[..12].to_owned()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = InvalidName;
    fn from_str(value: &str) -> Result<Self, InvalidName> {
        let bad = || invalid("digest", value, "\"sha256:\" and 64 lower-case hexadecimal digits");
        let hex = value.strip_prefix("sha256:").unwrap_or(value);
        if hex.len() != 64 || !hex.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c)) {
            return Err(bad());
        }
        let mut out = [0; 32];
        for (i, byte) in out.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).map_err(|_| bad())?;
        }
        Ok(Self(out))
    }
}

// Thirty-two bytes on the wire, not text: a twin with a hundred workloads carries hundreds of them.
impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() {
            s.collect_str(self)
        } else {
            s.serialize_bytes(&self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        // Text or bytes, whichever is there: inside a tagged enum serde's buffer no longer knows which format it is.
        d.deserialize_any(DigestVisitor)
    }
}

struct DigestVisitor;

impl serde::de::Visitor<'_> for DigestVisitor {
    type Value = Digest;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a SHA-256 digest")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Digest, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Digest, E> {
        let fail = |_| E::custom(format!("a digest has 32 bytes, not {}", bytes.len()));
        bytes.try_into().map(Digest).map_err(fail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_their_rules() {
        for good in ["plc-1", "a", "0.gw", &"a".repeat(63)] {
            assert!(NodeId::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a/b",
            "a+b",
            "a#",
            "$share",
            "a b",
            &"a".repeat(64),
            "ä",
        ] {
            assert!(NodeId::new(bad).is_err(), "{bad}");
        }
        assert!(SitePath::new("plant-7/line-2/plc-14").is_ok());
        for bad in ["/a", "a/", "a//b", "a/../b", "", &["a"; 17].join("/")] {
            assert!(SitePath::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn digest_text_round_trips() {
        let d = Digest::of(b"x");
        assert_eq!(d.to_string().parse::<Digest>().unwrap(), d);
        assert!("sha256:00".parse::<Digest>().is_err());
        assert!(format!("sha256:{}", "g".repeat(64)).parse::<Digest>().is_err());
    }
}
