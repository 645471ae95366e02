//! The two clocks, read once per event.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use cnova_shared::time::Now;

/// Reads the clocks. Copies count from the same moment.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
    floor_ms: u64,
}

impl Clock {
    /// A clock that is never before `floor_s`, the latest of what was signed for this hub: its certificate
    /// begins then, or its trust bundle was made then.
    #[must_use]
    pub fn new(floor_s: u64) -> Self {
        Self {
            started: Instant::now(),
            floor_ms: floor_s.saturating_mul(1000),
        }
    }

    /// Both clocks.
    #[must_use]
    pub fn now(&self) -> Now {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let millis = |d: std::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        Now {
            mono_ms: millis(self.started.elapsed()),
            wall_ms: millis(since_1970).max(self.floor_ms),
        }
    }

    /// The wall clock in seconds.
    #[must_use]
    pub fn now_s(&self) -> u64 {
        self.now().wall_ms / 1000
    }

    /// The moment at which the monotonic clock says `mono_ms`.
    #[must_use]
    pub fn instant(&self, mono_ms: u64) -> tokio::time::Instant {
        (self.started + std::time::Duration::from_millis(mono_ms)).into()
    }
}
