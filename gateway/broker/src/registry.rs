//! Which node is connected where, and what is remembered of a node between its connections.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::codec::reason;
use crate::config::Limits;
use crate::outbox::{Outbox, OutboxLimits};

/// All nodes of one endpoint.
pub(crate) struct Registry {
    state: Mutex<State>,
    /// Bytes that wait for all children together.
    outbound_total: Arc<AtomicUsize>,
    takeover_limit: usize,
    takeover_window: Duration,
    conflict_hold: Duration,
    max_connections: usize,
    kinds_per_node: usize,
}

#[derive(Default)]
struct State {
    /// As many entries as there are certificates at most: only an authenticated node gets one.
    nodes: HashMap<String, Node>,
    live: usize,
    last_serial: u64,
    closed: bool,
}

#[derive(Default)]
struct Node {
    live: Option<Arc<Outbox>>,
    /// Of the connection that lives, DER.
    certificate: Arc<[u8]>,
    takeovers: VecDeque<Instant>,
    refuse_until: Option<Instant>,
    kinds: Vec<String>,
}

/// How the reason of [`crate::EndpointEvent::Refused`] begins when two devices use one identity.
pub const IDENTITY_CONFLICT: &str = "two agents use identity";

/// Why an authenticated node is not let in now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAdmitted {
    #[error("{IDENTITY_CONFLICT} {0}: give each device a certificate of its own")]
    Conflict(String),
    #[error("the earlier connection of {0} is still being closed")]
    StillClosing(String),
    #[error("the limit of {0} connections is reached")]
    Full(usize),
    #[error("the endpoint is shutting down")]
    ShuttingDown,
}

impl Registry {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            state: Mutex::default(),
            outbound_total: Arc::default(),
            takeover_limit: limits.takeover_limit,
            takeover_window: limits.takeover_window,
            conflict_hold: limits.conflict_hold,
            max_connections: limits.max_connections,
            kinds_per_node: limits.kinds_per_node,
        }
    }

    /// Makes `node` connected. An earlier connection of the same node is closed first and has ended, its
    /// `Disconnected` told, when this returns.
    pub(crate) async fn admit(
        &self,
        node: &str,
        limits: OutboxLimits,
        deadline: Instant,
    ) -> Result<Arc<Outbox>, NotAdmitted> {
        let mut took_over = false;
        loop {
            let earlier = match self.try_admit(node, limits, took_over)? {
                Ok(outbox) => return Ok(outbox),
                Err(earlier) => earlier,
            };
            took_over = true;
            earlier.close(
                reason::SESSION_TAKEN_OVER,
                "another connection with this identity has taken over",
            );
            if timeout_at(deadline, earlier.wait_gone()).await.is_err() {
                return Err(NotAdmitted::StillClosing(node.to_owned()));
            }
        }
    }

    fn try_admit(
        &self,
        name: &str,
        limits: OutboxLimits,
        took_over: bool,
    ) -> Result<Result<Arc<Outbox>, Arc<Outbox>>, NotAdmitted> {
        let mut state = self.lock();
        if state.closed {
            return Err(NotAdmitted::ShuttingDown);
        }
        if state.live >= self.max_connections && state.nodes.get(name).is_none_or(|node| node.live.is_none()) {
            return Err(NotAdmitted::Full(self.max_connections));
        }
        let serial = state.last_serial + 1;
        let node = state.nodes.entry(name.to_owned()).or_default();
        if let Some(earlier) = &node.live {
            let earlier = earlier.clone();
            if !took_over && self.is_conflict(node) {
                return Err(NotAdmitted::Conflict(name.to_owned()));
            }
            return Ok(Err(earlier));
        }
        let outbox = Arc::new(Outbox::new(
            name.to_owned(),
            serial,
            limits,
            self.outbound_total.clone(),
        ));
        node.live = Some(outbox.clone());
        state.last_serial = serial;
        state.live += 1;
        Ok(Ok(outbox))
    }

    /// Two agents with one identity would throw one another out for ever. After a few rounds the one that is
    /// connected stays, so that at least one of them works.
    fn is_conflict(&self, node: &mut Node) -> bool {
        let now = Instant::now();
        if node.refuse_until.is_some_and(|until| now < until) {
            return true;
        }
        node.refuse_until = None;
        node.takeovers
            .retain(|at| now.duration_since(*at) < self.takeover_window);
        node.takeovers.push_back(now);
        if node.takeovers.len() < self.takeover_limit {
            return false;
        }
        node.takeovers.clear();
        node.refuse_until = Some(now + self.conflict_hold);
        true
    }

    /// Notes with which certificate the connection came that lives now.
    pub(crate) fn certify(&self, outbox: &Outbox, certificate: Arc<[u8]>) {
        let mut state = self.lock();
        let node = state.nodes.get_mut(&outbox.node);
        let lives = |node: &&mut Node| node.live.as_ref().is_some_and(|live| live.serial == outbox.serial);
        if let Some(node) = node.filter(lives) {
            node.certificate = certificate;
        }
    }

    /// The connections that live, with their certificates.
    pub(crate) fn live(&self) -> Vec<(Arc<Outbox>, Arc<[u8]>)> {
        let state = self.lock();
        let live = state
            .nodes
            .values()
            .filter_map(|n| Some((n.live.clone()?, n.certificate.clone())));
        live.collect()
    }

    /// The connection of `node`, if it has one.
    pub(crate) fn get(&self, node: &str) -> Option<Arc<Outbox>> {
        self.lock().nodes.get(node)?.live.clone()
    }

    /// Notes that `node` uses `kind`; `false` when it has used too many.
    pub(crate) fn allow_kind(&self, node: &str, kind: &str) -> bool {
        let mut state = self.lock();
        let kinds = &mut state.nodes.entry(node.to_owned()).or_default().kinds;
        if kinds.iter().any(|known| known == kind) {
            return true;
        }
        let allowed = kinds.len() < self.kinds_per_node;
        if allowed {
            kinds.push(kind.to_owned());
        }
        allowed
    }

    /// Forgets a connection that has ended.
    pub(crate) fn remove(&self, outbox: &Outbox) {
        let mut state = self.lock();
        let Some(node) = state.nodes.get_mut(&outbox.node) else {
            return;
        };
        if node.live.as_ref().is_some_and(|live| live.serial == outbox.serial) {
            node.live = None;
            state.live -= 1;
        }
    }

    /// Closes every connection and admits no more.
    pub(crate) fn close_all(&self, reason: u8, text: &str) {
        let mut state = self.lock();
        state.closed = true;
        for outbox in state.nodes.values().filter_map(|node| node.live.as_ref()) {
            outbox.close(reason, text);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
