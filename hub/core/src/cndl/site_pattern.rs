//! Which site paths a workload may run at: `plant-7/line-2/**`.

use std::fmt;

use serde::{Serialize, Serializer};

/// A pattern over site paths: exact segments, `*` for one segment, and `**` at the end for any tail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SitePattern(String);

/// Why a text is not a site pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSitePattern {
    /// `a//b`, a leading or a trailing slash, or nothing at all.
    #[error("has an empty segment")]
    EmptySegment,
    /// `a/**/b`.
    #[error("\"**\" stands for any tail and must be the last segment")]
    TailInTheMiddle,
    /// `plc-*`.
    #[error("\"*\" stands for one whole segment and cannot be part of one")]
    PartialWildcard,
    /// Something a site path cannot contain.
    #[error("a segment may contain letters, digits, '.', '_' and '-'")]
    ForbiddenCharacter,
}

impl SitePattern {
    /// Checks the text of a pattern.
    pub fn new(text: &str) -> Result<Self, InvalidSitePattern> {
        let mut segments = text.split('/').peekable();
        while let Some(segment) = segments.next() {
            match segment {
                "" => return Err(InvalidSitePattern::EmptySegment),
                "**" if segments.peek().is_some() => return Err(InvalidSitePattern::TailInTheMiddle),
                "*" | "**" => {}
                s if s.contains('*') => return Err(InvalidSitePattern::PartialWildcard),
                s if !s.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) => {
                    return Err(InvalidSitePattern::ForbiddenCharacter);
                }
                _ => {}
            }
        }
        Ok(Self(text.to_owned()))
    }

    /// `**`: everywhere.
    #[must_use]
    pub fn everywhere() -> Self {
        Self("**".to_owned())
    }

    /// The text as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a node at this site path fits. `plant-7/**` fits `plant-7` itself and everything below it.
    #[must_use]
    pub fn matches(&self, site: &str) -> bool {
        let mut have = site.split('/').filter(|s| !s.is_empty());
        for want in self.0.split('/') {
            match (want, have.next()) {
                ("**", _) => return true,
                ("*", Some(_)) => {}
                (want, Some(got)) if want == got => {}
                _ => return false,
            }
        }
        have.next().is_none()
    }
}

impl fmt::Display for SitePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for SitePattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, site: &str) -> bool {
        SitePattern::new(pattern).unwrap().matches(site)
    }

    #[test]
    fn segments_stars_and_tails() {
        assert!(matches("plant-7/line-2/plc-14", "plant-7/line-2/plc-14"));
        assert!(matches("plant-7/*/plc-14", "plant-7/line-2/plc-14"));
        assert!(matches("plant-7/**", "plant-7/line-2/plc-14"));
        assert!(matches("plant-7/**", "plant-7"));
        assert!(matches("**", "") && matches("**", "anything/at/all"));
        assert!(!matches("plant-7", "plant-7/line-2"));
        assert!(!matches("plant-7/*", "plant-7"));
        assert!(!matches("plant-7/**", "plant-70/line-1"));
    }

    #[test]
    fn what_is_not_a_pattern() {
        use InvalidSitePattern::*;
        for (text, why) in [
            ("", EmptySegment),
            ("/a", EmptySegment),
            ("a//b", EmptySegment),
            ("a/**/b", TailInTheMiddle),
            ("a/plc-*", PartialWildcard),
            ("a/b c", ForbiddenCharacter),
        ] {
            assert_eq!(SitePattern::new(text), Err(why), "{text}");
        }
    }
}
