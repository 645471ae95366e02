//! This machine, whatever it is.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cnova_devices::{
    ConfiguredDevices, Controller, DeviceConfig, Groups, PowerReading, Pressure, PressureError, StallKind, Trigger,
    available_memory, discover, level, measure,
};

const ROOT: &str = "/";

#[test]
fn accelerators_of_this_machine_are_usable_or_say_why() {
    let found = discover(Path::new(ROOT));
    for accelerator in &found {
        match &accelerator.unusable {
            None => assert!(accelerator.nodes.iter().all(|n| n.exists()) && !accelerator.nodes.is_empty()),
            Some(why) => assert!(!why.to_string().is_empty()),
        }
    }
    assert_eq!(found, discover(Path::new(ROOT)), "the same again");
}

#[test]
fn power_of_this_machine_is_explained() {
    let reading = PowerReading::read(Path::new(ROOT));
    assert!(!level(&reading, &Default::default(), None).reason.is_empty());
}

#[test]
fn capacity_of_this_machine_is_not_more_than_it_has() {
    let found = measure(Path::new(ROOT)).unwrap();
    assert!(found.memory_bytes > 1 << 20 && found.cpu_millis > 0, "{found:?}");
    let cpus = std::thread::available_parallelism().unwrap().get() as u64;
    assert!(found.cpu_millis <= cpus * 1000 + 999, "{found:?} with {cpus} CPUs");
    let available = available_memory(Path::new(ROOT)).unwrap();
    assert!(
        available > 0 && available <= found.memory_bytes,
        "{available} of {found:?}"
    );
}

#[test]
fn groups_of_this_process_exist() {
    let groups = Groups::own(Path::new(ROOT));
    for controller in [Controller::Memory, Controller::Cpu] {
        for folder in groups.folders(controller) {
            assert!(folder.is_dir(), "{}", folder.display());
        }
    }
}

#[test]
fn devices_of_this_machine_are_judged() {
    let device = |name: &str, node: &str| DeviceConfig {
        name: name.into(),
        nodes: vec![node.into()],
        allow_block: false,
        allow: Vec::new(),
    };
    let config = vec![device("null", "/dev/null"), device("zero", "/dev/[z]ero")];
    let devices = ConfiguredDevices::check(Path::new(ROOT), config).unwrap();
    assert_eq!(devices.resolve("null").unwrap(), [Path::new("/dev/null")]);
    assert_eq!(devices.available(), ["null", "zero"]);
    // A link to /proc/self/fd, which is outside of /dev.
    let errors = ConfiguredDevices::check(Path::new(ROOT), vec![device("fd", "/dev/fd")]).unwrap_err();
    assert!(errors.to_string().contains("outside of /dev"), "{errors}");
    if Path::new("/dev/mem").exists() {
        assert!(ConfiguredDevices::check(Path::new(ROOT), vec![device("mem", "/dev/mem")]).is_err());
    }
}

#[test]
fn pressure_of_this_machine_is_read_or_its_absence_explained() {
    match Pressure::read(Path::new(ROOT)) {
        Ok(pressure) => {
            assert!(pressure.cpu.some.avg10 <= 1000 && pressure.memory.full.total_us <= pressure.memory.some.total_us);
        }
        Err(PressureError::Absent { .. } | PressureError::Off { .. }) => {
            eprintln!("skipped: this kernel measures no pressure");
        }
        Err(other) => panic!("{other}"),
    }
    let groups = Path::new("/sys/fs/cgroup");
    let top = [groups.join("unified"), groups.to_owned()]
        .into_iter()
        .find(|g| g.join("cpu.pressure").exists());
    if let Some(top) = top {
        let group = Pressure::read_group(Path::new(ROOT), &top).unwrap();
        assert!(group.cpu.some.avg10 <= 1000);
    }
}

#[test]
fn a_trigger_fires_when_tasks_wait_for_the_cpu() {
    let trigger = match Trigger::new(Path::new("/proc/pressure/cpu"), StallKind::Some, 20_000, 2_000_000) {
        Ok(trigger) => trigger,
        Err(why) => {
            eprintln!("skipped: {why}");
            return;
        }
    };
    let stop = AtomicBool::new(false);
    let tasks = 4 * std::thread::available_parallelism().unwrap().get();
    let fired = std::thread::scope(|scope| {
        for _ in 0..tasks {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let end = Instant::now() + Duration::from_secs(60);
        let mut fired = false;
        while !fired && Instant::now() < end {
            fired = trigger.wait(Duration::from_secs(5)).unwrap_or(false);
        }
        stop.store(true, Ordering::Relaxed);
        fired
    });
    assert!(fired, "{tasks} tasks on fewer CPUs never waited");
}
