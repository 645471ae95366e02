//! Artifacts that pass through: each is fetched once from above, whoever of the children asks for it.

use std::collections::BTreeMap;

use cnova_shared::ids::{Digest, NodeId};
use cnova_shared::limits;
use cnova_shared::transfer::{ChunkEffect, Fetches, Want};
use cnova_shared::wire::v1;

use crate::api::Action;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Waiter {
    child: NodeId,
    offset: u64,
    length: u64,
}

/// What is cached, what is being fetched, who waits for it.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    whole: BTreeMap<Digest, u64>,
    partial: BTreeMap<Digest, u64>,
    fetches: Fetches,
    waiters: BTreeMap<Digest, Vec<Waiter>>,
}

impl Cache {
    pub(crate) fn new(whole: BTreeMap<Digest, u64>, partial: BTreeMap<Digest, u64>) -> Self {
        Self {
            whole,
            partial,
            ..Self::default()
        }
    }

    /// A child asks: serve it, or let it wait and fetch.
    pub(crate) fn wanted(&mut self, child: NodeId, r: &v1::ChunkRequest) -> Option<Action> {
        let waiter = Waiter {
            child,
            offset: r.offset,
            length: r.length,
        };
        if let Some(size) = self.whole.get(&r.digest) {
            return Some(serve(r.digest, &waiter, *size));
        }
        let have = self.partial.get(&r.digest).copied().unwrap_or(0);
        self.fetches.want(r.digest, None, have);
        let waiters = self.waiters.entry(r.digest).or_default();
        // A child has one request under way for an artifact; a newer one replaces it.
        waiters.retain(|w| w.child != waiter.child);
        if waiters.len() < limits::CHUNK_WAITERS {
            waiters.push(waiter);
        }
        None
    }

    pub(crate) fn poll(&mut self, mono_ms: u64) -> Option<Want> {
        self.fetches.poll(mono_ms)
    }

    pub(crate) fn timeout(&self) -> Option<u64> {
        self.fetches.timeout()
    }

    pub(crate) fn reconnected(&mut self) {
        self.fetches.reconnected();
    }

    /// A chunk came from above.
    pub(crate) fn on_chunk(&mut self, c: v1::Chunk) -> Vec<Action> {
        match self
            .fetches
            .on_chunk(&c.digest, c.offset, c.total, c.data.len(), c.missing.as_deref())
        {
            ChunkEffect::Ignore => Vec::new(),
            ChunkEffect::Append { offset, complete } => {
                vec![Action::AppendChunk {
                    digest: c.digest,
                    offset,
                    data: c.data,
                    complete,
                }]
            }
            ChunkEffect::Missing(_) => {
                let waiters = self.waiters.remove(&c.digest).unwrap_or_default();
                waiters
                    .into_iter()
                    .map(|w| Action::RefuseChunk {
                        child: w.child,
                        chunk: c.clone(),
                    })
                    .collect()
            }
        }
    }

    /// Only whole, checked artifacts are handed on: a child never gets bytes that this gateway could not verify.
    pub(crate) fn stored(&mut self, digest: Digest, size: u64) -> Vec<Action> {
        self.fetches.finished(&digest);
        self.partial.remove(&digest);
        self.whole.insert(digest, size);
        let waiters = self.waiters.remove(&digest).unwrap_or_default();
        waiters.iter().map(|w| serve(digest, w, size)).collect()
    }

    pub(crate) fn failed(&mut self, digest: &Digest, why: &str, mono_ms: u64) {
        // Also one that was whole: it was evicted, deleted or damaged, and is fetched anew when it is next wanted.
        self.whole.remove(digest);
        self.partial.remove(digest);
        self.fetches.failed(digest, why, mono_ms);
    }
}

fn serve(digest: Digest, w: &Waiter, size: u64) -> Action {
    if w.offset >= size {
        let missing = Some(format!("it has {size} bytes, byte {} was asked for", w.offset));
        let chunk = v1::Chunk {
            v: v1::VERSION,
            digest,
            offset: w.offset,
            total: size,
            data: Vec::new(),
            missing,
        };
        return Action::RefuseChunk {
            child: w.child.clone(),
            chunk,
        };
    }
    let length = w.length.min(size - w.offset);
    Action::ServeChunk {
        child: w.child.clone(),
        digest,
        offset: w.offset,
        length,
    }
}
