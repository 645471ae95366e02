//! Times for people.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now, milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// How long ago: `12s`, `5m`, `7h`, `3d`; `-` for never. A clock that is ahead of ours reads as `0s`.
pub(crate) fn age(now_ms: u64, then_ms: u64) -> String {
    if then_ms == 0 {
        return "-".to_owned();
    }
    let s = now_ms.saturating_sub(then_ms) / 1000;
    match s {
        0..120 => format!("{s}s"),
        120..7_200 => format!("{}m", s / 60),
        7_200..172_800 => format!("{}h", s / 3_600),
        _ => format!("{}d", s / 86_400),
    }
}

/// `2026-11-21T05:18:58.123Z` (RFC 3339).
pub(crate) fn timestamp(ms: u64) -> String {
    let (year, month, day) = civil(ms / 86_400_000);
    let (s, milli) = (ms / 1000 % 86_400, ms % 1000);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{milli:03}Z",
        s / 3600,
        s / 60 % 60,
        s % 60
    )
}

/// `2026-11-21`.
pub(crate) fn date(s: u64) -> String {
    let (year, month, day) = civil(s / 86_400);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Days since 1970 to a date: the years begin in March, so that the leap day is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days.saturating_add(719_468);
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(timestamp(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(timestamp(1_795_238_338_123), "2026-11-21T05:18:58.123Z");
        assert_eq!(date(1_704_067_200), "2024-01-01");
        let _ = timestamp(u64::MAX);
    }

    #[test]
    fn ages_are_short() {
        let now = 1_000_000_000;
        let ages: Vec<String> = [0, 12, 119, 120, 7_200, 200_000]
            .iter()
            .map(|s| age(now, now - s * 1000))
            .collect();
        assert_eq!(ages, ["0s", "12s", "119s", "2m", "2h", "2d"]);
        assert_eq!(age(now, now + 5_000), "0s");
        assert_eq!(age(now, 0), "-");
    }
}
