//! The two clocks, as the core is given them.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cnova_link::FloorClock;
use cnova_shared::time::Now;
use tokio::time::Instant;

/// Milliseconds since 1970 by the system's clock; 0 when it stands before that.
#[must_use]
pub fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds since this process began, and the wall clock, which is never before what was proven: a machine without
/// a battery starts in 1970, and every child's certificate would be of the future.
#[derive(Debug)]
pub struct Clock {
    start: Instant,
    floor: Arc<FloorClock>,
}

impl Clock {
    /// A clock that begins now.
    #[must_use]
    pub fn new(floor: Arc<FloorClock>) -> Self {
        Self {
            start: Instant::now(),
            floor,
        }
    }

    /// Both clocks.
    #[must_use]
    pub fn now(&self) -> Now {
        let mono_ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        Now {
            mono_ms,
            wall_ms: wall_ms().max(self.floor.now_s().saturating_mul(1000)),
        }
    }

    /// When it is `mono_ms`.
    #[must_use]
    pub fn instant(&self, mono_ms: u64) -> Instant {
        self.start + Duration::from_millis(mono_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wall_clock_is_never_before_what_was_proven() {
        let far = wall_ms() / 1000 + 1_000_000;
        let clock = Clock::new(Arc::new(FloorClock::new(far)));
        assert_eq!(clock.now().wall_ms, far * 1000);
        let clock = Clock::new(Arc::new(FloorClock::new(0)));
        assert!(clock.now().wall_ms >= wall_ms() - 1000);
    }
}
