//! While the store cannot be written.

use std::time::Duration;

use cnova_agent_core::{Action, Agent, Event, Message};
use cnova_shared::wire::v1::Alarm;
use cnova_store::CallError;
use tokio::time::Instant;

use super::{End, EventLoop, Input, Inputs};
use crate::ledger::Ledger;
use crate::run::{StartError, set_aside_alarm, wall_ms};
use crate::status::Question;

/// The longest pause between two attempts.
const OUTAGE_MAX: Duration = Duration::from_secs(30);

impl EventLoop {
    /// The store cannot be written. Workloads run on; the parent is told; when it can be written again the core is made
    /// anew. Something only when the agent is to end.
    pub(super) async fn outage(&mut self, error: &CallError, inputs: &mut Inputs) -> Option<Result<(), StartError>> {
        let began = Instant::now();
        let mut reason = error.to_string();
        let mut is_damaged = matches!(error, CallError::Corrupt(_) | CallError::Gone);
        loop {
            let path = self.parts.ledger_path.display();
            let detail = format!("{reason} ({path}); nothing new is taken until it can be written, what runs runs on");
            tracing::error!(alarm = "store", "{detail}");
            self.set_alarm(Alarm {
                code: "store".into(),
                detail,
            });
            self.announce().await;
            match self.wait_in_outage(inputs).await {
                End::Again => {}
                End::LinkGone => return Some(Err(StartError::LinkGone)),
                End::Stop | End::Store(_) => return Some(Ok(())),
            }
            let now = if is_damaged {
                self.reopen()
            } else {
                self.parts.ledger.probe().await
            };
            match now {
                Ok(()) => break,
                Err(error) => {
                    is_damaged = matches!(error, CallError::Corrupt(_) | CallError::Gone);
                    reason = error.to_string();
                }
            }
        }
        let seconds = began.elapsed().as_secs();
        let detail = format!("the store could not be written for {seconds} s ({reason}); it works again");
        tracing::info!(alarm = "store", "{detail}");
        self.set_alarm(Alarm {
            code: "store".into(),
            detail,
        });
        None
    }

    /// Lets time go by. Messages are dropped, because they are repeated; the connection is kept account of.
    async fn wait_in_outage(&mut self, inputs: &mut Inputs) -> End {
        let until = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(OUTAGE_MAX);
        loop {
            let ms = u64::try_from((until - self.started).as_millis()).unwrap_or(u64::MAX);
            match self.next_input(Some(ms), inputs).await {
                Input::End(end) => return end,
                Input::Event(Event::Connected) => self.announce().await,
                Input::Event(Event::Tick) if Instant::now() >= until => return End::Again,
                Input::Asked(question) => self.tell(question).await,
                Input::Event(_) | Input::Said(_) | Input::Done(_) => {}
            }
        }
    }

    /// Somebody in front of the node asks just now: what runs is looked at, what is wanted is what the store still holds.
    async fn tell(&self, question: Question) {
        let loaded = self.parts.ledger.load().await;
        let is_known = loaded.is_ok();
        let stored = loaded.unwrap_or_default();
        let Ok((whole, partial, found)) = self.look(&stored).await else {
            return;
        };
        let (config, now) = (self.parts.config.clone(), self.now());
        let mut core = Agent::boot(config, stored, whole, partial, found.observed, now);
        if self.connected {
            core.handle(Event::Connected, now);
        }
        let mut status = core.status();
        if !is_known {
            // It may be on trial: what nobody can read is not found good.
            status.system_good = None;
        }
        // Who asked may have gone.
        let _ = question.send(status);
    }

    /// Says hello with the alarms, from a core that is thrown away: the true one exists only when the store works.
    async fn announce(&mut self) {
        if !self.connected {
            return;
        }
        let stored = self.parts.ledger.load().await.unwrap_or_default();
        let now = self.now();
        let mut core = Agent::boot(
            self.parts.config.clone(),
            stored,
            Default::default(),
            Default::default(),
            Vec::new(),
            now,
        );
        core.handle(Event::Connected, now);
        while let Some(action) = core.poll_action() {
            if let Action::Send(message @ Message::Hello(_)) = action {
                self.send(&message, core.now_s(now));
            }
        }
    }

    fn reopen(&mut self) -> Result<(), CallError> {
        match Ledger::open(&self.parts.ledger_path, wall_ms()) {
            Ok((ledger, set_aside)) => {
                self.parts.ledger = ledger;
                if let Some(aside) = set_aside {
                    self.set_alarm(set_aside_alarm(&aside));
                }
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, "the ledger cannot be opened again");
                Err(CallError::Gone)
            }
        }
    }
}
