//! Commands of the hub: asked once, answered once, nothing kept.

use std::collections::VecDeque;

/// How many command ids are remembered, so that a repeated delivery is answered once.
const REMEMBERED: usize = 64;

/// The newest command ids.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    ids: VecDeque<u64>,
}

impl Seen {
    /// Whether this id is new.
    pub(crate) fn is_new(&mut self, id: u64) -> bool {
        if self.ids.contains(&id) {
            return false;
        }
        if self.ids.len() == REMEMBERED {
            self.ids.pop_front();
        }
        self.ids.push_back(id);
        true
    }
}
