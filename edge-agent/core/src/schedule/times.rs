//! Cron and time windows, by the clock of a time zone.
//!
//! A schedule that names hours means the clock on the wall: a firing that the change to summer time skips comes as much
//! later as the clock was put on, and one that the change back repeats comes once. A schedule for every hour (`*` in the
//! hour's field) means real time, and goes on evenly through both.

use std::collections::BTreeMap;

use cnova_shared::ids::WorkloadId;
use cnova_shared::wire::v1::{Schedule, Workload};
use cronexpr::{Crontab, MakeTimestamp};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::{Candidate, Node, Reason};

/// A firing may always start a job this late, seconds: an agent is busy at times.
pub const LATE_MIN_S: u64 = 60;
/// A wall clock may be set at any time: while something waits for it, it is looked at this often, milliseconds.
pub const RECHECK_MS: u64 = 30_000;
/// At most so many firings are looked at for one answer; a repeated hour has 60.
const STEPS_MAX: usize = 200;

/// What the clock says of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    /// It has no schedule.
    Always,
    /// Its window is open.
    Open {
        /// Since when, seconds since 1970.
        since_s: u64,
        /// Whether this firing is new to it.
        fresh: bool,
    },
    /// Its window is closed until then.
    Closed {
        /// Seconds since 1970, if it ever opens again.
        next_s: Option<u64>,
    },
    /// It is to be started once for this firing.
    Due {
        /// Seconds since 1970.
        at_s: u64,
    },
    /// It is not to be started until then.
    NotDue {
        /// In its zone, if there is a time to come.
        next: Option<String>,
    },
    /// The clock cannot be trusted.
    ClockUnset,
    /// The schedule cannot be read.
    Broken(String),
}

impl Gate {
    /// Whether a firing came that the workload has not dealt with.
    pub(super) const fn is_fresh(&self) -> bool {
        matches!(self, Self::Due { .. } | Self::Open { fresh: true, .. })
    }

    /// Why it is not started now.
    pub(super) fn hold(&self) -> Option<Reason> {
        match self {
            Self::Always | Self::Open { .. } | Self::Due { .. } | Self::Closed { .. } => None,
            Self::NotDue { next } => Some(Reason::NotDue { next: next.clone() }),
            Self::ClockUnset => Some(Reason::Clock),
            Self::Broken(why) => Some(Reason::Schedule(why.clone())),
        }
    }

    pub(super) const fn occurrence(&self) -> u64 {
        match self {
            Self::Open { since_s, .. } => *since_s,
            Self::Due { at_s } => *at_s,
            _ => 0,
        }
    }
}

/// A schedule, read.
#[derive(Clone, Debug)]
struct Plan {
    written: Schedule,
    zone: TimeZone,
    /// Evaluated in real time, or on the wall clock as if there were no changes of it.
    cron: Crontab,
    by_wall_clock: bool,
}

/// All schedules that were read, and when one of them says something else.
#[derive(Clone, Debug, Default)]
pub(super) struct Times {
    plans: BTreeMap<WorkloadId, Result<Plan, String>>,
    timeout: Option<u64>,
}

impl Times {
    /// Forgets what is not asked for any more.
    pub(super) fn begin(&mut self, candidates: &[Candidate<'_>], node: &Node<'_>) {
        let scheduled: BTreeMap<&WorkloadId, &Schedule> = candidates
            .iter()
            .filter_map(|c| Some((&c.workload.id, c.workload.schedule.as_ref()?)))
            .collect();
        self.plans.retain(|id, plan| match (scheduled.get(id), plan) {
            (Some(now), Ok(plan)) => plan.written == **now,
            _ => false,
        });
        self.timeout = (!scheduled.is_empty()).then_some(node.mono_ms + RECHECK_MS);
    }

    pub(super) const fn timeout(&self) -> Option<u64> {
        self.timeout
    }

    /// What the clock says of one workload; `fired_s` is the newest firing that it has dealt with.
    pub(super) fn gate(&mut self, workload: &Workload, fired_s: u64, node: &Node<'_>) -> Gate {
        let Some(schedule) = &workload.schedule else {
            return Gate::Always;
        };
        let Some(now_s) = node.clock_s else {
            return Gate::ClockUnset;
        };
        let plan = self
            .plans
            .entry(workload.id.clone())
            .or_insert_with(|| Plan::read(schedule));
        let plan = match plan {
            Ok(plan) => plan,
            Err(why) => return Gate::Broken(why.clone()),
        };
        let next = plan.next_after(now_s);
        let (gate, changes_s) = match schedule.window_seconds {
            Some(length) => match plan.next_after(now_s.saturating_sub(length)).filter(|f| *f <= now_s) {
                Some(since_s) => {
                    let fresh = since_s > fired_s;
                    (Gate::Open { since_s, fresh }, Some(since_s + length))
                }
                None => (Gate::Closed { next_s: next }, next),
            },
            None => {
                let since = now_s.saturating_sub(schedule.late_seconds.max(LATE_MIN_S)).max(fired_s);
                match plan.next_after(since).filter(|f| *f <= now_s) {
                    Some(at_s) => (Gate::Due { at_s }, next),
                    None => (
                        Gate::NotDue {
                            next: next.map(|s| plan.show(s)),
                        },
                        next,
                    ),
                }
            }
        };
        // The wall clock is only counted on for short; see RECHECK_MS.
        if let Some(at_ms) = changes_s.map(|s| {
            node.mono_ms
                .saturating_add(s.saturating_sub(now_s).saturating_mul(1000))
        }) {
            self.timeout = Some(self.timeout.map_or(at_ms, |t| t.min(at_ms)));
        }
        gate
    }
}

/// Whether a window is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening {
    /// It is.
    Open,
    /// It is not; when it opens next, in its zone.
    Closed(Option<String>),
    /// It cannot be read.
    Broken(String),
}

/// Whether a window that is nobody's workload's is open at `now_s`, seconds since 1970. One without a length is open for
/// [`LATE_MIN_S`], or for as long as it may come late.
#[must_use]
pub fn opening(window: &Schedule, now_s: u64) -> Opening {
    let plan = match Plan::read(window) {
        Ok(plan) => plan,
        Err(why) => return Opening::Broken(why),
    };
    let length = window.window_seconds.unwrap_or(window.late_seconds.max(LATE_MIN_S));
    match plan.next_after(now_s.saturating_sub(length)) {
        Some(since) if since <= now_s => Opening::Open,
        next => Opening::Closed(next.map(|s| plan.show(s))),
    }
}

/// A time as a person of the schedule's zone writes it.
pub(super) fn in_zone(workload: &Workload, at_s: Option<u64>) -> Option<String> {
    let plan = Plan::read(workload.schedule.as_ref()?).ok()?;
    Some(plan.show(at_s?))
}

impl Plan {
    fn read(written: &Schedule) -> Result<Self, String> {
        let zone =
            TimeZone::get(&written.zone).map_err(|_| format!("the time zone {:?} is not known here", written.zone))?;
        let hours = written.cron.split_whitespace().nth(1).unwrap_or_default();
        let by_wall_clock = !hours.starts_with('*');
        let name = if by_wall_clock { "UTC" } else { written.zone.as_str() };
        let cron = cronexpr::parse_crontab(&format!("{} {name}", written.cron.trim()))
            .map_err(|e| format!("{:?} is not a schedule: {}", written.cron, last_line(&e.to_string())))?;
        Ok(Self {
            written: written.clone(),
            zone,
            cron,
            by_wall_clock,
        })
    }

    /// The first firing after `after_s`, seconds since 1970.
    fn next_after(&self, after_s: u64) -> Option<u64> {
        let after = Timestamp::from_second(i64::try_from(after_s).ok()?).ok()?;
        if !self.by_wall_clock {
            let next = self.cron.find_next(MakeTimestamp(after)).ok()?;
            return u64::try_from(next.timestamp().as_second()).ok();
        }
        let mut wall = after.to_zoned(self.zone.clone()).datetime();
        for _ in 0..STEPS_MAX {
            let as_if_utc = TimeZone::UTC.to_timestamp(wall).ok()?;
            wall = self.cron.find_next(MakeTimestamp(as_if_utc)).ok()?.datetime();
            // What is skipped comes later by as much as the clock was put on; what is repeated comes the first time.
            let real = self.zone.to_timestamp(wall).ok()?;
            if real > after {
                return u64::try_from(real.as_second()).ok();
            }
        }
        None
    }

    fn show(&self, at_s: u64) -> String {
        let at = i64::try_from(at_s).ok().and_then(|s| Timestamp::from_second(s).ok());
        at.map_or_else(
            || format!("{at_s} s after 1970"),
            |t| {
                let zoned = t.to_zoned(self.zone.clone());
                format!("{} {}", zoned.strftime("%Y-%m-%d %H:%M"), self.written.zone)
            },
        )
    }
}

/// Where cronexpr says what is wrong; the lines before repeat the text and point into it.
fn last_line(text: &str) -> &str {
    text.lines()
        .rev()
        .map(str::trim)
        .find(|l| !l.is_empty())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(cron: &str, zone: &str) -> Plan {
        Plan::read(&Schedule {
            cron: cron.into(),
            zone: zone.into(),
            window_seconds: None,
            late_seconds: 0,
        })
        .unwrap()
    }

    fn s(at: &str) -> u64 {
        u64::try_from(at.parse::<Timestamp>().unwrap().as_second()).unwrap()
    }

    fn firings(cron: &str, zone: &str, after: &str, n: usize) -> Vec<String> {
        let plan = plan(cron, zone);
        let mut at = s(after);
        (0..n)
            .map(|_| {
                at = plan.next_after(at).unwrap();
                Timestamp::from_second(i64::try_from(at).unwrap()).unwrap().to_string()
            })
            .collect()
    }

    #[test]
    fn a_skipped_hour_comes_later_and_a_repeated_one_once() {
        // Berlin puts the clock on at 02:00 on 2027-03-28 and back at 03:00 on 2027-10-31.
        assert_eq!(
            firings("30 2 * * *", "Europe/Berlin", "2027-03-27T00:00:00Z", 3),
            ["2027-03-27T01:30:00Z", "2027-03-28T01:30:00Z", "2027-03-29T00:30:00Z"]
        );
        assert_eq!(
            firings("30 2 * * *", "Europe/Berlin", "2027-10-30T12:00:00Z", 2),
            ["2027-10-31T00:30:00Z", "2027-11-01T01:30:00Z"]
        );
        // In the second pass of the repeated hour nothing is due again.
        assert_eq!(
            firings("30 2 * * *", "Europe/Berlin", "2027-10-31T01:10:00Z", 1),
            ["2027-11-01T01:30:00Z"]
        );
    }

    #[test]
    fn what_runs_every_hour_goes_on_evenly() {
        assert_eq!(
            firings("0 * * * *", "Europe/Berlin", "2027-03-27T23:30:00Z", 3),
            ["2027-03-28T00:00:00Z", "2027-03-28T01:00:00Z", "2027-03-28T02:00:00Z"]
        );
        assert_eq!(
            firings("0 * * * *", "Europe/Berlin", "2027-10-30T23:30:00Z", 3),
            ["2027-10-31T00:00:00Z", "2027-10-31T01:00:00Z", "2027-10-31T02:00:00Z"]
        );
    }

    #[test]
    fn half_hour_zones_and_leap_days() {
        assert_eq!(
            firings("0 6 29 2 *", "Asia/Kolkata", "2026-11-21T00:00:00Z", 1),
            ["2028-02-29T00:30:00Z"]
        );
        assert_eq!(plan("0 6 31 2 *", "UTC").next_after(s("2026-11-21T00:00:00Z")), None);
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        let read = |cron: &str, zone: &str| {
            Plan::read(&Schedule {
                cron: cron.into(),
                zone: zone.into(),
                window_seconds: None,
                late_seconds: 0,
            })
            .unwrap_err()
        };
        assert!(read("0 6 * * *", "Mars/Base").contains("\"Mars/Base\""));
        assert!(read("61 6 * * *", "UTC").contains("\"61 6 * * *\" is not a schedule"));
    }
}
