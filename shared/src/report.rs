//! A node's report stream: the newest entry of every subject, in sequence, until the parent has it.

use std::collections::BTreeMap;

use crate::hop::{AckEffect, Position, Sender};
use crate::limits;
use crate::wire::v1::{Body, Entry, Report, VERSION};
use serde::{Deserialize, Serialize};

/// A change to the stream that must be on disk before anything that depends on it is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum StreamOp {
    /// The newest entry of its key.
    Put(Entry),
    /// An entry that need not be kept.
    Delete(String),
    /// The parent holds everything up to here; the incarnation is the stream's own.
    Acked(Position),
}

/// A stream as its store holds it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StoredStream {
    /// The newest entry of each key.
    pub entries: Vec<Entry>,
    /// How far the parent has it.
    pub acked: Position,
}

impl StoredStream {
    /// Applies a change to an image in memory.
    pub fn apply(&mut self, op: &StreamOp) {
        match op {
            StreamOp::Put(entry) => {
                self.entries.retain(|e| e.key != entry.key);
                self.entries.push(entry.clone());
            }
            StreamOp::Delete(key) => self.entries.retain(|e| e.key != *key),
            StreamOp::Acked(position) => self.acked = *position,
        }
    }
}

/// Entries and how far the parent has them.
#[derive(Debug)]
pub struct Reporter {
    entries: BTreeMap<String, Entry>,
    by_seq: BTreeMap<u64, String>,
    next_seq: u64,
    refusals: u64,
    sender: Sender,
}

impl Reporter {
    /// A reporter with what the store held.
    #[must_use]
    pub fn new(stored: StoredStream) -> Self {
        let StoredStream { entries: stored, acked } = stored;
        let newest = stored.iter().map(|e| e.seq).max().unwrap_or(0).max(acked.seq);
        let refusals = stored.iter().filter(|e| matches!(e.body, Body::Refused { .. })).count() as u64;
        Self {
            by_seq: stored.iter().map(|e| (e.seq, e.key.clone())).collect(),
            entries: stored.into_iter().map(|e| (e.key.clone(), e)).collect(),
            next_seq: newest + 1,
            refusals,
            sender: Sender::new(acked.incarnation, acked.seq),
        }
    }

    /// The stream's incarnation.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.sender.incarnation()
    }

    /// The newest entry on a subject.
    #[must_use]
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// The workloads that the stream speaks of as being there.
    #[must_use]
    pub fn workloads(&self) -> Vec<(String, crate::ids::WorkloadId)> {
        let there = |e: &Entry| match &e.body {
            Body::Workload(w) => Some((e.key.clone(), w.id.clone())),
            _ => None,
        };
        self.entries.values().filter_map(there).collect()
    }

    /// The keys of alarms that were raised and are not over.
    #[must_use]
    pub fn alarms(&self) -> Vec<String> {
        let raised = |e: &&Entry| matches!(e.body, Body::Alarm(_));
        self.entries.values().filter(raised).map(|e| e.key.clone()).collect()
    }

    /// Says something on a subject, unless the same was said last.
    pub fn say(&mut self, key: &str, at_ms: u64, body: Body, ops: &mut Vec<StreamOp>) {
        if self.entries.get(key).is_some_and(|e| e.body == body) {
            return;
        }
        let entry = Entry {
            seq: self.next_seq,
            key: key.to_owned(),
            at_ms,
            body,
        };
        self.next_seq += 1;
        if let Some(old) = self.entries.insert(key.to_owned(), entry.clone()) {
            self.by_seq.remove(&old.seq);
        }
        self.by_seq.insert(entry.seq, key.to_owned());
        ops.push(StreamOp::Put(entry));
    }

    /// Says that a twin was refused. The last [`limits::REFUSALS_KEPT`] are kept; the same refusal is said once.
    pub fn refuse(&mut self, at_ms: u64, body: Body, ops: &mut Vec<StreamOp>) {
        if self.entries.values().any(|e| e.body == body) {
            return;
        }
        let key = format!("refused/{}", self.refusals % limits::REFUSALS_KEPT);
        self.refusals += 1;
        self.say(&key, at_ms, body, ops);
    }

    /// The link is up or down.
    pub fn set_connected(&mut self, up: bool) {
        if up {
            self.sender.connected()
        } else {
            self.sender.disconnected()
        }
    }

    /// The parent acknowledged; `welcome` when it answered a hello.
    pub fn on_ack(&mut self, ack: Position, welcome: bool, mono_ms: u64, ops: &mut Vec<StreamOp>) {
        match self.sender.on_ack(ack, welcome, mono_ms) {
            AckEffect::Nothing => return,
            AckEffect::Advanced(seq) => self.drop_tombstones(seq, ops),
            AckEffect::Regressed | AckEffect::Outlived { .. } => {}
        }
        ops.push(StreamOp::Acked(Position {
            incarnation: self.sender.incarnation(),
            seq: self.sender.acked(),
        }));
    }

    /// A workload that is gone, or an alarm that is over, need not be mentioned once the parent knows.
    fn drop_tombstones(&mut self, acked: u64, ops: &mut Vec<StreamOp>) {
        let gone = |e: &&Entry| e.seq <= acked && matches!(e.body, Body::Gone { .. } | Body::Over);
        let keys: Vec<String> = self.entries.values().filter(gone).map(|e| e.key.clone()).collect();
        for key in keys {
            if let Some(e) = self.entries.remove(&key) {
                self.by_seq.remove(&e.seq);
            }
            ops.push(StreamOp::Delete(key));
        }
    }

    /// The next message to send.
    pub fn poll(&mut self, mono_ms: u64) -> Option<Report> {
        let newest = self.by_seq.last_key_value().map_or(0, |(s, _)| *s);
        let from = self.sender.ready(newest)?;
        let mut entries = Vec::new();
        let mut bytes = 0;
        for key in self.by_seq.range(from + 1..).map(|(_, k)| k) {
            let Some(entry) = self.entries.get(key) else { continue };
            bytes += crate::wire::encode(entry).map_or(0, |b| b.len());
            if !entries.is_empty() && (bytes > limits::BATCH_BYTES || entries.len() >= limits::REPORT_ENTRIES) {
                break;
            }
            entries.push(entry.clone());
        }
        let to = entries.last().map_or(newest, |e| e.seq);
        self.sender.sent(to, mono_ms);
        let all_keys = (from == 0).then(|| self.entries.keys().cloned().collect());
        Some(Report {
            v: VERSION,
            incarnation: self.sender.incarnation(),
            from,
            to,
            entries,
            all_keys,
        })
    }

    /// When something is to be sent again.
    #[must_use]
    pub fn timeout(&self) -> Option<u64> {
        self.sender.timeout()
    }

    /// Goes back to what is not acknowledged, when it is time.
    pub fn on_timeout(&mut self, mono_ms: u64) {
        self.sender.on_timeout(mono_ms);
    }
}
