//! From readings to a level: pure, with hysteresis, and with a reason that a person understands.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::reading::{PowerReading, Supply, Zone};

/// How many readings in a row must be without under-voltage until it counts as over: the supply of a weak board sags
/// for moments, and a reading only sees some of them.
pub const UNDERVOLTAGE_READINGS: u8 = 10;

/// How well the node is supplied with power and cooling, from worst to best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PowerLevel {
    /// The battery is nearly empty, or the board is about to switch off for heat.
    Critical,
    /// The battery is low, the board throttles for heat, or its supply sags.
    Low,
    /// On battery.
    Battery,
    /// On mains, or on a board that says nothing about its supply.
    Mains,
}

/// How bad one quantity is, from worst to best.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Band {
    /// Makes the level [`PowerLevel::Critical`].
    Critical,
    /// Makes the level [`PowerLevel::Low`].
    Low,
    /// No reason for concern.
    #[default]
    Normal,
}

/// Where levels begin and where they end again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Thresholds {
    /// A battery with less is low, percent.
    pub low_percent: u8,
    /// A low battery is no longer low from here on, percent.
    pub low_return_percent: u8,
    /// A battery with less is nearly empty, percent.
    pub critical_percent: u8,
    /// It is no longer nearly empty from here on, percent.
    pub critical_return_percent: u8,
    /// A zone this close below its critical trip is about to switch the board off, millidegrees.
    pub critical_margin_millicelsius: i32,
    /// How much cooler than where it began a zone must be until its heat is over, millidegrees.
    pub heat_return_millicelsius: i32,
    /// Heat that counts as throttling, in place of the zones' own trips; for boards that have none. Millidegrees.
    pub throttle_millicelsius: Option<i32>,
    /// Heat that counts as about to switch off, in place of the zones' own trips. Millidegrees.
    pub critical_millicelsius: Option<i32>,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            low_percent: 30,
            low_return_percent: 35,
            critical_percent: 10,
            critical_return_percent: 15,
            critical_margin_millicelsius: 5000,
            heat_return_millicelsius: 5000,
            throttle_millicelsius: None,
            critical_millicelsius: None,
        }
    }
}

/// Thresholds that contradict each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ThresholdError {
    /// Two values are in the wrong order.
    #[error("{low} = {low_value} must be less than {high} = {high_value}")]
    Order {
        /// The setting that must be lower.
        low: &'static str,
        /// Its value.
        low_value: i64,
        /// The setting that must be higher.
        high: &'static str,
        /// Its value.
        high_value: i64,
    },
    /// A percentage above 100.
    #[error("{setting} = {value} is more than 100 percent")]
    Percent {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: u8,
    },
    /// A margin outside of 0 to 50 degrees.
    #[error("{setting} = {value} is not within 0 and 50000 millidegrees")]
    Margin {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: i32,
    },
}

impl Thresholds {
    /// Whether they make sense together. [`level`] is defined for others too, without their hysteresis.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn check(&self) -> Result<(), ThresholdError> {
        let order = |low: &'static str, low_value: i64, high: &'static str, high_value: i64| {
            let error = ThresholdError::Order {
                low,
                low_value,
                high,
                high_value,
            };
            if low_value < high_value { Ok(()) } else { Err(error) }
        };
        let percent = |setting, value: u8| {
            if value <= 100 {
                Ok(())
            } else {
                Err(ThresholdError::Percent { setting, value })
            }
        };
        let margin = |setting, value: i32| {
            if (0..=50_000).contains(&value) {
                Ok(())
            } else {
                Err(ThresholdError::Margin { setting, value })
            }
        };
        percent("low_return_percent", self.low_return_percent)?;
        percent("critical_return_percent", self.critical_return_percent)?;
        margin("critical_margin_millicelsius", self.critical_margin_millicelsius)?;
        margin("heat_return_millicelsius", self.heat_return_millicelsius)?;
        let (low, critical) = (i64::from(self.low_percent), i64::from(self.critical_percent));
        order("low_percent", low, "low_return_percent", self.low_return_percent.into())?;
        order(
            "critical_percent",
            critical,
            "critical_return_percent",
            self.critical_return_percent.into(),
        )?;
        order("critical_percent", critical, "low_percent", low)?;
        if let (Some(throttle), Some(critical)) = (self.throttle_millicelsius, self.critical_millicelsius) {
            order(
                "throttle_millicelsius",
                throttle.into(),
                "critical_millicelsius",
                critical.into(),
            )?;
        }
        Ok(())
    }
}

/// A level, why, and what the next decision must remember.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerVerdict {
    /// The level.
    pub level: PowerLevel,
    /// Why, in a sentence without full stop.
    pub reason: String,
    /// How bad the charge of the batteries is.
    pub charge: Band,
    /// The zones that are too hot, by name.
    pub heat: BTreeMap<String, Band>,
    /// Readings until under-voltage counts as over; 0 if there was none.
    pub undervoltage: u8,
}

/// The level that follows from a reading. `previous` is the verdict on the reading before; nothing on the first.
///
/// What begins at a threshold ends only at the other side of a band, so that a reading that wanders within the band
/// changes nothing. Each quantity remembers for itself: heat that is over does not keep a battery low.
#[must_use]
pub fn level(reading: &PowerReading, thresholds: &Thresholds, previous: Option<&PowerVerdict>) -> PowerVerdict {
    let before = previous.map_or(Band::Normal, |p| p.charge);
    let (base, charge, supply) = match reading.supply {
        Supply::Mains => (PowerLevel::Mains, Band::Normal, "on mains".to_owned()),
        Supply::Unknown => {
            let text = "the board says nothing about its supply, which counts as mains";
            (PowerLevel::Mains, Band::Normal, text.to_owned())
        }
        Supply::Battery { percent: None } => (
            PowerLevel::Battery,
            before,
            "on battery, which does not say how full it is".to_owned(),
        ),
        Supply::Battery { percent: Some(percent) } => {
            let charge = charge_band(percent, thresholds, before);
            (PowerLevel::Battery, charge, charge_reason(percent, charge, thresholds))
        }
    };
    let mut candidates = vec![(cap(charge).min(base), supply)];
    let mut heat = BTreeMap::new();
    for zone in &reading.zones {
        let before = previous
            .and_then(|p| p.heat.get(&zone.name))
            .copied()
            .unwrap_or_default();
        let limits = Limits::of(zone, thresholds);
        let band = limits.band(zone.millicelsius, thresholds, before);
        if band != Band::Normal {
            candidates.push((cap(band), limits.reason(zone, band, thresholds)));
            heat.insert(zone.name.clone(), band);
        }
    }
    let undervoltage = if reading.undervoltage {
        UNDERVOLTAGE_READINGS
    } else {
        previous.map_or(0, |p| p.undervoltage.min(UNDERVOLTAGE_READINGS).saturating_sub(1))
    };
    if undervoltage > 0 {
        let when = if reading.undervoltage {
            "sags"
        } else {
            "sagged a moment ago"
        };
        candidates.push((
            PowerLevel::Low,
            format!("the board's supply {when} (under-voltage): use a stronger one"),
        ));
    }
    let level = candidates.iter().map(|c| c.0).min().unwrap_or(base);
    let reasons: Vec<String> = candidates.into_iter().filter(|c| c.0 == level).map(|c| c.1).collect();
    PowerVerdict {
        level,
        reason: reasons.join("; "),
        charge,
        heat,
        undervoltage,
    }
}

/// The best level that a band allows.
fn cap(band: Band) -> PowerLevel {
    match band {
        Band::Critical => PowerLevel::Critical,
        Band::Low => PowerLevel::Low,
        Band::Normal => PowerLevel::Mains,
    }
}

fn charge_band(percent: u8, t: &Thresholds, before: Band) -> Band {
    if percent < t.critical_percent || (before == Band::Critical && percent < t.critical_return_percent) {
        Band::Critical
    } else if percent < t.low_percent || (before <= Band::Low && percent < t.low_return_percent) {
        Band::Low
    } else {
        Band::Normal
    }
}

fn charge_reason(percent: u8, band: Band, t: &Thresholds) -> String {
    match band {
        Band::Critical => {
            format!(
                "battery at {percent} %, nearly empty until it reaches {} % again",
                t.critical_return_percent
            )
        }
        Band::Low => format!(
            "battery at {percent} %, low until it reaches {} % again",
            t.low_return_percent
        ),
        Band::Normal => format!("on battery at {percent} %"),
    }
}

/// Where the bands of a zone begin.
struct Limits {
    low: Option<i32>,
    critical: Option<i32>,
}

impl Limits {
    fn of(zone: &Zone, t: &Thresholds) -> Self {
        let margin = |at: i32| at.saturating_sub(t.critical_margin_millicelsius);
        Self {
            low: t.throttle_millicelsius.or(zone.throttles_at),
            critical: t.critical_millicelsius.or(zone.critical_at.map(margin)),
        }
    }

    fn band(&self, now: i32, t: &Thresholds, before: Band) -> Band {
        let end = |at: i32| at.saturating_sub(t.heat_return_millicelsius);
        let in_band = |at: Option<i32>, was: bool| at.is_some_and(|at| now >= at || (was && now >= end(at)));
        if in_band(self.critical, before == Band::Critical) {
            Band::Critical
        // A zone without a throttling trip goes from critical straight to normal.
        } else if in_band(self.low, before <= Band::Low) {
            Band::Low
        } else {
            Band::Normal
        }
    }

    fn reason(&self, zone: &Zone, band: Band, t: &Thresholds) -> String {
        let (at, what) = match band {
            Band::Critical => (self.critical, "close to switching the board off"),
            _ => (self.low, "the board slows down"),
        };
        let until = degrees(at.unwrap_or_default().saturating_sub(t.heat_return_millicelsius));
        format!(
            "{} at {} °C, {what} until it is below {until} °C",
            zone.name,
            degrees(zone.millicelsius)
        )
    }
}

fn degrees(millicelsius: i32) -> String {
    format!("{:.1}", f64::from(millicelsius) / 1000.0)
}

#[cfg(test)]
mod tests;
