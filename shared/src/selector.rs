//! Whom a set of values is for.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ids::{NodeId, SitePath};

/// Nodes that are named, and nodes that are at the place and have the labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selector {
    /// Every node of the tree.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
    /// Exactly these.
    #[serde(rename = "n", default, skip_serializing_if = "BTreeSet::is_empty")]
    pub nodes: BTreeSet<NodeId>,
    /// Those at or below this place.
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    pub site: Option<SitePath>,
    /// Those with all these labels.
    #[serde(rename = "l", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl Selector {
    /// Whether it selects this node.
    #[must_use]
    pub fn selects(&self, node: &NodeId, site: &SitePath, labels: &BTreeMap<String, String>) -> bool {
        if self.all || self.nodes.contains(node) {
            return true;
        }
        if self.site.is_none() && self.labels.is_empty() {
            return false;
        }
        let here = |prefix: &SitePath| {
            let rest = site.as_str().strip_prefix(prefix.as_str());
            rest.is_some_and(|r| r.is_empty() || r.starts_with('/'))
        };
        self.site.as_ref().is_none_or(here) && self.labels.iter().all(|(k, v)| labels.get(k) == Some(v))
    }

    /// Whether it can select no node at all.
    #[must_use]
    pub fn selects_nobody(&self) -> bool {
        !self.all && self.nodes.is_empty() && self.site.is_none() && self.labels.is_empty()
    }
}
