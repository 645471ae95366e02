//! The one thread that holds a connection.

use std::os::raw::c_int;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior, ffi};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

/// Calls that wait for the thread; one more waits to be taken.
const QUEUE: usize = 16;
/// Each page in the write-ahead log has a header.
const FRAME_HEADER_BYTES: u64 = 24;

/// Why a call did not succeed. Nothing of it was committed, except where [`CallError::Sql`] says else.
#[derive(Debug, Error)]
pub enum CallError {
    /// The disk, or the database's own bound, is full.
    #[error("the store is full: {0}")]
    Full(#[source] rusqlite::Error),
    /// The database is damaged.
    #[error("the store is damaged: {0}")]
    Corrupt(#[source] rusqlite::Error),
    /// The thread has ended.
    #[error("the store is closed")]
    Gone,
    /// Anything else.
    #[error("the store: {0}")]
    Sql(#[source] rusqlite::Error),
}

impl From<rusqlite::Error> for CallError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => CallError::Full(error),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => CallError::Corrupt(error),
            _ => CallError::Sql(error),
        }
    }
}

/// What was written so far.
#[derive(Debug, Default)]
pub struct Counters {
    commits: AtomicU64,
    bytes: AtomicU64,
}

impl Counters {
    /// Calls that changed something.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Bytes written to the log. Folding the log into the database writes some of them a second time.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// The work, which yields the giving of its answer: what was written is counted before anybody knows of it.
type Job = Box<dyn FnOnce(&mut Connection) -> Answer + Send>;
type Answer = Box<dyn FnOnce()>;

/// A handle to the thread that owns a connection. The thread ends, after the calls it has taken, when the last handle
/// is dropped.
#[derive(Clone, Debug)]
pub struct Owner {
    jobs: mpsc::Sender<Job>,
    counters: Arc<Counters>,
}

impl Owner {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn spawn(connection: Connection) -> Result<Self, std::io::Error> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let counters = Arc::new(Counters::default());
        let counted = counters.clone();
        thread::Builder::new()
            .name("store".into())
            .spawn(move || run(connection, queue, &counted))?;
        Ok(Self { jobs, counters })
    }

    /// Runs `f` on the connection.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn call<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Connection) -> Result<R, rusqlite::Error> + Send + 'static,
    ) -> Result<R, CallError> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            let result = f(connection);
            // Whoever asked may have stopped waiting; the work was done all the same.
            Box::new(move || drop(answer.send(result)))
        });
        self.jobs.send(job).await.map_err(|_| CallError::Gone)?;
        Ok(answered.await.map_err(|_| CallError::Gone)??)
    }

    /// Runs `f` in one transaction and commits it; when anything fails nothing is changed.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn write<R: Send + 'static>(
        &self,
        f: impl FnOnce(&Transaction<'_>) -> Result<R, rusqlite::Error> + Send + 'static,
    ) -> Result<R, CallError> {
        self.call(move |connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let result = f(&transaction)?;
            transaction.commit()?;
            Ok(result)
        })
        .await
    }

    /// What was written so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}

fn run(mut connection: Connection, mut queue: mpsc::Receiver<Job>, counters: &Counters) {
    let page_bytes = connection
        .pragma_query_value(None, "page_size", |r| r.get::<_, u32>(0))
        .unwrap_or(4096);
    let mut written = pages_written(&connection);
    while let Some(job) = queue.blocking_recv() {
        let answer = job(&mut connection);
        let now = pages_written(&connection);
        if now != written {
            let pages = u64::from(now.wrapping_sub(written));
            counters.commits.fetch_add(1, Ordering::Relaxed);
            counters
                .bytes
                .fetch_add(pages * (u64::from(page_bytes) + FRAME_HEADER_BYTES), Ordering::Relaxed);
            written = now;
        }
        answer();
    }
    if let Err((_, error)) = connection.close() {
        tracing::warn!(%error, "the store was not closed cleanly; its log is read at the next start");
    }
}

/// Pages that this connection wrote since it was opened, wrapping.
fn pages_written(connection: &Connection) -> u32 {
    let (mut current, mut highest): (c_int, c_int) = (0, 0);
    // SAFETY: the handle is that of an open connection, which lives longer than the call and is used by no other
    // thread; both out-pointers are to live integers.
    let code = unsafe {
        ffi::sqlite3_db_status(
            connection.handle(),
            ffi::SQLITE_DBSTATUS_CACHE_WRITE,
            &mut current,
            &mut highest,
            0,
        )
    };
    if code == ffi::SQLITE_OK {
        current.cast_unsigned()
    } else {
        0
    }
}
