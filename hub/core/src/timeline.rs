//! When each stage of an application's generation was reached, as each author said. Kept in memory: it explains what
//! is going on now, and is no truth of its own.

use std::collections::{BTreeMap, BTreeSet};

use cnova_shared::ids::{Name, NodeId};
use cnova_shared::twin::Version;
use serde::{Deserialize, Serialize};

/// Generations of one application whose stages are kept.
const GENERATIONS_KEPT: usize = 16;
/// Stages of one generation that are kept.
const STAGES_KEPT: usize = 4096;

/// One stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageRecord {
    /// `admitted`, `placed`, `compiled`, `signed`, `relayed`, `verified`, `committed`, `running`, `reported`.
    pub stage: String,
    /// When, milliseconds since 1970, by the clock of `by`.
    pub at_ms: u64,
    /// Who says so.
    pub by: String,
    /// The node that it is about, when it is about one.
    pub node: Option<NodeId>,
    /// More, for a person.
    pub detail: String,
}

/// All timelines.
#[derive(Debug, Default)]
pub struct Timeline {
    records: BTreeMap<(Name, u64), Vec<StageRecord>>,
    /// Which application generations a twin is the first to carry.
    carried: BTreeMap<(NodeId, Version), BTreeSet<(Name, u64)>>,
}

impl Timeline {
    /// The stages of one generation, in order of time.
    #[must_use]
    pub fn of(&self, name: &Name, generation: u64) -> Vec<StageRecord> {
        let mut all = self
            .records
            .get(&(name.clone(), generation))
            .cloned()
            .unwrap_or_default();
        all.sort_by_key(|r| r.at_ms);
        all
    }

    /// Adds a stage, once.
    pub fn add(&mut self, name: &Name, generation: u64, record: StageRecord) {
        let key = (name.clone(), generation);
        let records = self.records.entry(key).or_default();
        let twice = |r: &StageRecord| {
            r.stage == record.stage && r.node == record.node && r.by == record.by && r.detail == record.detail
        };
        if records.len() < STAGES_KEPT && !records.iter().any(twice) {
            records.push(record);
        }
        let of_name: Vec<u64> = self
            .records
            .keys()
            .filter(|(n, _)| n == name)
            .map(|(_, g)| *g)
            .collect();
        if of_name.len() > GENERATIONS_KEPT {
            self.records.remove(&(name.clone(), of_name[0]));
        }
    }

    /// A twin was signed that carries these application generations; those that no earlier twin of the node carried
    /// are remembered for [`Timeline::add_for_twin`].
    pub fn signed(&mut self, node: &NodeId, version: Version, apps: impl Iterator<Item = (Name, u64)>, at_ms: u64) {
        let mut earlier = BTreeSet::new();
        for ((n, _), carried) in &self.carried {
            if n == node {
                earlier.extend(carried.iter().cloned());
            }
        }
        let first: BTreeSet<(Name, u64)> = apps.filter(|a| !earlier.contains(a)).collect();
        self.carried.insert((node.clone(), version), first);
        let of_node: Vec<Version> = self
            .carried
            .keys()
            .filter(|(n, _)| n == node)
            .map(|(_, v)| *v)
            .collect();
        if of_node.len() > GENERATIONS_KEPT {
            self.carried.remove(&(node.clone(), of_node[0]));
        }
        self.add_for_twin(node, version, "signed", "hub", at_ms);
    }

    /// Adds a stage of a twin to every application generation that it was the first to carry.
    pub fn add_for_twin(&mut self, node: &NodeId, version: Version, stage: &str, by: &str, at_ms: u64) {
        let Some(apps) = self.carried.get(&(node.clone(), version)).cloned() else {
            return;
        };
        for (name, generation) in apps {
            let record = StageRecord {
                stage: stage.to_owned(),
                at_ms,
                by: by.to_owned(),
                node: Some(node.clone()),
                detail: format!("twin {version}"),
            };
            self.add(&name, generation, record);
        }
    }
}
