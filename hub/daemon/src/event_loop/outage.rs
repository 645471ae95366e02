//! When the store cannot be written.
//!
//! The core in memory is then ahead of the disk, so it is thrown away. Children are let go: they keep what was not
//! acknowledged and say it again, and a new core knows nothing of their connections anyway. What is asked is answered
//! from what the disk holds; what would change it is refused until a write succeeds.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use super::handle::Request;
use super::{Batch, EventLoop, LoopError, Unavailable, boot};
use crate::stop::stopped;

const PAUSE_FIRST: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Each time costs the thread of a router that cannot be stopped; after so many a new process is better.
const REBUILDS_MAX: u32 = 32;

impl EventLoop {
    /// Waits until the store can be written again and builds the core anew from it. False when the hub shall stop.
    pub(super) async fn sit_out(&mut self, why: String, stop: &mut watch::Receiver<bool>) -> Result<bool, LoopError> {
        tracing::error!(
            why,
            "the store cannot be written: nothing is accepted until it can; nothing is lost"
        );
        self.rebuilds += 1;
        self.parts.traffic.rebuilds.one();
        self.parts.traffic.outage.set(true);
        if self.rebuilds > REBUILDS_MAX {
            return Err(LoopError::StoreFails(format!(
                "{why} (for the {}th time)",
                self.rebuilds
            )));
        }
        let why = Unavailable::Store(why);
        self.pending.fail(&why);
        let Batch { committed, queries, .. } = std::mem::take(&mut self.batch);
        for reply in committed {
            let _ = reply.send(Err(why.clone()));
        }
        self.children.clear();
        if let Some(link) = self.link.take() {
            link.endpoint.shutdown().await;
        }
        self.hub = boot(&self.parts).await?;
        for question in queries {
            question(&self.hub);
        }
        if !self.wait_for_room(&why, stop).await {
            return Ok(false);
        }
        tracing::info!("the store can be written again");
        self.parts.traffic.outage.set(false);
        self.hub = boot(&self.parts).await?;
        Ok(true)
    }

    async fn wait_for_room(&mut self, why: &Unavailable, stop: &mut watch::Receiver<bool>) -> bool {
        let mut pause = PAUSE_FIRST;
        loop {
            let wait = sleep(pause);
            tokio::pin!(wait);
            loop {
                tokio::select! {
                    () = stopped(stop) => return false,
                    Some(request) = self.requests.recv() => self.turn_away(request, why),
                    () = &mut wait => break,
                }
            }
            if self.parts.store.probe().await.is_ok() {
                return true;
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn turn_away(&self, request: Request, why: &Unavailable) {
        let why = why.clone();
        // Whoever asked may have gone.
        match request {
            Request::Change { reply, .. } => drop(reply.send(Err(why))),
            Request::Uploaded { reply, .. } | Request::Provenance { reply, .. } | Request::Audit { reply, .. } => {
                drop(reply.send(Err(why)))
            }
            // They are found unused again.
            Request::Collect(_) => {}
            Request::Query(question) => question(&self.hub),
        }
    }
}
