//! What is said of a workload: its state, and for everything but running the reason.

use cnova_shared::wire::v1::{WorkloadReport, WorkloadState};

use super::{Decision, Machine, Observed};

/// What keeps a version from being started, for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lack {
    /// An artifact is still to come.
    Fetching(String),
    /// Its provenance does not hold, or is being checked.
    Unproven(String),
    /// A secret that it uses cannot be opened here.
    Secret(String),
}

impl Lack {
    fn text(&self) -> &str {
        match self {
            Self::Fetching(text) | Self::Unproven(text) | Self::Secret(text) => text,
        }
    }
}

impl Machine {
    /// Its state for the report. `lack` says what keeps the target from being started, if anything does.
    #[must_use]
    pub fn report(&self, lack: Option<Lack>, fits_now: bool) -> Option<WorkloadReport> {
        let d = self.desired.as_ref()?;
        use WorkloadState as W;
        let is_current = self.target_spec() == Some(self.row.spec);
        let (state, mut reason) = match &self.observed {
            Observed::Starting => (W::Starting, String::new()),
            Observed::Running(r) => {
                let why = match (&lack, &self.decision) {
                    _ if !r.unwell.is_empty() => format!("unhealthy: {}", r.unwell),
                    (Some(m), _) if !is_current => format!("the version before runs on; {}", m.text()),
                    (None, Decision::Hold(held)) if !is_current => format!("the version before runs on; {held}"),
                    _ => String::new(),
                };
                (W::Running, why)
            }
            Observed::Stopping { why, .. } => (W::Stopping, why.clone()),
            Observed::Backoff { why, .. } => (W::Failed, why.clone()),
            Observed::Finished { why } => (W::Finished, and_next(why, &self.decision)),
            Observed::CrashLoop { why } => (W::CrashLoop, and_next(why, &self.decision)),
            Observed::Idle { why } => match (&self.decision, lack) {
                (Decision::Wait(reason) | Decision::Hold(reason), _) => (W::Waiting, reason.to_string()),
                (Decision::Run { .. }, Some(Lack::Fetching(m))) => (W::Fetching, m),
                (Decision::Run { .. }, Some(Lack::Unproven(m) | Lack::Secret(m))) => (W::Waiting, m),
                (Decision::Run { .. }, None) if !fits_now => (
                    W::Waiting,
                    "room: it waits until a workload that is being stopped has made room".into(),
                ),
                (Decision::Run { .. }, None) => (W::Waiting, why.clone()),
            },
        };
        let returned = self.has_returned();
        if returned {
            let after = if reason.is_empty() {
                String::new()
            } else {
                format!("; {reason}")
            };
            reason = match (&self.unproven, self.returned_why.as_str()) {
                (Some(why), _) => {
                    format!("the new version is not started (provenance: {why}); the one before runs{after}")
                }
                (None, "") => {
                    let why = "it did before the agent restarted";
                    format!("the new version did not become healthy ({why}); the one before runs again{after}")
                }
                (None, why) => {
                    format!("the new version did not become healthy ({why}); the one before runs again{after}")
                }
            };
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
