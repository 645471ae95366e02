//! What the loop asks of the TPM, beside itself: a TPM may take seconds, or never answer.

use cnova_agent_core::Event;
use std::sync::Arc;
use std::time::Duration;

use cnova_agent_core::standing::{Counter, CounterState, OwnBoot};
use cnova_link::{Identity, Witness};
use cnova_root_of_trust::RootOfTrust;
use cnova_root_of_trust::measurer::MeasureError;
use cnova_shared::boot_policy::OwnBoots;
use cnova_shared::ids::NodeId;
use cnova_shared::wire::v1::Challenge;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::{Done, EventLoop};
use crate::key_keeper::Tried;
use crate::supervisor::Supervisor;
use crate::trusted;

/// How often it is looked whether a TPM that did not answer since the start does.
const ATTEND_EVERY: Duration = Duration::from_secs(2);
/// How often it is looked whether anything waits for one that did.
const LOOK_EVERY: Duration = Duration::from_secs(5);

impl EventLoop {
    pub(super) fn attest(&self, verifier: NodeId, challenge: Challenge, now_s: u64) {
        let Some(witness) = self.parts.witness.clone() else {
            tracing::info!(%verifier, "asked to attest, and this node has no TPM");
            return;
        };
        let identity = self.parts.identity.clone();
        self.beside(move || match witness.answer(&identity, &verifier, &challenge, now_s) {
            Ok(bytes) => Some(Done::Evidence(bytes)),
            Err(error) => {
                tracing::warn!(%verifier, %error, "cannot attest; the verifier asks again");
                None
            }
        });
    }

    pub(super) fn count_up(&self) {
        let Some(root) = self.parts.identity.tpm().cloned() else {
            return;
        };
        self.beside(move || Some(Done::Counted(count_once(&*root))));
    }

    /// Kept as well, for a core that is made anew.
    pub(super) fn on_counted(&mut self, result: Result<u64, String>) -> Event {
        if let Ok(value) = result {
            self.parts.config.root.counter = CounterState::Value(Counter { value, is_new: false });
        }
        Event::Counted(result)
    }

    /// Looks after what a silent TPM left open, for as long as the agent runs.
    pub(super) fn attend_tpm(&self) {
        let Some(tpm) = self.parts.identity.tpm().cloned() else {
            return;
        };
        let is_counted = self.parts.config.root.counter != CounterState::Unknown;
        let attendant = Attendant {
            tpm,
            identity: self.parts.identity.clone(),
            witness: self.parts.witness.clone(),
            supervisor: self.parts.supervisor.clone(),
            told: None,
            done: self.done.clone(),
        };
        tokio::spawn(attendant.run(is_counted));
    }

    /// Kept as well, for a core that is made anew.
    pub(super) fn on_counter(&mut self, found: Result<Counter, String>) -> Event {
        if let Ok(counter) = found {
            tracing::info!("the TPM answers");
            self.parts.config.root.counter = CounterState::Value(counter);
            self.parts.config.alarms.retain(|a| a.code != "tpm");
            self.parts.uplink.try_now();
        }
        Event::Counter(found)
    }

    pub(super) fn open_ledger_key(&self, boots: OwnBoots) {
        let Some(keeper) = self.parts.keeper.clone() else {
            return;
        };
        self.beside(move || {
            let tried = keeper.open(&boots);
            Some(Done::OwnBoot(boots, tried))
        });
    }

    /// Kept as well, for a core that is made anew.
    pub(super) fn on_own_boot(&mut self, boots: OwnBoots, tried: Tried) -> Event {
        let Tried { own_boot, key, lost } = tried;
        self.parts.ledger_key = key;
        if !matches!(own_boot, OwnBoot::Unknown(_)) {
            let root = &mut self.parts.config.root;
            root.own_boot = own_boot.clone();
            root.boots.clone_from(&boots);
        }
        Event::OwnBoot { boots, own_boot, lost }
    }
}

/// Asks a TPM again that did not answer.
struct Attendant {
    tpm: Arc<dyn RootOfTrust>,
    identity: Arc<Identity>,
    witness: Option<Arc<Witness>>,
    supervisor: Supervisor,
    /// Why it does not answer, as the loop was told last.
    told: Option<String>,
    done: mpsc::Sender<Done>,
}

impl Attendant {
    async fn run(mut self, mut is_counted: bool) {
        loop {
            sleep(if is_counted { LOOK_EVERY } else { ATTEND_EVERY }).await;
            if !is_counted {
                is_counted = self.count().await;
            }
            if self.tpm.silence().is_none() {
                self.measure().await;
            }
        }
    }

    /// Whether the counter is known now.
    async fn count(&mut self) -> bool {
        let (tpm, identity) = (self.tpm.clone(), self.identity.clone());
        let found = match tpm.silence() {
            Some(silence) => Err(silence.to_string()),
            None => {
                let ask = move || {
                    let counter = trusted::counter_of(&*tpm).map_err(|e| e.to_string());
                    // First of all the node wants to be heard again; whoever waits for that tries once more if it fails.
                    if counter.is_ok() {
                        let _ = identity.endorse();
                    }
                    counter
                };
                spawn_blocking(ask).await.unwrap_or_else(|e| Err(e.to_string()))
            }
        };
        let is_found = found.is_ok();
        if is_found || self.told.as_ref() != found.as_ref().err() {
            self.told = found.as_ref().err().cloned();
            let _ = self.done.send(Done::Counter(found)).await;
        }
        is_found
    }

    /// Launches that wait are logged.
    async fn measure(&self) {
        let Some(witness) = self.witness.clone() else { return };
        let is_behind = |w: &Witness| w.measurer.as_ref().is_some_and(|m| m.is_behind());
        // A challenge may have had everything logged that waited: that is news as well.
        if !is_behind(&witness) && self.supervisor.unmeasured().is_none() {
            return;
        }
        let tried = spawn_blocking(move || {
            let measurer = witness.measurer.as_ref()?;
            match measurer.catch_up() {
                Err(MeasureError::Pausing) => None,
                other => Some(other.err().map(|e| e.to_string())),
            }
        });
        if let Ok(Some(why)) = tried.await {
            let _ = self.done.send(Done::Measured(why)).await;
        }
    }
}

/// An answer may be lost on its way although the TPM has counted: then the counter itself tells.
fn count_once(root: &dyn RootOfTrust) -> Result<u64, String> {
    let before = root.counter().map_err(|e| e.to_string())?;
    root.count_up().or_else(|error| match root.counter() {
        Ok(Some(after)) if Some(after) > before => Ok(after),
        _ => Err(error.to_string()),
    })
}
