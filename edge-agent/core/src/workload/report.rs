//! What is said of a workload: its state, and for everything but running the reason.

use cnova_shared::wire::v1::{WorkloadReport, WorkloadState};

use super::{Decision, Machine, Observed};

impl Machine {
    /// Its state for the report. `missing` says which artifact is still to come, if one is.
    #[must_use]
    pub fn report(&self, missing: Option<String>, fits_now: bool) -> Option<WorkloadReport> {
        let d = self.desired.as_ref()?;
        use WorkloadState as W;
        let is_current = self.target_spec() == Some(self.row.spec);
        let (state, mut reason) = match &self.observed {
            Observed::Starting => (W::Starting, String::new()),
            Observed::Running(r) => {
                let why = match (&missing, &self.decision) {
                    _ if !r.unwell.is_empty() => format!("unhealthy: {}", r.unwell),
                    (Some(m), _) if !is_current => format!("the version before runs on; {m}"),
                    (None, Decision::Hold(held)) if !is_current => format!("the version before runs on; {held}"),
                    _ => String::new(),
                };
                (W::Running, why)
            }
            Observed::Stopping { why, .. } => (W::Stopping, why.clone()),
            Observed::Backoff { why, .. } => (W::Failed, why.clone()),
            Observed::Finished { why } => (W::Finished, and_next(why, &self.decision)),
            Observed::CrashLoop { why } => (W::CrashLoop, and_next(why, &self.decision)),
            Observed::Idle { why } => match (&self.decision, missing) {
                (Decision::Wait(reason) | Decision::Hold(reason), _) => (W::Waiting, reason.to_string()),
                (Decision::Run { .. }, Some(m)) => (W::Fetching, m),
                (Decision::Run { .. }, None) if !fits_now => (
                    W::Waiting,
                    "room: it waits until a workload that is being stopped has made room".into(),
                ),
                (Decision::Run { .. }, None) => (W::Waiting, why.clone()),
            },
        };
        let returned = self.has_returned();
        if returned {
            let why = match self.returned_why.as_str() {
                "" => "it did before the agent restarted",
                why => why,
            };
            let after = if reason.is_empty() {
                String::new()
            } else {
                format!("; {reason}")
            };
            reason = format!("the new version did not become healthy ({why}); the one before runs again{after}");
        }
        let (pid, adopted) = match &self.observed {
            Observed::Running(r) => (r.pid, r.adopted),
            _ => (0, false),
        };
        // While the version before still runs, or runs again, the report must not claim the new one.
        let claims = !returned && (!self.is_live() || is_current);
        Some(WorkloadReport {
            id: self.row.id.clone(),
            app_generation: if claims { d.workload.app_generation } else { 0 },
            epoch: d.asked_by.epoch,
            generation: d.asked_by.generation,
            state,
            reason: cnova_shared::limits::clip(&reason),
            attempt: self.row.attempt,
            pid,
            adopted,
            returned,
        })
    }
}

/// How it ended, and when its schedule starts it again.
fn and_next(why: &str, decision: &Decision) -> String {
    match decision {
        Decision::Hold(reason @ crate::schedule::Reason::NotDue { .. })
        | Decision::Wait(reason @ crate::schedule::Reason::WindowClosed { .. }) => format!("{why}; {reason}"),
        _ => why.to_owned(),
    }
}
