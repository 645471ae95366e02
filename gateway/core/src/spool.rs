//! What descendants said, unchanged, until the parent has it. Coalesced: a message whose every subject has been spoken
//! of anew is dropped. Bounded: a node that talks into a closed door loses its oldest words, and that is counted.

use std::collections::{BTreeMap, BTreeSet};

use cnova_shared::hop::{AckEffect, Position, Sender};
use cnova_shared::ids::NodeId;
use cnova_shared::limits;
use cnova_shared::wire::v1::{Relay, RelayItem, VERSION};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// One spooled message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Its author.
    pub node: NodeId,
    /// Its kind's name.
    pub kind: String,
    /// The subjects that it speaks of.
    pub keys: BTreeSet<String>,
    /// The author's signed bytes.
    pub bytes: Vec<u8>,
}

/// A change that must be on disk before the message is acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SpoolOp {
    /// A message.
    Put {
        /// Its place.
        seq: u64,
        /// It.
        item: Item,
    },
    /// A message that need not be kept.
    Delete(u64),
    /// The parent holds everything up to here.
    Acked(Position),
}

/// A spool as its store holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredSpool {
    /// Messages by place.
    pub items: BTreeMap<u64, Item>,
    /// How far the parent has it. The incarnation is the spool's own.
    pub acked: Position,
}

impl StoredSpool {
    /// Applies a change to an image in memory.
    pub fn apply(&mut self, op: &SpoolOp) {
        match op {
            SpoolOp::Put { seq, item } => {
                self.items.insert(*seq, item.clone());
            }
            SpoolOp::Delete(seq) => {
                self.items.remove(seq);
            }
            SpoolOp::Acked(position) => self.acked = *position,
        }
    }
}

/// The spool.
#[derive(Debug)]
pub struct Spool {
    items: BTreeMap<u64, Item>,
    /// Subjects of each message that no newer message of its author speaks of.
    current: BTreeMap<u64, BTreeSet<String>>,
    per_node: BTreeMap<NodeId, BTreeSet<u64>>,
    next_seq: u64,
    dropped: u64,
    sender: Sender,
}

impl Spool {
    /// A spool with what the store held.
    #[must_use]
    pub fn new(stored: StoredSpool) -> Self {
        let newest = stored
            .items
            .last_key_value()
            .map_or(0, |(s, _)| *s)
            .max(stored.acked.seq);
        let mut spool = Self {
            items: BTreeMap::new(),
            current: BTreeMap::new(),
            per_node: BTreeMap::new(),
            next_seq: newest + 1,
            dropped: 0,
            sender: Sender::new(stored.acked.incarnation, stored.acked.seq),
        };
        for (seq, item) in stored.items {
            spool.insert(seq, item, &mut Vec::new());
        }
        spool
    }

    /// The spool's incarnation.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.sender.incarnation()
    }

    /// How far the parent has it.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.sender.acked()
    }

    /// How many messages wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// How many messages were dropped because their node had too many waiting.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Adds a message.
    pub fn push(&mut self, item: Item, ops: &mut Vec<SpoolOp>) {
        let seq = self.next_seq;
        self.next_seq += 1;
        ops.push(SpoolOp::Put {
            seq,
            item: item.clone(),
        });
        self.insert(seq, item, ops);
    }

    fn insert(&mut self, seq: u64, item: Item, ops: &mut Vec<SpoolOp>) {
        let mut drop = Vec::new();
        let of_node = self.per_node.entry(item.node.clone()).or_default();
        for old in of_node.iter() {
            let Some(current) = self.current.get_mut(old) else {
                continue;
            };
            current.retain(|k| !item.keys.contains(k));
            if current.is_empty() {
                drop.push(*old);
            }
        }
        of_node.insert(seq);
        if of_node.len() - drop.len() > limits::SPOOL_PER_NODE
            && let Some(oldest) = of_node.iter().find(|s| !drop.contains(s))
        {
            drop.push(*oldest);
            self.dropped += 1;
        }
        self.current.insert(seq, item.keys.clone());
        self.items.insert(seq, item);
        for old in drop {
            self.remove(old);
            ops.push(SpoolOp::Delete(old));
        }
    }

    fn remove(&mut self, seq: u64) {
        self.current.remove(&seq);
        if let Some(item) = self.items.remove(&seq)
            && let Some(of_node) = self.per_node.get_mut(&item.node)
        {
            of_node.remove(&seq);
            if of_node.is_empty() {
                self.per_node.remove(&item.node);
            }
        }
    }

    /// The link is up or down.
    pub fn set_connected(&mut self, up: bool) {
        if up {
            self.sender.connected()
        } else {
            self.sender.disconnected()
        }
    }

    /// The parent acknowledged. What it has is dropped; true when it has less than it once said, so that everything
    /// must be gathered again.
    pub fn on_ack(&mut self, ack: Position, welcome: bool, mono_ms: u64, ops: &mut Vec<SpoolOp>) -> bool {
        let effect = self.sender.on_ack(ack, welcome, mono_ms);
        match effect {
            AckEffect::Nothing => return false,
            AckEffect::Advanced(seq) => {
                let safe: Vec<u64> = self.items.range(..=seq).map(|(s, _)| *s).collect();
                for seq in safe {
                    self.remove(seq);
                    ops.push(SpoolOp::Delete(seq));
                }
            }
            AckEffect::Regressed | AckEffect::Outlived { .. } => {}
        }
        ops.push(SpoolOp::Acked(Position {
            incarnation: self.sender.incarnation(),
            seq: self.sender.acked(),
        }));
        matches!(effect, AckEffect::Regressed | AckEffect::Outlived { .. })
    }

    /// The next message to send.
    pub fn poll(&mut self, mono_ms: u64) -> Option<Relay> {
        let newest = self.items.last_key_value().map_or(0, |(s, _)| *s);
        let from = self.sender.ready(newest)?;
        let (mut items, mut bytes, mut to) = (Vec::new(), 0, newest);
        for (seq, item) in self.items.range(from + 1..) {
            bytes += item.bytes.len();
            if !items.is_empty() && (bytes > limits::BATCH_BYTES || items.len() >= limits::RELAY_ITEMS) {
                break;
            }
            to = *seq;
            items.push(RelayItem {
                kind: item.kind.clone(),
                body: ByteBuf::from(item.bytes.clone()),
            });
        }
        self.sender.sent(to, mono_ms);
        Some(Relay {
            v: VERSION,
            incarnation: self.sender.incarnation(),
            from,
            to,
            items,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn item(node: &str, keys: &[&str], tag: u8) -> Item {
        Item {
            node: NodeId::new(node).unwrap(),
            kind: "report".into(),
            keys: keys.iter().map(|k| (*k).to_owned()).collect(),
            bytes: vec![tag],
        }
    }

    fn bodies(relay: &Relay) -> Vec<u8> {
        relay.items.iter().map(|i| i.body[0]).collect()
    }

    #[test]
    fn newest_word_on_each_subject_remains() {
        let mut spool = Spool::new(StoredSpool::default());
        let mut ops = Vec::new();
        spool.push(item("a", &["w/1", "w/2"], 1), &mut ops);
        spool.push(item("a", &["w/1"], 2), &mut ops);
        spool.push(item("b", &["w/1", "w/2"], 3), &mut ops);
        assert_eq!(spool.len(), 3, "message 1 is still the newest on w/2");
        spool.push(item("a", &["w/2"], 4), &mut ops);
        assert_eq!(spool.len(), 3);
        spool.set_connected(true);
        assert_eq!(bodies(&spool.poll(0).unwrap()), [2, 3, 4]);
        let mut stored = StoredSpool::default();
        ops.iter().for_each(|op| stored.apply(op));
        let mut again = Spool::new(stored);
        again.set_connected(true);
        assert_eq!(bodies(&again.poll(0).unwrap()), [2, 3, 4]);
    }

    #[test]
    fn a_node_cannot_fill_the_spool_of_others() {
        let mut spool = Spool::new(StoredSpool::default());
        let mut ops = Vec::new();
        spool.push(item("b", &["x"], 1), &mut ops);
        for i in 0..limits::SPOOL_PER_NODE + 10 {
            spool.push(item("a", &[&format!("k{i}")], 0), &mut ops);
        }
        assert_eq!((spool.len(), spool.dropped()), (limits::SPOOL_PER_NODE + 1, 10));
    }

    #[test]
    fn what_the_parent_has_is_dropped_and_sequence_goes_on() {
        let mut spool = Spool::new(StoredSpool::default());
        let mut ops = Vec::new();
        spool.push(item("a", &["x"], 1), &mut ops);
        spool.set_connected(true);
        let relay = spool.poll(0).unwrap();
        assert!(!spool.on_ack(
            Position {
                incarnation: relay.incarnation,
                seq: relay.to
            },
            false,
            1,
            &mut ops
        ));
        assert!(spool.is_empty());
        let mut stored = StoredSpool::default();
        ops.iter().for_each(|op| stored.apply(op));
        let mut again = Spool::new(stored);
        again.push(item("a", &["x"], 2), &mut ops);
        again.set_connected(true);
        let relay = again.poll(0).unwrap();
        assert_eq!((relay.from, relay.to), (1, 2));
        assert!(
            again.on_ack(Position::default(), true, 1, &mut ops),
            "a parent that knows nothing lost its store"
        );
    }
}
