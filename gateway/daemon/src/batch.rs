//! The actions of several events, in order, with as few commits as their order allows.

use std::collections::VecDeque;

use cnova_gateway_core::{Action, Gateway, UpMessage};

/// Most events taken into the core before their actions are performed.
pub const EVENTS_MAX: usize = 64;

/// What is to be done.
#[derive(Debug, Default)]
pub struct Batch(VecDeque<Action>);

impl Batch {
    /// Takes all that the core has to say. A commit that directly follows another one becomes part of it; one that
    /// stands behind an effect stays there, so that nothing is done in another order than the core said.
    pub fn take(&mut self, core: &mut Gateway) {
        while let Some(action) = core.poll_action() {
            self.push(action);
        }
    }

    fn push(&mut self, action: Action) {
        match (action, self.0.back_mut()) {
            (Action::Persist(mut ops), Some(Action::Persist(before))) => before.append(&mut ops),
            (action, _) => self.0.push_back(action),
        }
    }

    /// The next thing to do.
    pub fn pop(&mut self) -> Option<Action> {
        self.0.pop_front()
    }

    /// Takes the hellos out. A hello depends on nothing that is still to be written, so a gateway whose store refuses
    /// every write can still say so.
    pub fn take_hellos(&mut self) -> Vec<Action> {
        let (hellos, rest) = self
            .0
            .drain(..)
            .partition(|a| matches!(a, Action::SendUp(UpMessage::Hello(_))));
        self.0 = rest;
        hellos.into()
    }
}

#[cfg(test)]
mod tests {
    use cnova_gateway_core::Op;

    use super::*;

    #[test]
    fn only_neighbouring_commits_are_joined() {
        let mut batch = Batch::default();
        for action in [
            Action::Persist(vec![Op::TimeFloor(1)]),
            Action::Persist(vec![Op::TimeFloor(2)]),
            Action::Note("a".into()),
            Action::Persist(vec![Op::TimeFloor(3)]),
        ] {
            batch.push(action);
        }
        assert_eq!(
            batch.pop(),
            Some(Action::Persist(vec![Op::TimeFloor(1), Op::TimeFloor(2)]))
        );
        assert_eq!(batch.pop(), Some(Action::Note("a".into())));
        assert_eq!(batch.pop(), Some(Action::Persist(vec![Op::TimeFloor(3)])));
        assert_eq!(batch.pop(), None);
    }
}
