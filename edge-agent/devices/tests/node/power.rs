//! Power and heat in trees as drivers make them.

use cnova_devices::{PowerReading, Supply, Zone};

use crate::fixture::Node;

fn supply(build: impl FnOnce(&Node)) -> Supply {
    let node = Node::new();
    build(&node);
    PowerReading::read(node.root()).supply
}

fn psy(node: &Node, name: &str, files: &[(&str, &str)]) {
    node.files(&format!("/sys/devices/x/power_supply/{name}"), files);
    node.link(
        &format!("/sys/class/power_supply/{name}"),
        &format!("../../devices/x/power_supply/{name}"),
    );
}

fn battery(percent: Option<u8>) -> Supply {
    Supply::Battery { percent }
}

#[test]
fn a_board_without_sensors_says_nothing() {
    assert_eq!(PowerReading::read(Node::new().root()), PowerReading::default());
    assert_eq!(PowerReading::default().hottest_millicelsius(), None);
}

#[test]
fn mains_and_a_battery() {
    let with = |online: &'static str, status: &'static str| {
        supply(|n| {
            psy(n, "AC", &[("type", "Mains"), ("online", online)]);
            psy(
                n,
                "BAT0",
                &[
                    ("type", "Battery"),
                    ("status", status),
                    ("capacity", "42"),
                    ("present", "1"),
                ],
            );
        })
    };
    assert_eq!(with("1", "Charging"), Supply::Mains);
    assert_eq!(with("1", "Discharging"), Supply::Mains);
    assert_eq!(with("0", "Discharging"), battery(Some(42)));
    assert_eq!(with("0", "Not charging"), battery(Some(42)));
}

#[test]
fn a_ups_on_a_header_has_no_mains_supply() {
    let with = |status: &'static str| {
        supply(|n| {
            psy(
                n,
                "ups",
                &[
                    ("type", "UPS"),
                    ("scope", "System"),
                    ("status", status),
                    ("capacity", "90"),
                ],
            )
        })
    };
    assert_eq!(with("Full"), Supply::Mains);
    assert_eq!(with("Charging"), Supply::Mains);
    assert_eq!(with("Discharging"), battery(Some(90)));
    let silent = supply(|n| psy(n, "ups", &[("type", "Battery"), ("capacity_level", "Low")]));
    assert_eq!(silent, battery(Some(20)));
}

#[test]
fn peripherals_and_empty_bays_do_not_count() {
    let found = supply(|n| {
        psy(
            n,
            "hidpp_battery_0",
            &[
                ("type", "Battery"),
                ("scope", "Device"),
                ("status", "Discharging"),
                ("capacity", "3"),
            ],
        );
        psy(n, "port0", &[("type", "USB"), ("scope", "Device"), ("online", "1")]);
        psy(
            n,
            "BAT1",
            &[("type", "Battery"), ("present", "0"), ("status", "Unknown")],
        );
    });
    assert_eq!(found, Supply::Unknown);
    let off = supply(|n| psy(n, "usb", &[("type", "USB"), ("online", "0")]));
    assert_eq!(off, Supply::Unknown);
}

#[test]
fn several_batteries_count_by_their_size_if_they_say_it() {
    let with = |full: [&'static str; 2], unit: [&'static str; 2]| {
        supply(|n| {
            let status = ("status", "Discharging");
            psy(
                n,
                "BAT0",
                &[("type", "Battery"), status, ("capacity", "100"), (unit[0], full[0])],
            );
            psy(
                n,
                "BAT1",
                &[
                    ("type", "Battery"),
                    ("status", "Full"),
                    ("capacity", "20"),
                    (unit[1], full[1]),
                ],
            );
        })
    };
    assert_eq!(with(["10", "30"], ["energy_full", "energy_full"]), battery(Some(40)));
    assert_eq!(with(["10", "30"], ["energy_full", "charge_full"]), battery(Some(60)));
    assert_eq!(with(["0", "30"], ["energy_full", "energy_full"]), battery(Some(60)));
    let odd = supply(|n| {
        psy(
            n,
            "B",
            &[("type", "Battery"), ("capacity", "250"), ("status", "Discharging")],
        )
    });
    assert_eq!(odd, battery(Some(100)));
    let none = supply(|n| {
        psy(
            n,
            "B",
            &[("type", "Battery"), ("capacity", "-5"), ("status", "Discharging")],
        )
    });
    assert_eq!(none, battery(None));
}

fn trips(node: &Node, zone: u32, kind: &str, temp: &str, policy: &str, trips: &[(&str, &str)]) {
    let folder = format!("/sys/devices/virtual/thermal/thermal_zone{zone}");
    node.files(&folder, &[("type", kind), ("temp", temp), ("policy", policy)]);
    for (number, (kind, at)) in trips.iter().enumerate() {
        node.file(&format!("{folder}/trip_point_{number}_type"), kind);
        node.file(&format!("{folder}/trip_point_{number}_temp"), at);
    }
    node.link(
        &format!("/sys/class/thermal/thermal_zone{zone}"),
        &format!("../../devices/virtual/thermal/thermal_zone{zone}"),
    );
}

#[test]
fn zones_are_read_with_the_trips_that_matter() {
    let node = Node::new();
    let rockchip = [("passive", "75000"), ("passive", "85000"), ("critical", "115000")];
    trips(&node, 0, "soc-thermal", "61000", "power_allocator", &rockchip);
    trips(&node, 2, "soc-thermal", "62000", "step_wise", &rockchip);
    trips(
        &node,
        10,
        "acpitz",
        "27800",
        "step_wise",
        &[("active", "50000"), ("hot", "95000"), ("passive", "0")],
    );
    trips(
        &node,
        3,
        "x86_pkg_temp",
        "55000",
        "step_wise",
        &[("passive", "-274000"), ("passive", "0")],
    );
    trips(&node, 4, "loose wire", "-274000", "step_wise", &[]);
    trips(&node, 5, "iwlwifi_1", "", "step_wise", &[]);
    let reading = PowerReading::read(node.root());
    let zone = |name: &str, millicelsius, throttles_at, critical_at| Zone {
        name: name.into(),
        millicelsius,
        throttles_at,
        critical_at,
    };
    assert_eq!(
        reading.zones,
        [
            zone("0 soc-thermal", 61_000, Some(85_000), Some(115_000)),
            zone("2 soc-thermal", 62_000, Some(75_000), Some(115_000)),
            zone("3 x86_pkg_temp", 55_000, None, None),
            zone("10 acpitz", 27_800, Some(95_000), None),
        ]
    );
    assert_eq!(reading.hottest_millicelsius(), Some(62_000));
}

#[test]
fn a_raspberry_pi_reports_under_voltage() {
    let sags = |name: &str, alarm: &str| {
        let node = Node::new();
        node.files(
            "/sys/class/hwmon/hwmon0",
            &[("name", "cpu_thermal"), ("in0_lcrit_alarm", "1")],
        );
        node.files("/sys/class/hwmon/hwmon1", &[("name", name), ("in0_lcrit_alarm", alarm)]);
        PowerReading::read(node.root()).undervoltage
    };
    assert!(sags("rpi_volt", "1"));
    assert!(!sags("rpi_volt", "0"));
    assert!(!sags("other", "1"));
}
