//! What an image was built for.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// Operating system and architecture, in Go's words: `linux/amd64`, `linux/arm64`, `linux/arm/v7`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, `arm`, `riscv64`.
    pub architecture: String,
    /// `v7` of `arm`; empty if there is none to tell apart.
    #[serde(default)]
    pub variant: String,
}

/// Not a platform.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a platform: write `linux/amd64`, `linux/arm64` or `linux/arm/v7`")]
pub struct PlatformError(String);

impl Platform {
    /// The platform of this program, if images have a word for it.
    pub fn of_this_machine() -> Option<Platform> {
        Platform::of_target(&format!(
            "{}-unknown-{}-gnu",
            std::env::consts::ARCH,
            std::env::consts::OS
        ))
    }

    /// The platform that a Rust target runs.
    pub fn of_target(target: &str) -> Option<Platform> {
        if !target.contains("-linux") {
            return None;
        }
        let (architecture, variant) = match target.split('-').next()? {
            "x86_64" => ("amd64", ""),
            "aarch64" => ("arm64", ""),
            "armv7" | "arm" => ("arm", "v7"),
            "riscv64gc" | "riscv64" => ("riscv64", ""),
            "i686" | "x86" => ("386", ""),
            _ => return None,
        };
        Some(Platform {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: variant.into(),
        })
    }

    /// Whether an image of that platform runs on this one. A variant counts only where both name one, and `arm64` has
    /// but one in use.
    pub fn runs(&self, image: &Platform) -> bool {
        let variants = self.variant == image.variant
            || self.variant.is_empty()
            || image.variant.is_empty()
            || self.architecture == "arm64";
        self.os == image.os && self.architecture == image.architecture && variants
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_str() {
            "" => Ok(()),
            variant => write!(f, "/{variant}"),
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Platform, PlatformError> {
        let words: Vec<&str> = text.split('/').collect();
        let proper =
            |word: &&str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !words.iter().all(proper) {
            return Err(PlatformError(text.into()));
        }
        let (os, architecture, variant) = match words[..] {
            [os, architecture] => (os, architecture, ""),
            [os, architecture, variant] => (os, architecture, variant),
            _ => return Err(PlatformError(text.into())),
        };
        Ok(Platform {
            os: os.into(),
            architecture: architecture.into(),
            variant: variant.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_told_apart() {
        let [amd64, arm64, armv7, arm, arm64v8] = [
            "linux/amd64",
            "linux/arm64",
            "linux/arm/v7",
            "linux/arm",
            "linux/arm64/v8",
        ]
        .map(|p| p.parse::<Platform>().unwrap());
        assert!(!amd64.runs(&arm64));
        assert!(arm64.runs(&arm64v8));
        assert!(armv7.runs(&arm));
        assert!(!armv7.runs(&arm64));
        assert_eq!(armv7.to_string(), "linux/arm/v7");
        for wrong in ["linux", "", "linux/", "Linux/amd64", "linux/arm/v7/x", "linux amd64"] {
            assert!(wrong.parse::<Platform>().is_err(), "{wrong}");
        }
        assert_eq!(Platform::of_target("aarch64-unknown-linux-musl"), Some(arm64));
        assert_eq!(Platform::of_target("thumbv7em-none-eabihf"), None);
    }
}
