//! Time as an input: the daemon reads the clocks once per event and passes both.

use serde::{Deserialize, Serialize};

/// The two clocks at the moment an event is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Now {
    /// Milliseconds of a clock that never jumps; timers count in it.
    pub mono_ms: u64,
    /// Milliseconds since 1970 as the wall clock says; it may be wrong by decades.
    pub wall_ms: u64,
}

impl Now {
    /// The wall clock in whole seconds, never below `floor_s` (the newest `iat` that this node has verified).
    #[must_use]
    pub fn wall_s_at_least(self, floor_s: u64) -> u64 {
        (self.wall_ms / 1000).max(floor_s)
    }
}

/// A pause that doubles from [`crate::limits::RESEND_MIN_MS`] to [`crate::limits::RESEND_MAX_MS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    next_ms: u64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            next_ms: crate::limits::RESEND_MIN_MS,
        }
    }
}

impl Backoff {
    /// The pause to make now; the one after it is twice as long.
    pub fn next_pause(&mut self) -> u64 {
        let pause = self.next_ms;
        self.next_ms = (pause * 2).min(crate::limits::RESEND_MAX_MS);
        pause
    }

    /// Back to the shortest pause, after progress.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

/// The seconds of a span such as `90d`, `24h`, `30m` or `45s`; nothing for any other text, or for no time at all.
#[must_use]
pub fn seconds_of(span: &str) -> Option<u64> {
    let unit = span.chars().last()?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return None,
    };
    let number: u64 = span.strip_suffix(unit)?.parse().ok()?;
    number.checked_mul(factor).filter(|seconds| *seconds > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_a_number_and_a_unit() {
        for (text, seconds) in [
            ("90d", Some(7_776_000)),
            ("24h", Some(86_400)),
            ("30m", Some(1800)),
            ("1s", Some(1)),
        ] {
            assert_eq!(seconds_of(text), seconds, "{text}");
        }
        for bad in [
            "",
            "d",
            "0s",
            "-1h",
            "1.5h",
            "10",
            "1w",
            "99999999999999999999d",
            "999999999999999999d",
            "1ü",
        ] {
            assert_eq!(seconds_of(bad), None, "{bad}");
        }
    }
}
