//! Asks each instance's runtime how its workload is: one light task per instance, few questions at once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cnova_agent_core::RuntimeEvent;
use cnova_ral::{CallError, Client, Health, Phase};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::sleep;

use crate::instance::InstanceId;
use crate::supervisor::Said;

/// Questions that wait for an answer at the same time: a thread each, and a runtime that hangs holds one for two seconds.
pub(crate) const QUESTIONS_MAX: usize = 4;
/// Pauses before the first questions; then [`EAGER`] until the first good answer.
const FIRST: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_millis(1000),
];
const EAGER: Duration = Duration::from_secs(1);
/// No shorter than this is the pause between questions, whatever the workload asks for.
const INTERVAL_MIN: Duration = Duration::from_millis(500);
/// A runtime that is just ending answers no more. Its end tells more than that, so it is waited for.
const LAST_BREATH: Duration = Duration::from_millis(300);

/// Ends the questions when it is dropped.
#[derive(Debug)]
pub(crate) struct Watch(AbortHandle);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What is asked, and who is told.
#[derive(Debug)]
pub(crate) struct Patient {
    pub(crate) id: InstanceId,
    pub(crate) dir: PathBuf,
    pub(crate) interval: Duration,
    pub(crate) questions: Arc<Semaphore>,
    pub(crate) said: mpsc::Sender<Said>,
}

/// Asks until the watch is dropped; says when the answer changes, and every bad one.
pub(crate) fn watch(patient: Patient) -> Watch {
    Watch(tokio::spawn(patient.ask_for_ever()).abort_handle())
}

impl Patient {
    async fn ask_for_ever(self) {
        let interval = self.interval.max(INTERVAL_MIN);
        let mut first = FIRST.into_iter();
        let mut was_ever_well = false;
        let mut last = None;
        loop {
            sleep(if was_ever_well {
                interval
            } else {
                first.next().unwrap_or(EAGER)
            })
            .await;
            let answer = ask(&self.dir, &self.questions).await;
            if let Err(CallError::Connect { .. } | CallError::Broken { .. }) = &answer {
                sleep(LAST_BREATH).await;
            }
            let (healthy, detail) = match answer {
                Ok(health) => (health.healthy, health.detail.unwrap_or_default()),
                Err(error) => (false, format!("it does not answer: {error}")),
            };
            was_ever_well |= healthy;
            if last.replace(healthy) == Some(true) && healthy {
                continue;
            }
            let event = RuntimeEvent::Health { healthy, detail };
            let id = self.id.clone();
            if self.said.send(Said::Event { id, event }).await.is_err() {
                return;
            }
        }
    }
}

/// One question, once there is a thread for it.
async fn ask(dir: &Path, questions: &Arc<Semaphore>) -> Result<Health, CallError> {
    let gone = |why: &str| CallError::Protocol {
        dir: dir.to_owned(),
        reason: why.to_owned(),
    };
    let Ok(permit) = questions.clone().acquire_owned().await else {
        return Err(gone("the agent ends"));
    };
    let folder = dir.to_owned();
    let asked = spawn_blocking(move || {
        // Held by the thread, not by the task: that may be gone while a runtime that hangs is waited for.
        let _permit = permit;
        Client::connect(&folder)?.health()
    })
    .await;
    asked.unwrap_or_else(|error| Err(gone(&error.to_string())))
}

/// Whether the runtime says that it is still preparing its workload, such as unpacking layers.
pub(crate) async fn is_preparing(dir: &Path, questions: &Arc<Semaphore>) -> bool {
    matches!(ask(dir, questions).await, Ok(health) if health.phase == Phase::Starting)
}
