//! Callers who wait for the core's answer.

use std::collections::HashMap;

use cnova_hub_core::{Outcome, RequestId};
use cnova_shared::limits;
use tokio::sync::oneshot;

use super::handle::Unavailable;
use crate::store::audit::Draft;

/// Above this, those whose caller has gone are looked for.
const SWEEP_ABOVE: usize = 1024;

struct Waiting {
    reply: oneshot::Sender<Result<Outcome, Unavailable>>,
    audit: Option<Draft>,
}

/// All of them.
pub(super) struct Pending {
    next: RequestId,
    waiting: HashMap<RequestId, Waiting>,
}

impl Pending {
    /// `first` is an id that no earlier life of the hub used: nodes may still answer its questions.
    pub(super) fn new(first: RequestId) -> Self {
        Self {
            next: first,
            waiting: HashMap::new(),
        }
    }

    pub(super) fn add(
        &mut self,
        reply: oneshot::Sender<Result<Outcome, Unavailable>>,
        audit: Option<Draft>,
    ) -> RequestId {
        if self.waiting.len() > SWEEP_ABOVE {
            // What changes something is waited for also when nobody listens, for the audit log.
            self.waiting.retain(|_, w| w.audit.is_some() || !w.reply.is_closed());
        }
        self.next += 1;
        self.waiting.insert(self.next, Waiting { reply, audit });
        self.next
    }

    /// What the audit log shall say about an answer that is about to be given.
    pub(super) fn audit_of(&self, request: RequestId, outcome: &Outcome) -> Option<Draft> {
        let mut draft = self.waiting.get(&request)?.audit.clone()?;
        let (word, detail) = match outcome {
            Outcome::Applied {
                generation,
                changed: true,
                ..
            } => ("done", format!("generation {generation}")),
            Outcome::Applied { generation, .. } => ("unchanged", format!("generation {generation}")),
            Outcome::Trusted { changed, text, .. } => (if *changed { "done" } else { "unchanged" }, text.clone()),
            Outcome::Deleted { .. } | Outcome::Done => ("done", draft.detail.clone()),
            Outcome::Refused { reasons } => ("refused", reasons.join("; ")),
            Outcome::Mistakes(errors) => ("refused", errors.to_string()),
            Outcome::NotFound { what } => ("refused", format!("there is no {what}")),
            Outcome::Replied { .. } => ("done", String::new()),
            Outcome::Secret { version, changed, .. } => {
                let word = if *changed { "done" } else { "unchanged" };
                let more = if draft.detail.is_empty() { "" } else { ", " };
                (word, format!("version {version}{more}{}", draft.detail))
            }
            Outcome::Attested { text } => ("done", text.clone()),
        };
        draft.outcome = word;
        draft.detail = limits::clip(&detail);
        Some(draft)
    }

    pub(super) fn answer(&mut self, request: RequestId, outcome: Outcome) {
        if let Some(waiting) = self.waiting.remove(&request) {
            // Whoever asked may have gone.
            let _ = waiting.reply.send(Ok(outcome));
        }
    }

    /// Nobody gets an answer any more.
    pub(super) fn fail(&mut self, why: &Unavailable) {
        for (_, waiting) in self.waiting.drain() {
            let _ = waiting.reply.send(Err(why.clone()));
        }
    }
}
