//! An agent that starts after a power cut, with nobody above it.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::hub::{App, Hub};
use super::table::{Table, percentile};
use super::wrong;
use crate::demo::DemoError;
use crate::demo::fleet::Fleet;

const ROUNDS: usize = 10;
const WORKLOADS: usize = 10;
const PATIENCE: Duration = Duration::from_secs(60);
const NODE: &str = "plc-1";
const OTHER_BOOT: &str = "00000000-0000-4000-8000-000000000000";

/// Ten cached workloads, ten starts.
pub(super) fn measure(fleet: &mut Fleet, hub: &Hub, table: &mut Table) -> Result<(), DemoError> {
    let app = App::at("ten", "plant-7/line-2/plc-1", WORKLOADS);
    let generation = hub.apply(&app, 0)?;
    hub.wait_reported(&app, generation)?;
    for node in ["hub-1", "area-gw", "line-gw", "plc-2", "plc-3", super::DIRECT] {
        fleet.kill(node);
    }
    let (mut first, mut last) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        power_cut(fleet)?;
        let (one, all) = start(fleet)?;
        first.push(one);
        last.push(all);
        sleep(Duration::from_secs(1));
    }
    let how = format!(
        "{ROUNDS} starts, hub and gateways killed, state as after a machine restart; from before the spawn of the agent"
    );
    for (name, mut all) in [("first", first), ("last", last)] {
        all.sort_by(f64::total_cmp);
        let value = format!(
            "median {:.1} ms, min {:.1}, max {:.1}",
            percentile(&all, 50),
            percentile(&all, 1),
            percentile(&all, 100)
        );
        let what = format!("agent start -> {name} of {WORKLOADS} cached workloads running, offline");
        table.add(
            &what,
            value,
            &format!("{how} to the state file of the {name} new instance"),
        );
    }
    Ok(())
}

/// Agent and workloads die; what is on disk says that it was another boot.
fn power_cut(fleet: &mut Fleet) -> Result<(), DemoError> {
    fleet.kill(NODE);
    for pid in fleet.workload_pids() {
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    fleet.wait(10, "the workloads are gone", |f| f.workload_pids().is_empty())?;
    for entry in fs::read_dir(fleet.dir().join("state").join(NODE).join("run")).map_err(wrong)? {
        let folder = entry.map_err(wrong)?.path();
        for name in ["state.json", "instance.json"] {
            rewrite(&folder.join(name))?;
        }
    }
    Ok(())
}

fn rewrite(path: &Path) -> Result<(), DemoError> {
    let Ok(text) = fs::read_to_string(path) else {
        return Ok(());
    };
    let mut value: Value = serde_json::from_str(&text).map_err(wrong)?;
    value["boot_id"] = OTHER_BOOT.into();
    fs::write(path, value.to_string()).map_err(wrong)
}

/// Milliseconds until the first and until the last is running.
fn start(fleet: &mut Fleet) -> Result<(f64, f64), DemoError> {
    let run = fleet.dir().join("state").join(NODE).join("run");
    let begin = Instant::now();
    fleet.start(NODE)?;
    let mut first = None;
    while begin.elapsed() < PATIENCE {
        let running = running(&run);
        let now = begin.elapsed().as_secs_f64() * 1000.0;
        if running > 0 {
            first.get_or_insert(now);
        }
        if let (Some(first), true) = (first, running >= WORKLOADS) {
            return Ok((first, now));
        }
        sleep(Duration::from_micros(500));
    }
    Err(wrong(format!(
        "{} of {WORKLOADS} workloads are running after {} s",
        running(&run),
        PATIENCE.as_secs()
    )))
}

/// Instances whose state file is of this boot.
fn running(run: &Path) -> usize {
    let Ok(entries) = fs::read_dir(run) else { return 0 };
    let of_this_boot = |e: &std::io::Result<fs::DirEntry>| {
        let text = e
            .as_ref()
            .ok()
            .and_then(|e| fs::read_to_string(e.path().join("state.json")).ok());
        text.is_some_and(|t| !t.contains(OTHER_BOOT))
    };
    entries.filter(of_this_boot).count()
}
