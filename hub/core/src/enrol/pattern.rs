//! Which names and places a token is for.

use std::fmt;
use std::str::FromStr;

use cnova_shared::ids::{NodeId, SitePath};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Not a pattern.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidPattern {
    /// Of names.
    #[error("{0:?} is not a node name, or the beginning of one and a star, such as plc-14 or plc-*")]
    Name(String),
    /// Of places.
    #[error("{0:?} is not a site path, or one and /*, such as plant-7/line-2/plc-14 or plant-7/line-2/*")]
    Site(String),
}

/// A node's name, or the beginning of one and a star.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NamePattern(String);

impl NamePattern {
    /// Whether a name is one of these.
    #[must_use]
    pub fn matches(&self, node: &NodeId) -> bool {
        match self.0.strip_suffix('*') {
            Some(prefix) => node.as_str().starts_with(prefix),
            None => node.as_str() == self.0,
        }
    }

    /// The one name, where it is one.
    #[must_use]
    pub fn one(&self) -> Option<NodeId> {
        NodeId::new(&self.0).ok()
    }
}

impl FromStr for NamePattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        let stem = text.strip_suffix('*').unwrap_or(text);
        // A star alone would admit every name: then none need be said.
        let probe = format!("{stem}0");
        let good = if stem.len() == text.len() {
            NodeId::new(stem).is_ok()
        } else {
            !stem.is_empty() && NodeId::new(probe).is_ok()
        };
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidPattern::Name(text.to_owned()))
        }
    }
}

impl TryFrom<String> for NamePattern {
    type Error = InvalidPattern;
    fn try_from(text: String) -> Result<Self, InvalidPattern> {
        text.parse()
    }
}

impl From<NamePattern> for String {
    fn from(pattern: NamePattern) -> String {
        pattern.0
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One place, or with `/*` the places below one, each named as its node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SiteRule {
    path: SitePath,
    is_parent: bool,
}

impl SiteRule {
    /// The place of a node of this name.
    #[must_use]
    pub fn place_of(&self, node: &NodeId) -> Option<SitePath> {
        if self.is_parent {
            SitePath::new(format!("{}/{node}", self.path)).ok()
        } else {
            Some(self.path.clone())
        }
    }

    /// The name that the place suggests: its last segment.
    #[must_use]
    pub fn suggested(&self) -> Option<NodeId> {
        let last = self.path.as_str().rsplit('/').next()?;
        NodeId::new(last).ok().filter(|_| !self.is_parent)
    }
}

impl FromStr for SiteRule {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        let (path, is_parent) = match text.strip_suffix("/*") {
            Some(parent) => (parent, true),
            None => (text, false),
        };
        let path = SitePath::new(path).map_err(|_| InvalidPattern::Site(text.to_owned()))?;
        Ok(Self { path, is_parent })
    }
}

impl TryFrom<String> for SiteRule {
    type Error = InvalidPattern;
    fn try_from(text: String) -> Result<Self, InvalidPattern> {
        text.parse()
    }
}

impl From<SiteRule> for String {
    fn from(rule: SiteRule) -> String {
        rule.to_string()
    }
}

impl fmt::Display for SiteRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.path, if self.is_parent { "/*" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    #[test]
    fn patterns_admit_what_they_say() {
        let any: NamePattern = "plc-*".parse().unwrap();
        assert!(any.matches(&node("plc-1")) && !any.matches(&node("gw-1")));
        let one: NamePattern = "plc-1".parse().unwrap();
        assert!(one.matches(&node("plc-1")) && !one.matches(&node("plc-11")));
        assert_eq!((one.one(), any.one()), (Some(node("plc-1")), None));
        for bad in ["", "*", "PLC", "p*c", "a b"] {
            assert!(bad.parse::<NamePattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_place_is_one_or_those_below_one() {
        let one: SiteRule = "plant-7/plc-14".parse().unwrap();
        assert_eq!(one.place_of(&node("x")).unwrap().as_str(), "plant-7/plc-14");
        assert_eq!(one.suggested(), Some(node("plc-14")));
        let below: SiteRule = "plant-7/line-2/*".parse().unwrap();
        assert_eq!(below.place_of(&node("plc-1")).unwrap().as_str(), "plant-7/line-2/plc-1");
        assert_eq!(
            (below.suggested(), below.to_string().as_str()),
            (None, "plant-7/line-2/*")
        );
        for bad in ["", "/*", "a//b", "*", "a/*/b"] {
            assert!(bad.parse::<SiteRule>().is_err(), "{bad}");
        }
    }
}
