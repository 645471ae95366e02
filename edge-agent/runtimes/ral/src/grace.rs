//! How long a workload may take to end once a stop was asked for.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// The grace time of a workload, told by one thread and read by another.
#[derive(Debug)]
pub struct Grace {
    told: AtomicBool,
    ms: AtomicU64,
}

impl Grace {
    /// With what the spec says, which holds for a stop that says nothing else; in milliseconds.
    #[must_use]
    pub fn new(ms: u64) -> Self {
        Self {
            told: AtomicBool::new(false),
            ms: AtomicU64::new(ms),
        }
    }

    /// Marks a stop as asked for. The first one may be longer than what the spec says; a repeated one never lengthens
    /// the first, also when both are told before anybody reads.
    pub fn tell(&self, grace: Option<Duration>) {
        let repeated = self.told.swap(true, Ordering::AcqRel);
        let ms = grace.map(|grace| u64::try_from(grace.as_millis()).unwrap_or(u64::MAX));
        match ms {
            Some(ms) if repeated => _ = self.ms.fetch_min(ms, Ordering::AcqRel),
            Some(ms) => self.ms.store(ms, Ordering::Release),
            None => {}
        }
    }

    /// Whether a stop was asked for.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.told.load(Ordering::Acquire)
    }

    /// The time that counts now.
    #[must_use]
    pub fn get(&self) -> Duration {
        Duration::from_millis(self.ms.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_stops_that_are_seen_at_once_the_shorter_grace_counts() {
        let (short, long) = (Duration::from_millis(300), Duration::from_secs(3600));
        for (first, second) in [(short, long), (long, short)] {
            let grace = Grace::new(50);
            assert!(!grace.is_told());
            grace.tell(Some(first));
            grace.tell(Some(second));
            assert!(grace.is_told());
            assert_eq!(grace.get(), short);
        }
    }

    #[test]
    fn the_first_stop_may_be_longer_than_the_spec_says_and_one_without_a_time_leaves_it() {
        let grace = Grace::new(50);
        grace.tell(None);
        assert_eq!(grace.get(), Duration::from_millis(50));
        let grace = Grace::new(50);
        grace.tell(Some(Duration::from_secs(3600)));
        grace.tell(None);
        assert_eq!(grace.get(), Duration::from_secs(3600));
    }
}
