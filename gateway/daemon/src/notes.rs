//! What the core notes. Each note says that something was not taken, and anybody below can cause one: the first of each
//! period are warnings, the rest are counted and kept for those who debug.

use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_secs(60);
const PER_PERIOD: u32 = 20;

/// How many notes were logged lately.
#[derive(Debug, Default)]
pub struct Notes {
    since: Option<Instant>,
    logged: u32,
    hidden: u64,
}

impl Notes {
    /// Logs a note.
    pub fn log(&mut self, text: &str) {
        if self.is_shown(Instant::now()) {
            tracing::warn!("{text}");
        } else {
            tracing::debug!("{text}");
        }
    }

    fn is_shown(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.duration_since(since) >= PERIOD) {
            if self.hidden > 0 {
                tracing::warn!(
                    notes = self.hidden,
                    "more notes were not shown; they are logged at the level debug"
                );
            }
            *self = Self {
                since: Some(now),
                logged: 0,
                hidden: 0,
            };
        }
        let is_shown = self.logged < PER_PERIOD;
        if is_shown {
            self.logged += 1
        } else {
            self.hidden += 1
        }
        is_shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_notes_is_counted_instead() {
        let (mut notes, start) = (Notes::default(), Instant::now());
        let shown = (0..100).filter(|_| notes.is_shown(start)).count();
        assert_eq!((shown, notes.hidden), (PER_PERIOD as usize, 80));
        assert!(notes.is_shown(start + PERIOD));
    }
}
