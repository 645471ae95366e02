//! The artifacts that pass through: written by a thread of their own, in order; read and signed beside the event loop.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use std::{fs, io, thread};

use bytes::Bytes;
use cnova_broker::Publisher;
use cnova_gateway_core::Event;
use cnova_shared::ids::{Digest, NodeId};
use cnova_shared::limits;
use cnova_shared::topics::Kind;
use cnova_shared::wire::v1;
use cnova_store::{AppendError, ArtifactError, Artifacts};
use tokio::sync::mpsc;

use crate::seal::Sealer;

/// Pieces that wait to be written; the event loop waits for room, and with it the parent.
const APPENDS_MAX: usize = 8;
/// Pieces that wait to be read; a child whose request is dropped asks again.
const SERVES_MAX: usize = 2 * limits::CHUNK_WAITERS;

/// Why there is no cache.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The folder cannot be used.
    #[error(transparent)]
    Folder(#[from] ArtifactError),
    /// The system gave no thread for it.
    #[error("no thread for the artifact cache: {0}; free some memory and start again")]
    Thread(#[source] io::Error),
}

/// Whole artifacts with their sizes, and partial files with theirs.
pub type Inventory = (BTreeMap<Digest, u64>, BTreeMap<Digest, u64>);

/// One piece to be sent to a child.
#[derive(Clone, Debug)]
pub struct Piece {
    /// The child.
    pub child: NodeId,
    /// The artifact.
    pub digest: Digest,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

struct Append {
    digest: Digest,
    offset: u64,
    data: Vec<u8>,
    complete: bool,
}

/// The cache, open.
pub struct Cache {
    shelf: Arc<Shelf>,
    appends: mpsc::Sender<Append>,
    serving: Arc<AtomicUsize>,
}

/// The folder, and what is known of its contents since the start.
struct Shelf {
    artifacts: Artifacts,
    /// Artifacts whose digest held in this run: a disk may have changed one since it was written.
    checked: Mutex<BTreeSet<Digest>>,
    /// When each was last asked for, counted in requests.
    used: Mutex<(u64, BTreeMap<Digest, u64>)>,
    // One event for each piece written or not found, and those are bounded: it cannot grow without end.
    events: mpsc::UnboundedSender<Event>,
}

impl Cache {
    /// Opens the cache in `folder` and starts its thread. What happened to artifacts comes out of the receiver.
    ///
    /// # Errors
    /// [`CacheError`], which says what to do.
    pub fn open(folder: &Path, max_bytes: u64) -> Result<(Self, mpsc::UnboundedReceiver<Event>), CacheError> {
        let (events, receiver) = mpsc::unbounded_channel();
        let shelf = Arc::new(Shelf {
            artifacts: Artifacts::open(folder, max_bytes)?,
            checked: Mutex::default(),
            used: Mutex::default(),
            events,
        });
        let (appends, mut queue) = mpsc::channel::<Append>(APPENDS_MAX);
        let written = shelf.clone();
        let work = move || {
            while let Some(append) = queue.blocking_recv() {
                written.append(&append);
            }
        };
        thread::Builder::new()
            .name("cache".into())
            .spawn(work)
            .map_err(CacheError::Thread)?;
        Ok((
            Self {
                shelf,
                appends,
                serving: Arc::default(),
            },
            receiver,
        ))
    }

    /// What is there.
    ///
    /// # Errors
    /// [`ArtifactError`] when the folder cannot be read.
    pub fn inventory(&self) -> Result<Inventory, ArtifactError> {
        let (whole, partial) = self.shelf.artifacts.scan()?;
        let size = |d: &Digest| fs::metadata(self.shelf.artifacts.path(d)).map_or(0, |m| m.len());
        Ok((
            whole
                .into_iter()
                .map(|d| (d, size(&d)))
                .filter(|(_, s)| *s > 0)
                .collect(),
            partial,
        ))
    }

    /// Has a piece written; waits for room in the queue.
    pub async fn append(&self, digest: Digest, offset: u64, data: Vec<u8>, complete: bool) {
        // The thread ends only with this handle.
        let _ = self
            .appends
            .send(Append {
                digest,
                offset,
                data,
                complete,
            })
            .await;
    }

    /// Has a piece read, signed and sent to a child, or word that it is not there.
    pub fn serve(&self, piece: Piece, sealer: Sealer, publisher: Publisher, now_s: u64) {
        if self.serving.fetch_add(1, Ordering::Relaxed) >= SERVES_MAX {
            self.serving.fetch_sub(1, Ordering::Relaxed);
            tracing::debug!(child = %piece.child, digest = %piece.digest, "too many chunks wait to be read");
            return;
        }
        let (shelf, serving) = (self.shelf.clone(), self.serving.clone());
        tokio::task::spawn_blocking(move || {
            let chunk = shelf.read(&piece);
            send_chunk(&piece.child, &chunk, &sealer, &publisher, now_s);
            serving.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// Signs a chunk and sends it; one that cannot go is asked for again.
pub fn send_chunk(child: &NodeId, chunk: &v1::Chunk, sealer: &Sealer, publisher: &Publisher, now_s: u64) {
    match sealer.chunk(child, chunk, now_s) {
        Ok(bytes) => match publisher.publish(child.as_str(), Kind::Chunk.as_str(), Bytes::from(bytes)) {
            Ok(()) => tracing::debug!(%child, digest = %chunk.digest, offset = chunk.offset, "chunk sent"),
            Err(error) => tracing::debug!(%child, digest = %chunk.digest, %error, "chunk not sent"),
        },
        Err(error) => tracing::error!(%child, digest = %chunk.digest, %error, "chunk not signed"),
    }
}

impl Shelf {
    fn append(&self, append: &Append) {
        let digest = append.digest;
        let written = self.append_with_room(append).map_err(|e| e.to_string());
        let done = match written {
            Ok(()) if append.complete => self.finish(digest),
            Ok(()) => return,
            Err(detail) => Event::ArtifactFailed { digest, detail },
        };
        let _ = self.events.send(done);
    }

    fn finish(&self, digest: Digest) -> Event {
        let size = self
            .artifacts
            .finish(&digest)
            .map_err(|e| e.to_string())
            .and_then(|()| {
                let path = self.artifacts.path(&digest);
                fs::metadata(&path)
                    .map(|m| m.len())
                    .map_err(|e| format!("cannot look at {}: {e}", path.display()))
            });
        match size {
            Ok(size) => {
                lock(&self.checked).insert(digest);
                Event::ArtifactStored { digest, size }
            }
            Err(detail) => Event::ArtifactFailed { digest, detail },
        }
    }

    /// Makes room by removing what was asked for least recently, one artifact at a time.
    fn append_with_room(&self, append: &Append) -> Result<(), AppendError> {
        loop {
            match self.artifacts.append(&append.digest, append.offset, &append.data) {
                Err(AppendError::Artifact(error @ ArtifactError::NoRoom { .. })) => {
                    let Some(victim) = self.make_room(&append.digest)? else {
                        return Err(error.into());
                    };
                    tracing::info!(digest = %victim, "removed from the cache to make room");
                    self.gone(victim, "it was removed from the cache to make room");
                }
                other => return other,
            }
        }
    }

    /// Removes the artifact that was asked for least recently; when there is none, a partial file, but not `writing`.
    fn make_room(&self, writing: &Digest) -> Result<Option<Digest>, ArtifactError> {
        let (whole, mut partial) = self.artifacts.scan()?;
        // What was not asked for in this run goes first, in the order in which it came.
        let age = |d: &&Digest| {
            let came = fs::metadata(self.artifacts.path(d)).and_then(|m| m.modified());
            (
                lock(&self.used).1.get(d).copied().unwrap_or(0),
                came.unwrap_or(SystemTime::UNIX_EPOCH),
            )
        };
        if let Some(victim) = whole.iter().min_by_key(age).copied() {
            self.artifacts.remove(&victim)?;
            return Ok(Some(victim));
        }
        let victim = partial.keys().find(|d| *d != writing).copied();
        if let Some(victim) = victim {
            partial.remove(&victim);
            let kept: Vec<Digest> = partial.into_keys().collect();
            self.artifacts.keep(&kept)?;
        }
        Ok(victim)
    }

    /// The piece; or why not, and then the core is told that the artifact is not there.
    fn read(&self, piece: &Piece) -> v1::Chunk {
        let Piece {
            digest, offset, length, ..
        } = piece;
        self.touch(*digest);
        let read = self
            .check(digest)
            .and_then(|()| self.artifacts.read(digest, *offset, *length).map_err(|e| e.to_string()));
        let (data, total, missing) = match read {
            Ok((data, total)) if !data.is_empty() => (data, total, None),
            Ok((_, total)) => (Vec::new(), total, Some(format!("it has {total} bytes"))),
            Err(why) => {
                tracing::warn!(%digest, why, "a cached artifact cannot be read");
                self.gone(*digest, &why);
                (Vec::new(), 0, Some(limits::clip_to(&why, 300)))
            }
        };
        v1::Chunk {
            v: v1::VERSION,
            digest: *digest,
            offset: *offset,
            total,
            data,
            missing,
        }
    }

    /// Checks each artifact once in a run before its first piece is given away.
    fn check(&self, digest: &Digest) -> Result<(), String> {
        if lock(&self.checked).contains(digest) {
            return Ok(());
        }
        if self.artifacts.verify(digest).map_err(|e| e.to_string())? {
            lock(&self.checked).insert(*digest);
            return Ok(());
        }
        self.artifacts.remove(digest).map_err(|e| e.to_string())?;
        Err("its bytes changed on the gateway's disk; it was removed".into())
    }

    fn gone(&self, digest: Digest, detail: &str) {
        self.forget(&digest);
        let _ = self.events.send(Event::ArtifactFailed {
            digest,
            detail: detail.to_owned(),
        });
    }

    fn forget(&self, digest: &Digest) {
        lock(&self.checked).remove(digest);
        lock(&self.used).1.remove(digest);
    }

    fn touch(&self, digest: Digest) {
        let mut used = lock(&self.used);
        used.0 += 1;
        let now = used.0;
        used.1.insert(digest, now);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_BYTES: u64 = 1000;

    struct Rig {
        cache: Cache,
        events: mpsc::UnboundedReceiver<Event>,
        _folder: tempfile::TempDir,
    }

    fn rig() -> Rig {
        let folder = tempfile::tempdir().unwrap();
        let (cache, events) = Cache::open(folder.path(), MAX_BYTES).unwrap();
        Rig {
            cache,
            events,
            _folder: folder,
        }
    }

    impl Rig {
        async fn store(&mut self, fill: u8, len: usize) -> Digest {
            let data = vec![fill; len];
            let digest = Digest::of(&data);
            self.cache.append(digest, 0, data[..len / 2].to_vec(), false).await;
            self.cache
                .append(digest, len as u64 / 2, data[len / 2..].to_vec(), true)
                .await;
            digest
        }

        async fn event(&mut self) -> (Digest, Result<u64, String>) {
            match self.events.recv().await.unwrap() {
                Event::ArtifactStored { digest, size } => (digest, Ok(size)),
                Event::ArtifactFailed { digest, detail } => (digest, Err(detail)),
                other => panic!("{other:?}"),
            }
        }

        fn read(&self, digest: Digest) -> v1::Chunk {
            let child = NodeId::new("a").unwrap();
            self.cache.shelf.read(&Piece {
                child,
                digest,
                offset: 0,
                length: 10,
            })
        }
    }

    #[tokio::test]
    async fn what_was_asked_for_least_recently_makes_room() {
        let mut rig = rig();
        let one = rig.store(1, 400).await;
        assert_eq!(rig.event().await, (one, Ok(400)));
        let two = rig.store(2, 400).await;
        assert_eq!(rig.event().await, (two, Ok(400)));
        assert_eq!(rig.read(one).data, [1; 10]);
        let three = rig.store(3, 500).await;
        assert_eq!(rig.event().await.0, two, "one was asked for, two was not");
        assert_eq!(rig.event().await, (three, Ok(500)));
        assert_eq!(
            rig.cache.inventory().unwrap().0,
            BTreeMap::from([(one, 400), (three, 500)])
        );
        assert!(rig.read(two).missing.is_some());
        assert!(rig.event().await.1.is_err(), "and the core is told");
    }

    #[tokio::test]
    async fn what_is_larger_than_the_cache_fails() {
        let mut rig = rig();
        let large = rig.store(1, 1200).await;
        let (digest, why) = rig.event().await;
        assert!(digest == large && why.unwrap_err().contains("no room"));
    }

    #[tokio::test]
    async fn bytes_that_changed_on_the_disk_are_never_given_away() {
        let mut rig = rig();
        let digest = rig.store(1, 400).await;
        assert_eq!(rig.event().await, (digest, Ok(400)));
        let path = rig.cache.shelf.artifacts.path(&digest);
        fs::remove_file(&path).unwrap();
        fs::write(&path, [9; 400]).unwrap();
        // As after a restart.
        rig.cache.shelf.forget(&digest);
        let chunk = rig.read(digest);
        assert!(chunk.data.is_empty() && chunk.missing.unwrap().contains("changed"));
        assert!(rig.event().await.1.is_err());
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn another_digest_than_asked_for_is_thrown_away() {
        let mut rig = rig();
        let digest = Digest::of(b"something else");
        rig.cache.append(digest, 0, vec![1; 10], true).await;
        let (failed, why) = rig.event().await;
        assert!(failed == digest && why.unwrap_err().contains("digest"));
        assert!(rig.cache.inventory().unwrap().1.is_empty());
    }
}
