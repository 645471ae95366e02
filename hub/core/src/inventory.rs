//! What the nodes said: hellos and the newest entry of each subject.

use std::collections::{BTreeMap, BTreeSet};

use cnova_shared::ids::NodeId;
use cnova_shared::wire::v1::{self, Body};

use crate::stored::{Op, StoredEntry};

/// One node, as it described itself.
#[derive(Clone, Debug)]
pub struct NodeRecord {
    /// Its last hello.
    pub hello: Option<v1::Hello>,
    /// When it last said anything, milliseconds since 1970 by the hub's clock; 0 when not since the hub started.
    pub heard_ms: u64,
    /// Its report stream.
    pub entries: BTreeMap<String, StoredEntry>,
    /// Lives of its report stream that are over. They are told apart, not ordered: a node that lost its store may have
    /// lost its clock too.
    pub retired: BTreeSet<u64>,
}

/// All nodes.
#[derive(Debug, Default)]
pub struct Inventory {
    nodes: BTreeMap<NodeId, NodeRecord>,
}

impl Inventory {
    /// An inventory with what the store held.
    #[must_use]
    pub fn new(
        entries: BTreeMap<NodeId, BTreeMap<String, StoredEntry>>,
        retired: BTreeMap<NodeId, BTreeSet<u64>>,
    ) -> Self {
        let mut inventory = Self::default();
        for (node, entries) in entries {
            inventory.record(&node).entries = entries;
        }
        for (node, retired) in retired {
            inventory.record(&node).retired = retired;
        }
        inventory
    }

    /// All nodes.
    #[must_use]
    pub fn nodes(&self) -> &BTreeMap<NodeId, NodeRecord> {
        &self.nodes
    }

    fn record(&mut self, node: &NodeId) -> &mut NodeRecord {
        let empty = || NodeRecord {
            hello: None,
            heard_ms: 0,
            entries: BTreeMap::new(),
            retired: BTreeSet::new(),
        };
        self.nodes.entry(node.clone()).or_insert_with(empty)
    }

    /// A node said hello; true when something that placement looks at has changed.
    pub fn on_hello(&mut self, node: &NodeId, hello: v1::Hello, wall_ms: u64) -> bool {
        let record = self.record(node);
        record.heard_ms = wall_ms;
        let same = record.hello.as_ref().is_some_and(|old| {
            old.site == hello.site
                && old.labels == hello.labels
                && old.capabilities == hello.capabilities
                && old.role == hello.role
                && old.box_key == hello.box_key
        });
        record.hello = Some(hello);
        !same
    }

    /// Takes the entries of a report that are newer than what is held, each once. `None` when the report continues a
    /// life of the stream whose beginning is not here.
    pub fn on_report(
        &mut self,
        node: &NodeId,
        report: &v1::Report,
        wall_ms: u64,
        ops: &mut Vec<Op>,
    ) -> Option<Vec<v1::Entry>> {
        let record = self.record(node);
        record.heard_ms = wall_ms;
        if record.retired.contains(&report.incarnation) {
            return Some(Vec::new());
        }
        let held = record.entries.values().map(|e| e.incarnation).max();
        if let Some(held) = held.filter(|h| *h != report.incarnation) {
            // Another life of the stream counts when it is told from its beginning.
            report.all_keys.as_ref()?;
            record.entries.clear();
            record.retired.insert(held);
            ops.push(Op::ClearEntries {
                node: node.clone(),
                retired: held,
            });
        }
        if let Some(all) = &report.all_keys {
            for (key, held) in &mut record.entries {
                let void = !all.contains(key) && held.entry.seq <= report.to && held.entry.body != Body::Unknown;
                if void {
                    held.entry.body = Body::Unknown;
                    ops.push(Op::VoidEntry {
                        node: node.clone(),
                        key: key.clone(),
                    });
                }
            }
        }
        let mut fresh = Vec::new();
        for entry in &report.entries {
            let held = record.entries.get(&entry.key);
            if held.is_some_and(|h| h.entry.seq >= entry.seq) {
                continue;
            }
            let stored = StoredEntry {
                incarnation: report.incarnation,
                received_ms: wall_ms,
                entry: entry.clone(),
            };
            record.entries.insert(entry.key.clone(), stored.clone());
            ops.push(Op::PutEntry {
                node: node.clone(),
                stored,
            });
            fresh.push(entry.clone());
        }
        Some(fresh)
    }
}
