use proptest::prelude::*;

use super::*;

fn battery(percent: u8) -> PowerReading {
    PowerReading {
        supply: Supply::Battery { percent: Some(percent) },
        ..PowerReading::default()
    }
}

fn heat(millicelsius: i32) -> PowerReading {
    PowerReading {
        supply: Supply::Mains,
        zones: vec![zone("0 cpu", millicelsius)],
        undervoltage: false,
    }
}

fn zone(name: &str, millicelsius: i32) -> Zone {
    Zone {
        name: name.into(),
        millicelsius,
        throttles_at: Some(80_000),
        critical_at: Some(100_000),
    }
}

/// The levels of readings one after the other.
fn levels(readings: impl IntoIterator<Item = PowerReading>) -> Vec<PowerLevel> {
    let mut previous = None;
    let mut found = Vec::new();
    for reading in readings {
        let verdict = level(&reading, &Thresholds::default(), previous.as_ref());
        assert!(!verdict.reason.is_empty());
        found.push(verdict.level);
        previous = Some(verdict);
    }
    found
}

#[test]
fn a_battery_runs_down_and_is_charged_again() {
    use PowerLevel::{Battery, Critical, Low};
    let percents = [100, 30, 29, 34, 35, 29, 10, 9, 14, 15, 30, 35];
    let expected = [
        Battery, Battery, Low, Low, Battery, Low, Low, Critical, Critical, Low, Low, Battery,
    ];
    assert_eq!(levels(percents.map(battery)), expected);
}

#[test]
fn a_board_heats_up_and_cools_down() {
    use PowerLevel::{Critical, Low, Mains};
    let degrees = [79, 80, 75, 74, 79, 94, 95, 99, 90, 89, 75, 74];
    let expected = [
        Mains, Low, Low, Mains, Mains, Low, Critical, Critical, Critical, Low, Low, Mains,
    ];
    assert_eq!(levels(degrees.map(|d| heat(d * 1000))), expected);
}

#[test]
fn heat_that_is_over_does_not_keep_the_battery_low_nor_one_zone_another() {
    let mut hot = battery(33);
    hot.zones = vec![zone("0 cpu", 85_000), zone("1 gpu", 77_000)];
    let first = level(&hot, &Thresholds::default(), None);
    assert_eq!((first.level, first.charge), (PowerLevel::Low, Band::Normal));
    assert_eq!(first.heat.keys().collect::<Vec<_>>(), ["0 cpu"]);
    hot.zones[0].millicelsius = 60_000;
    let second = level(&hot, &Thresholds::default(), Some(&first));
    assert_eq!(
        (second.level, second.reason.as_str()),
        (PowerLevel::Battery, "on battery at 33 %")
    );
}

#[test]
fn under_voltage_holds_for_some_readings() {
    let sag = PowerReading {
        undervoltage: true,
        ..PowerReading::default()
    };
    let fine = PowerReading::default();
    let readings = std::iter::once(sag).chain(std::iter::repeat_n(fine, usize::from(UNDERVOLTAGE_READINGS)));
    let found = levels(readings);
    let (last, held) = found.split_last().unwrap();
    assert!(held.iter().all(|l| *l == PowerLevel::Low), "{held:?}");
    assert_eq!(*last, PowerLevel::Mains);
}

#[test]
fn the_worst_cause_decides_and_all_of_its_kind_are_named() {
    let mut reading = battery(20);
    reading.zones = vec![zone("0 cpu", 96_000), zone("1 gpu", 97_500)];
    let verdict = level(&reading, &Thresholds::default(), None);
    assert_eq!(verdict.level, PowerLevel::Critical);
    let expected = "0 cpu at 96.0 °C, close to switching the board off until it is below 90.0 °C; \
                    1 gpu at 97.5 °C, close to switching the board off until it is below 90.0 °C";
    assert_eq!(verdict.reason, expected);
}

#[test]
fn the_operator_can_set_heat_limits_for_boards_without_trips() {
    let thresholds = Thresholds {
        throttle_millicelsius: Some(60_000),
        critical_millicelsius: Some(70_000),
        ..Thresholds::default()
    };
    thresholds.check().unwrap();
    let mut reading = heat(65_000);
    reading.zones[0].throttles_at = None;
    reading.zones[0].critical_at = None;
    assert_eq!(level(&reading, &Thresholds::default(), None).level, PowerLevel::Mains);
    assert_eq!(level(&reading, &thresholds, None).level, PowerLevel::Low);
    reading.zones[0].millicelsius = 70_000;
    assert_eq!(level(&reading, &thresholds, None).level, PowerLevel::Critical);
}

#[test]
fn a_battery_that_stops_saying_its_charge_stays_where_it_was() {
    let low = level(&battery(20), &Thresholds::default(), None);
    let silent = PowerReading {
        supply: Supply::Battery { percent: None },
        ..PowerReading::default()
    };
    assert_eq!(
        level(&silent, &Thresholds::default(), Some(&low)).level,
        PowerLevel::Low
    );
    assert_eq!(level(&silent, &Thresholds::default(), None).level, PowerLevel::Battery);
}

#[test]
fn contradicting_thresholds_are_named() {
    type Spoil = fn(&mut Thresholds);
    let cases: [(Spoil, &str); 6] = [
        (|t| t.low_return_percent = 101, "low_return_percent = 101 is more"),
        (
            |t| t.low_return_percent = 30,
            "low_percent = 30 must be less than low_return_percent = 30",
        ),
        (
            |t| t.critical_percent = 15,
            "critical_percent = 15 must be less than critical_return_percent",
        ),
        (
            |t| (t.low_percent, t.critical_percent) = (5, 5),
            "must be less than low_percent = 5",
        ),
        (
            |t| t.heat_return_millicelsius = -1,
            "heat_return_millicelsius = -1 is not within",
        ),
        (
            |t| (t.throttle_millicelsius, t.critical_millicelsius) = (Some(2), Some(1)),
            "throttle_millicelsius = 2 must",
        ),
    ];
    Thresholds::default().check().unwrap();
    for (spoil, expected) in cases {
        let mut thresholds = Thresholds::default();
        spoil(&mut thresholds);
        let message = thresholds.check().unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn levels_are_ordered_and_are_written_like_those_of_manifests() {
    assert!(PowerLevel::Critical < PowerLevel::Low && PowerLevel::Low < PowerLevel::Battery);
    assert!(PowerLevel::Battery < PowerLevel::Mains);
    assert_eq!(serde_json::to_string(&PowerLevel::Mains).unwrap(), "\"mains\"");
}

fn changes(found: &[PowerLevel]) -> usize {
    found.windows(2).filter(|pair| pair[0] != pair[1]).count()
}

fn any_supply() -> impl Strategy<Value = Supply> {
    prop_oneof![
        Just(Supply::Mains),
        Just(Supply::Unknown),
        any::<Option<u8>>().prop_map(|percent| Supply::Battery { percent }),
    ]
}

prop_compose! {
    fn any_reading()(
        supply in any_supply(),
        zones in prop::collection::vec((0u8..3, any::<i32>(), any::<Option<i32>>(), any::<Option<i32>>()), 0..4),
        undervoltage in any::<bool>(),
    ) -> PowerReading {
        let zones = zones.into_iter().map(|(name, millicelsius, throttles_at, critical_at)| Zone {
            name: name.to_string(), millicelsius, throttles_at, critical_at,
        });
        PowerReading { supply, zones: zones.collect(), undervoltage }
    }
}

prop_compose! {
    fn any_thresholds()(percents in any::<[u8; 4]>(), heat in any::<[i32; 2]>(), set in any::<[Option<i32>; 2]>())
        -> Thresholds {
        Thresholds {
            low_percent: percents[0],
            low_return_percent: percents[1],
            critical_percent: percents[2],
            critical_return_percent: percents[3],
            critical_margin_millicelsius: heat[0],
            heat_return_millicelsius: heat[1],
            throttle_millicelsius: set[0],
            critical_millicelsius: set[1],
        }
    }
}

proptest! {
    /// A charge that wanders across one end of a band, but not across the other, changes the level once at most.
    #[test]
    fn charge_does_not_flap(
        start in 0u8..=100,
        low in prop::sample::select(vec![29u8, 30, 9, 10]),
        walk in prop::collection::vec(0u8..=5, 1..60),
    ) {
        let readings = std::iter::once(battery(start)).chain(walk.into_iter().map(|step| battery(low + step)));
        // The step from the start to the band may be one over several levels.
        prop_assert!(changes(&levels(readings)[1..]) <= 1);
    }

    #[test]
    fn heat_does_not_flap(
        start in 20i32..=110,
        low in prop::sample::select(vec![74_999, 75_000, 89_999, 90_000]),
        walk in prop::collection::vec(prop_oneof![Just(0), 0i32..=5000, Just(5000)], 1..60),
    ) {
        let readings = std::iter::once(heat(start * 1000)).chain(walk.into_iter().map(|step| heat(low + step)));
        prop_assert!(changes(&levels(readings)[1..]) <= 1);
    }

    /// Noise on a slow discharge changes the level no more often than the discharge itself does.
    #[test]
    fn noise_on_a_discharge_is_not_seen(noise in prop::collection::vec(0u8..=2, 101)) {
        let percents = (0..=100u8).rev().zip(noise).map(|(percent, noise)| (percent + noise).min(100));
        let readings = percents.map(battery);
        prop_assert_eq!(changes(&levels(readings)), 2);
    }

    /// Any sequence of readings and any thresholds: a reason is there, and the same reading twice gives the same level
    /// again (but for under-voltage, which is counted down).
    #[test]
    fn every_verdict_is_explained_and_settled(
        readings in prop::collection::vec(any_reading(), 1..8), thresholds in any_thresholds()
    ) {
        let mut previous: Option<PowerVerdict> = None;
        for mut reading in readings {
            let mut names = std::collections::BTreeSet::new();
            reading.zones.retain(|z| names.insert(z.name.clone()));
            let verdict = level(&reading, &thresholds, previous.as_ref());
            prop_assert!(!verdict.reason.is_empty());
            let again = level(&reading, &Thresholds { ..thresholds }, Some(&verdict));
            if verdict.undervoltage == 0 || reading.undervoltage {
                prop_assert_eq!(again.level, verdict.level);
            }
            previous = Some(verdict);
        }
    }

    /// Worse readings never give a better level.
    #[test]
    fn less_charge_or_more_heat_is_never_better(percent in 1u8..=100, degrees in 0i32..120_000, history in 0u8..=100) {
        let before = level(&battery(history), &Thresholds::default(), None);
        let at = |percent, degrees| {
            let mut reading = battery(percent);
            reading.zones = vec![zone("0 cpu", degrees)];
            level(&reading, &Thresholds::default(), Some(&before)).level
        };
        prop_assert!(at(percent - 1, degrees) <= at(percent, degrees));
        prop_assert!(at(percent, degrees + 1000) <= at(percent, degrees));
    }
}
