//! From a process to its end: waiting for it to say that it runs, telling it to stop, ending it by force.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;

use cnova_ral::{Handle, State};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{KILL_MAX, Times};
use crate::health;

/// The state file is looked for this often even when the kernel tells of no new file.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// A runtime that prepares its workload is asked this often whether it still does.
const STILL_PREPARING: Duration = Duration::from_secs(2);
/// What a runtime gets to write its exit file when the grace has passed.
const GRACE_SLACK: Duration = Duration::from_millis(500);
const CALL_TIMEOUT: Duration = Duration::from_secs(1);

/// Hands a descriptor to the event loop.
pub(super) fn watchable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: `fd` is owned, so it is open and stays the same file until the `AsyncFd` is dropped; nobody takes it out
    // or closes it before.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// How signals reach the process.
pub(super) enum Target<'a> {
    /// It has not been reaped, so its pid is its own.
    Child(&'a mut Child),
    /// By its descriptor.
    Handle(Handle),
}

impl Target<'_> {
    fn terminate(&self) -> io::Result<()> {
        match self {
            Self::Child(child) => terminate(child),
            Self::Handle(handle) => handle.terminate(),
        }
    }

    fn kill(&mut self) -> io::Result<()> {
        match self {
            Self::Child(child) => child.kill(),
            Self::Handle(handle) => handle.kill(),
        }
    }
}

pub(super) async fn wait_for_state(dir: &Path, folder_events: OwnedFd) -> io::Result<State> {
    let events = watchable(folder_events)?;
    loop {
        if let Some(state) = cnova_ral::read_state(dir).map_err(io::Error::other)? {
            return Ok(state);
        }
        // Whatever happened in the folder, the file is looked for again; a lost event costs half a second.
        if let Ok(ready) = timeout(LOOK_AGAIN, events.readable()).await {
            let mut ready = ready?;
            let mut buffer = [0; 1024];
            while rustix::io::read(events.get_ref(), &mut buffer).is_ok_and(|n| n > 0) {}
            ready.clear_ready();
        }
    }
}

/// The grace, once the instance shall stop; for ever if it never shall.
pub(super) async fn asked_to_stop(stop: &mut watch::Receiver<Option<u64>>) -> u64 {
    let grace = stop.wait_for(Option::is_some).await.ok().and_then(|grace| *grace);
    match grace {
        Some(grace) => grace,
        None => std::future::pending().await,
    }
}

fn terminate(child: &Child) -> io::Result<()> {
    let pid = rustix::process::Pid::from_child(child);
    Ok(rustix::process::kill_process(pid, rustix::process::Signal::TERM)?)
}

/// Ends a child that has not said yet that it runs: no socket to ask on.
pub(super) async fn end_child(child: &mut Child, process: &AsyncFd<OwnedFd>, grace_ms: u64) -> io::Result<()> {
    if grace_ms > 0 {
        terminate(child)?;
        if timeout(Duration::from_millis(grace_ms), process.readable())
            .await
            .is_ok()
        {
            return Ok(());
        }
    }
    child.kill()?;
    let _ = timeout(KILL_MAX, process.readable()).await;
    Ok(())
}

/// Waits for the end of a running workload, and brings it about when told.
pub(super) async fn watch_to_end(
    dir: &Path,
    process: &AsyncFd<OwnedFd>,
    mut target: Target<'_>,
    stop: &mut watch::Receiver<Option<u64>>,
) -> io::Result<()> {
    let grace = tokio::select! {
        ended = process.readable() => return ended.map(|_| ()),
        grace = asked_to_stop(stop) => grace,
    };
    if !ask_to_stop(dir, grace).await {
        target.terminate()?;
    }
    if !wait_in_grace(process, grace).await {
        target.kill()?;
        let _ = timeout(KILL_MAX, process.readable()).await;
    }
    Ok(())
}

pub(super) async fn watch_handle(
    dir: &Path,
    handle: Handle,
    stop: &mut watch::Receiver<Option<u64>>,
) -> io::Result<()> {
    let process = watchable(handle.as_fd().try_clone_to_owned()?)?;
    watch_to_end(dir, &process, Target::Handle(handle), stop).await
}

async fn wait_in_grace(process: &AsyncFd<OwnedFd>, grace_ms: u64) -> bool {
    let slack = if grace_ms == 0 { Duration::ZERO } else { GRACE_SLACK };
    let deadline = Instant::now() + Duration::from_millis(grace_ms) + slack;
    tokio::select! {
        _ = process.readable() => true,
        () = sleep_until(deadline) => false,
    }
}

/// Asks the runtime on its socket; false when it cannot be asked and a signal is needed.
async fn ask_to_stop(dir: &Path, grace_ms: u64) -> bool {
    let dir = dir.to_owned();
    let grace = Duration::from_millis(grace_ms);
    let asked = spawn_blocking(move || {
        cnova_ral::Client::connect_with_timeout(&dir, CALL_TIMEOUT).and_then(|mut c| c.stop(Some(grace)))
    });
    matches!(asked.await, Ok(Ok(())))
}

/// Why a runtime is given up that has not said that its workload runs: it took too long without a word, or, saying that
/// it prepares its workload, far too long.
pub(super) async fn took_too_long(dir: &Path, times: Times, questions: &Arc<Semaphore>) -> String {
    let began = Instant::now();
    sleep(times.start).await;
    while health::is_preparing(dir, questions).await {
        if began.elapsed() >= times.prepare {
            let seconds = times.prepare.as_secs();
            return format!("it was still preparing its workload after {seconds} s, and was ended");
        }
        sleep(STILL_PREPARING.min(times.start)).await;
    }
    let seconds = times.start.as_secs();
    format!("it did not say within {seconds} s that it runs, and was ended")
}
