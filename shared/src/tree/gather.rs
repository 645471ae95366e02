//! Asking children to tell everything again.

use super::*;

impl Tree {
    /// The store of this tree's own parent was lost: every child is to say everything again.
    pub fn forget_received(&mut self) {
        let keys: Vec<(NodeId, Stream)> = self.received.keys().cloned().collect();
        for (child, stream) in keys {
            self.forget(&child, stream);
        }
    }

    pub(super) fn gather_later(&mut self, child: &NodeId, mono_ms: u64) {
        let fresh = Gather {
            due: None,
            pause_ms: limits::RESEND_MIN_MS * 4,
        };
        let gather = self.gather.entry(child.clone()).or_insert(fresh);
        if gather.due.is_none() {
            gather.due = Some(mono_ms + gather.pause_ms);
            gather.pause_ms = (gather.pause_ms * 2).min(limits::GATHER_MAX_MS);
            // On disk the child is forgotten at once: if this process dies before the time has come, it asks at the
            // child's next hello.
            for stream in [Stream::Report, Stream::Relay] {
                if self.received.contains_key(&(child.clone(), stream)) {
                    let position = Position::default();
                    let op = TreeOp::Received {
                        child: child.clone(),
                        stream,
                        position,
                    };
                    self.events.push_back(TreeEvent::Persist(op));
                }
            }
        }
    }

    /// Asks the children for everything again of whom something could not be judged.
    pub(super) fn poll_gather(&mut self, now: Now) {
        let connected = &self.connected;
        let due = |(c, g): (&NodeId, &mut Gather)| {
            let is_due = g.due.is_some_and(|t| t <= now.mono_ms) && connected.contains(c);
            is_due.then(|| g.due = None).map(|()| c.clone())
        };
        let children: Vec<NodeId> = self.gather.iter_mut().filter_map(due).collect();
        for child in children {
            for stream in [Stream::Report, Stream::Relay] {
                if self.received.contains_key(&(child.clone(), stream)) {
                    self.forget(&child, stream);
                }
            }
        }
    }

    /// What `node` said makes no sense without what it said before, and that is not here: it, and whoever carries for it,
    /// is asked to tell everything again.
    pub fn ask_again(&mut self, node: &NodeId, mono_ms: u64) {
        if let Some(via) = self.via(node).cloned() {
            self.gather_later(&via, mono_ms);
        }
    }

    pub(super) fn forget(&mut self, child: &NodeId, stream: Stream) {
        let position = Position::default();
        self.received.insert((child.clone(), stream), position);
        let op = TreeOp::Received {
            child: child.clone(),
            stream,
            position,
        };
        self.events.push_back(TreeEvent::Persist(op));
        if self.connected.contains(child) {
            self.ack(child, stream, None);
        }
    }
}
