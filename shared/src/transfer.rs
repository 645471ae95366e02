//! Fetching artifacts from a parent, chunk by chunk, with resume: the part that agents and gateways share.

use std::collections::BTreeMap;

use crate::ids::Digest;
use crate::limits;
use crate::time::Backoff;

/// A request to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// The artifact.
    pub digest: Digest,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// What a chunk meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChunkEffect {
    /// Not asked for, or not what was asked for.
    Ignore,
    /// Append it to the partial file; `complete` when it was the last.
    Append {
        /// Where it goes.
        offset: u64,
        /// Whether the file now has its whole size and its digest must be checked.
        complete: bool,
    },
    /// The parent cannot give it, and says why; it is asked again later.
    Missing(String),
}

#[derive(Clone, Debug)]
struct Fetch {
    total: Option<u64>,
    offset: u64,
    asked_until: Option<u64>,
    checking: bool,
    problem: Option<String>,
    backoff: Backoff,
}

/// All artifacts being fetched.
#[derive(Clone, Debug, Default)]
pub struct Fetches {
    active: BTreeMap<Digest, Fetch>,
}

impl Fetches {
    /// Begins to fetch, `have` bytes being in the partial file already. Nothing happens when it is being fetched.
    pub fn want(&mut self, digest: Digest, total: Option<u64>, have: u64) {
        self.active.entry(digest).or_insert_with(|| Fetch {
            total,
            offset: have,
            asked_until: None,
            checking: false,
            problem: None,
            backoff: Backoff::default(),
        });
    }

    /// Whether this artifact is being fetched.
    #[must_use]
    pub fn contains(&self, digest: &Digest) -> bool {
        self.active.contains_key(digest)
    }

    /// Bytes held of an artifact that is being fetched.
    #[must_use]
    pub fn held(&self, digest: &Digest) -> Option<u64> {
        self.active.get(digest).map(|f| f.offset)
    }

    /// The whole size of an artifact that is being fetched, when it is known.
    #[must_use]
    pub fn total(&self, digest: &Digest) -> Option<u64> {
        self.active.get(digest).and_then(|f| f.total)
    }

    /// Why an artifact does not come.
    #[must_use]
    pub fn problem(&self, digest: &Digest) -> Option<&str> {
        self.active.get(digest).and_then(|f| f.problem.as_deref())
    }

    /// Gives up everything that `keep` refuses.
    pub fn retain(&mut self, keep: impl Fn(&Digest) -> bool) {
        self.active.retain(|d, _| keep(d));
    }

    /// The link is new: whatever was asked for on the old one is asked again at once.
    pub fn reconnected(&mut self) {
        for f in self.active.values_mut() {
            f.asked_until = None;
            f.backoff.reset();
        }
    }

    /// The next request to make at `mono_ms`; it is then in flight until answered or timed out.
    pub fn poll(&mut self, mono_ms: u64) -> Option<Want> {
        let (digest, fetch) = self
            .active
            .iter_mut()
            .take(limits::FETCHES_AT_ONCE)
            .find(|(_, f)| !f.checking && f.asked_until.is_none_or(|t| t <= mono_ms))?;
        let left = fetch
            .total
            .map_or(limits::CHUNK_BYTES, |t| t.saturating_sub(fetch.offset));
        fetch.asked_until = Some(mono_ms + fetch.backoff.next_pause());
        // A partial file of the full size was cut off before its digest was checked; ask for its last byte again.
        let (offset, length) = if left == 0 {
            (fetch.offset - 1, 1)
        } else {
            (fetch.offset, left)
        };
        Some(Want {
            digest: *digest,
            offset,
            length: length.min(limits::CHUNK_BYTES),
        })
    }

    /// When [`Fetches::poll`] has something to say again.
    #[must_use]
    pub fn timeout(&self) -> Option<u64> {
        let active = self.active.values().take(limits::FETCHES_AT_ONCE);
        active.filter(|f| !f.checking).map(|f| f.asked_until.unwrap_or(0)).min()
    }

    /// A chunk came.
    pub fn on_chunk(
        &mut self,
        digest: &Digest,
        offset: u64,
        total: u64,
        len: usize,
        missing: Option<&str>,
    ) -> ChunkEffect {
        let Some(fetch) = self.active.get_mut(digest) else {
            return ChunkEffect::Ignore;
        };
        if let Some(why) = missing {
            let is_size = fetch.total.is_none() && (1..=limits::ARTIFACT_BYTES).contains(&total);
            if is_size && fetch.offset >= total {
                // All of it is here, and was cut off before its digest was checked: who did not know its size asked beyond
                // its end, and knows it now. Longer than that, it is none of its own.
                fetch.total = Some(total);
                fetch.offset = if fetch.offset > total { 0 } else { total };
                fetch.asked_until = None;
                return ChunkEffect::Ignore;
            }
            fetch.problem = Some(limits::clip_to(why, 300));
            return ChunkEffect::Missing(why.to_owned());
        }
        let len = len as u64;
        let end = offset.saturating_add(len);
        let plausible = total > 0
            && total <= limits::ARTIFACT_BYTES
            && fetch.total.is_none_or(|t| t == total)
            && len > 0
            && len <= limits::CHUNK_BYTES
            && end <= total;
        let wanted = offset == fetch.offset || (offset + 1 == fetch.offset && end == fetch.offset);
        if fetch.checking || !plausible || !wanted {
            return ChunkEffect::Ignore;
        }
        fetch.total = Some(total);
        fetch.offset = end;
        fetch.asked_until = None;
        fetch.problem = None;
        fetch.backoff.reset();
        fetch.checking = end == total;
        ChunkEffect::Append {
            offset,
            complete: fetch.checking,
        }
    }

    /// The digest matched: done.
    pub fn finished(&mut self, digest: &Digest) {
        self.active.remove(digest);
    }

    /// The digest did not match, or the file could not be written: from the beginning, after a pause.
    pub fn failed(&mut self, digest: &Digest, why: &str, mono_ms: u64) {
        if let Some(fetch) = self.active.get_mut(digest) {
            fetch.offset = 0;
            fetch.checking = false;
            fetch.problem = Some(limits::clip_to(why, 300));
            fetch.asked_until = Some(mono_ms + fetch.backoff.next_pause());
        }
    }
}
