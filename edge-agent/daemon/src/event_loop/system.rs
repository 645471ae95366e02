//! The slots of the machine's system.

use std::sync::Arc;

use cnova_agent_core::{Event, SystemAction, SystemEvent};
use tokio::task::spawn_blocking;

use super::{Done, EventLoop};

impl EventLoop {
    /// In order: what is written is on its way before what comes next is asked for. Only what takes long is done beside.
    pub(super) async fn change_system(&self, action: SystemAction) -> Option<SystemEvent> {
        let slots = Arc::clone(self.parts.slots.as_ref()?);
        if matches!(
            action,
            SystemAction::Verify { .. } | SystemAction::Start { .. } | SystemAction::Restart | SystemAction::Look
        ) {
            self.beside(move || Some(Done::Event(Event::System(slots.perform(action)?))));
            return None;
        }
        spawn_blocking(move || slots.perform(action)).await.ok().flatten()
    }
}
