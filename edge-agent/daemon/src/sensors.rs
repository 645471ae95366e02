//! How the node fares: pressure, power and heat, and what is plugged in. The core is told what matters to it, so that it
//! sleeps while nothing changes.

use std::path::PathBuf;
use std::time::Duration;

use cnova_agent_core::Event;
use cnova_agent_core::schedule::Pressure;
use cnova_devices::{PowerReading, PowerVerdict, Thresholds, level};
use cnova_shared::wire::v1::PowerLevel;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

use crate::hardware::{Hardware, Inventory};

/// Pressure below this, in thousandths of the time, is calm and told once.
const CALM: u16 = 10;
/// Accelerators and devices are looked for in every so many rounds.
const ROUNDS_PER_INVENTORY: u32 = 2;
const QUEUE: usize = 8;

/// Reads the sensors and remembers what was told last.
#[derive(Debug)]
pub(crate) struct Sensors {
    root: PathBuf,
    thresholds: Thresholds,
    hardware: Hardware,
    power: PowerVerdict,
    inventory: Inventory,
    was_calm: bool,
    round: u32,
}

impl Sensors {
    /// Takes the first readings.
    pub(crate) fn new(root: PathBuf, thresholds: Thresholds, hardware: Hardware) -> Self {
        let power = level(&PowerReading::read(&root), &thresholds, None);
        let inventory = hardware.inventory();
        if let Err(error) = cnova_devices::Pressure::read(&root) {
            tracing::info!(%error, "pressure is not watched");
        }
        Self {
            root,
            thresholds,
            hardware,
            power,
            inventory,
            was_calm: true,
            round: 0,
        }
    }

    /// The newest level and what it was concluded from.
    pub(crate) fn power(&self) -> (PowerLevel, String) {
        (wire_level(self.power.level), self.power.reason.clone())
    }

    /// What is there now.
    pub(crate) fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// One round: what the core must be told. Reads sysfs, which can take a while.
    pub(crate) fn look(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        self.round = self.round.wrapping_add(1);
        events.extend(self.look_at_pressure());
        let verdict = level(&PowerReading::read(&self.root), &self.thresholds, Some(&self.power));
        let changed = verdict.level != self.power.level;
        self.power = verdict;
        if changed {
            let (level, why) = self.power();
            tracing::info!(?level, why, "power");
            events.push(Event::Power { level, why });
        }
        if self.round.is_multiple_of(ROUNDS_PER_INVENTORY) {
            let inventory = self.hardware.inventory();
            if inventory != self.inventory {
                tracing::info!(?inventory, "accelerators and devices changed");
                self.inventory = inventory.clone();
                let Inventory { accelerators, devices } = inventory;
                events.push(Event::Inventory { accelerators, devices });
            }
        }
        events
    }

    /// Nothing where the kernel does not measure it; the core then takes the node for calm.
    fn look_at_pressure(&mut self) -> Option<Event> {
        let read = cnova_devices::Pressure::read(&self.root).ok()?;
        let pressure = Pressure {
            memory_some: read.memory.some.avg10,
            memory_full: read.memory.full.avg10,
            cpu_some: read.cpu.some.avg10,
        };
        let is_calm = pressure.memory_some.max(pressure.memory_full).max(pressure.cpu_some) < CALM;
        let was_calm = std::mem::replace(&mut self.was_calm, is_calm);
        (!is_calm || !was_calm).then_some(Event::Pressure(pressure))
    }

    /// Reads every `period` beside the event loop, until that ends.
    pub(crate) fn start(self, period: Duration) -> mpsc::Receiver<Event> {
        let (tell, told) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            let mut sensors = self;
            let mut rounds = interval(period);
            // After a long sleep of the machine one round is enough.
            rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
            rounds.tick().await;
            loop {
                rounds.tick().await;
                let looked = spawn_blocking(move || {
                    let events = sensors.look();
                    (sensors, events)
                });
                let Ok((back, events)) = looked.await else {
                    return tracing::error!("the sensors are not read any more: reading them failed inside the agent");
                };
                sensors = back;
                for event in events {
                    if tell.send(event).await.is_err() {
                        return;
                    }
                }
            }
        });
        told
    }
}

fn wire_level(level: cnova_devices::PowerLevel) -> PowerLevel {
    match level {
        cnova_devices::PowerLevel::Critical => PowerLevel::Critical,
        cnova_devices::PowerLevel::Low => PowerLevel::Low,
        cnova_devices::PowerLevel::Battery => PowerLevel::Battery,
        cnova_devices::PowerLevel::Mains => PowerLevel::Mains,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn sensors(root: &Path) -> Sensors {
        let (hardware, alarm) = Hardware::new(root.to_owned(), Vec::new());
        assert_eq!(alarm, None);
        Sensors::new(root.to_owned(), Thresholds::default(), hardware)
    }

    fn set(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn psi(root: &Path, memory: &str, cpu: &str) {
        for (file, share) in [("memory", memory), ("cpu", cpu), ("io", "0.00")] {
            let line = |kind: &str| format!("{kind} avg10={share} avg60=0.00 avg300=0.00 total=1\n");
            set(root, &format!("proc/pressure/{file}"), &(line("some") + &line("full")));
        }
    }

    fn pressures(sensors: &mut Sensors) -> Vec<Pressure> {
        let events = sensors.look().into_iter();
        events
            .filter_map(|e| match e {
                Event::Pressure(p) => Some(p),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn a_machine_without_sensors_says_nothing_and_counts_as_on_mains() {
        let root = tempfile::tempdir().unwrap();
        let mut sensors = sensors(root.path());
        assert_eq!(sensors.power().0, PowerLevel::Mains);
        assert_eq!(sensors.inventory(), &Inventory::default());
        for _ in 0..4 {
            assert!(sensors.look().is_empty());
        }
    }

    #[test]
    fn pressure_is_told_while_it_lasts_and_once_when_it_is_over() {
        let root = tempfile::tempdir().unwrap();
        psi(root.path(), "0.20", "0.90");
        let mut sensors = sensors(root.path());
        assert!(pressures(&mut sensors).is_empty());
        psi(root.path(), "12.34", "0.00");
        for _ in 0..2 {
            let told = pressures(&mut sensors);
            assert_eq!(
                told,
                [Pressure {
                    memory_some: 123,
                    memory_full: 123,
                    cpu_some: 0
                }]
            );
        }
        psi(root.path(), "0.00", "0.00");
        assert_eq!(pressures(&mut sensors), [Pressure::default()]);
        assert!(pressures(&mut sensors).is_empty());
        fs::remove_dir_all(root.path().join("proc")).unwrap();
        assert!(pressures(&mut sensors).is_empty());
    }

    #[test]
    fn power_is_told_when_the_level_changes_and_not_with_every_percent() {
        let root = tempfile::tempdir().unwrap();
        let battery = |percent: u32| {
            set(root.path(), "sys/class/power_supply/BAT0/type", "Battery");
            set(root.path(), "sys/class/power_supply/BAT0/status", "Discharging");
            set(
                root.path(),
                "sys/class/power_supply/BAT0/capacity",
                &percent.to_string(),
            );
        };
        battery(60);
        let mut sensors = sensors(root.path());
        assert_eq!(sensors.power().0, PowerLevel::Battery);
        battery(50);
        assert!(sensors.look().is_empty());
        battery(20);
        let told = sensors.look();
        assert!(
            matches!(&told[..], [Event::Power { level: PowerLevel::Low, why }] if why.contains("20 %")),
            "{told:?}"
        );
        assert!(sensors.look().is_empty());
    }
}
