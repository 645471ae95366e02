//! What sysfs says of supplies, batteries, thermal zones and under-voltage.

use std::path::{Path, PathBuf};

use crate::tree::Tree;

/// Supplies, thermal zones and sensors that are looked at, each.
const SENSORS_MAX: usize = 128;
/// Trip points of one zone.
const TRIPS_MAX: usize = 16;
/// Temperatures outside of these are a sensor that is not connected, millidegrees Celsius.
const SANE_MILLICELSIUS: std::ops::RangeInclusive<i32> = -60_000..=200_000;
/// Trip points at or below this are disabled: drivers write 0 or -274000.
const TRIP_MIN_MILLICELSIUS: i32 = 1;

/// Where the power comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Supply {
    /// From outside.
    Mains,
    /// From the node's battery, or the batteries of its UPS.
    Battery {
        /// How full all of them are together, 0 to 100, if they say.
        percent: Option<u8>,
    },
    /// The board says nothing; so do most boards without a battery.
    #[default]
    Unknown,
}

/// A part of the board whose temperature is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// Number and type, for example `0 cpu-thermal`.
    pub name: String,
    /// Its temperature, millidegrees Celsius.
    pub millicelsius: i32,
    /// From here on the kernel slows the board down, millidegrees Celsius.
    pub throttles_at: Option<i32>,
    /// Here the kernel switches the board off, millidegrees Celsius.
    pub critical_at: Option<i32>,
}

/// One look at power and heat.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PowerReading {
    /// Where the power comes from.
    pub supply: Supply,
    /// All zones that answered, in the order of their numbers.
    pub zones: Vec<Zone>,
    /// Whether the board's supply sags, as a Raspberry Pi reports it.
    pub undervoltage: bool,
}

impl PowerReading {
    /// Reads everything. What does not answer is left out.
    #[must_use]
    pub fn read(root: &Path) -> Self {
        let tree = Tree::new(root);
        Self {
            supply: supply(&tree),
            zones: zones(&tree),
            undervoltage: undervoltage(&tree),
        }
    }

    /// The highest temperature, millidegrees Celsius.
    #[must_use]
    pub fn hottest_millicelsius(&self) -> Option<i32> {
        self.zones.iter().map(|z| z.millicelsius).max()
    }
}

/// The folders of a class whose names begin with a prefix, in the order of their numbers.
fn devices(tree: &Tree, class: &str, prefix: &str) -> Vec<(String, PathBuf)> {
    let folder = Path::new("/sys/class").join(class);
    let mut names = tree.names(&folder);
    names.retain(|name| name.starts_with(prefix));
    names.sort_by_key(|name| (name.len(), name.clone()));
    names.truncate(SENSORS_MAX);
    names
        .into_iter()
        .map(|name| (name.clone(), folder.join(name)))
        .collect()
}

/// What one battery says.
struct Battery {
    percent: Option<u8>,
    /// Its size in whatever unit it uses; the unit is the first part.
    full: Option<(&'static str, u64)>,
    discharging: bool,
}

fn supply(tree: &Tree) -> Supply {
    let (mut outside, mut outside_on) = (false, false);
    let mut batteries = Vec::new();
    for (_, folder) in devices(tree, "power_supply", "") {
        // A mouse, a headset, or a port that feeds something else.
        if tree.attribute(&folder, "scope").as_deref() == Some("Device") {
            continue;
        }
        match tree.attribute(&folder, "type").as_deref() {
            Some("Battery" | "UPS") if tree.attribute(&folder, "present").as_deref() != Some("0") => {
                batteries.push(battery(tree, &folder));
            }
            Some("Battery" | "UPS") | None => {}
            Some(_) => {
                outside = true;
                outside_on |= tree.number::<u8>(&folder, "online").is_some_and(|n| n > 0);
            }
        }
    }
    let discharging = batteries.iter().any(|b| b.discharging);
    // Charging, or full and not discharging, needs power from outside even if no supply says so: a UPS on a header.
    let fed = !outside && !batteries.is_empty() && !discharging;
    if outside_on || fed {
        Supply::Mains
    } else if batteries.is_empty() {
        Supply::Unknown
    } else {
        Supply::Battery {
            percent: percent(&batteries),
        }
    }
}

fn battery(tree: &Tree, folder: &Path) -> Battery {
    let full = |name: &'static str| Some((name, tree.number::<u64>(folder, name).filter(|n| *n > 0)?));
    let coarse = || match tree.attribute(folder, "capacity_level")?.as_str() {
        "Critical" => Some(5),
        "Low" => Some(20),
        "Normal" => Some(60),
        "High" => Some(80),
        "Full" => Some(100),
        _ => None,
    };
    let status = tree.attribute(folder, "status");
    Battery {
        percent: tree
            .number::<u8>(folder, "capacity")
            .map(|p| p.min(100))
            .or_else(coarse),
        full: full("energy_full").or_else(|| full("charge_full")),
        // A battery that says nothing is believed to discharge: the cautious reading.
        discharging: matches!(status.as_deref(), None | Some("Discharging" | "Unknown")),
    }
}

/// All batteries together: by size if all say theirs in one unit, else each counts the same.
fn percent(batteries: &[Battery]) -> Option<u8> {
    let known: Vec<(&Battery, u8)> = batteries.iter().filter_map(|b| Some((b, b.percent?))).collect();
    let unit = known.first().and_then(|(b, _)| b.full.map(|f| f.0));
    let sized = unit.is_some() && known.iter().all(|(b, _)| b.full.map(|f| f.0) == unit);
    let weight = |b: &Battery| b.full.filter(|_| sized).map_or(1, |f| u128::from(f.1));
    let total: u128 = known.iter().map(|(b, _)| weight(b)).sum();
    let charge: u128 = known.iter().map(|(b, p)| weight(b) * u128::from(*p)).sum();
    u8::try_from(charge.checked_div(total)?).ok()
}

fn zones(tree: &Tree) -> Vec<Zone> {
    let found = devices(tree, "thermal", "thermal_zone");
    found
        .iter()
        .filter_map(|(name, folder)| zone(tree, name, folder))
        .collect()
}

fn zone(tree: &Tree, name: &str, folder: &Path) -> Option<Zone> {
    let millicelsius = tree
        .number::<i32>(folder, "temp")
        .filter(|t| SANE_MILLICELSIUS.contains(t))?;
    let (mut passive, mut hot, mut critical) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..TRIPS_MAX {
        // Numbers may have gaps.
        let Some(kind) = tree.attribute(folder, &format!("trip_point_{number}_type")) else {
            continue;
        };
        let at = tree.number::<i32>(folder, &format!("trip_point_{number}_temp"));
        let Some(at) = at.filter(|t| *t >= TRIP_MIN_MILLICELSIUS && SANE_MILLICELSIUS.contains(t)) else {
            continue;
        };
        match kind.as_str() {
            "passive" => passive.push(at),
            "hot" => hot.push(at),
            "critical" => critical.push(at),
            _ => {}
        }
    }
    passive.sort_unstable();
    // This governor starts to look at the first passive trip and slows the board down for the second.
    let skip = usize::from(passive.len() > 1 && tree.attribute(folder, "policy").as_deref() == Some("power_allocator"));
    let kind = tree.attribute(folder, "type").unwrap_or_default();
    let number = name.trim_start_matches("thermal_zone");
    Some(Zone {
        name: format!("{number} {kind}").trim().to_owned(),
        millicelsius,
        throttles_at: passive.into_iter().skip(skip).chain(hot).min(),
        critical_at: critical.into_iter().min(),
    })
}

fn undervoltage(tree: &Tree) -> bool {
    devices(tree, "hwmon", "hwmon").iter().any(|(_, folder)| {
        tree.attribute(folder, "name").as_deref() == Some("rpi_volt")
            && tree.number::<u8>(folder, "in0_lcrit_alarm").is_some_and(|n| n > 0)
    })
}
