//! From an apply to its workload's report at the hub.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::hub::{App, Hub};
use super::table::{Table, percentile, spread};
use super::wrong;
use crate::demo::DemoError;

/// Between two applies, so that each finds the line quiet.
const PAUSE: Duration = Duration::from_millis(50);
/// Applies before the first that counts: the artifacts are fetched and compiled by then.
const WARM_UP: usize = 5;

fn at(stages: &[Value], stage: &str) -> Option<u64> {
    stages
        .iter()
        .filter(|s| s["stage"] == stage)
        .filter_map(|s| s["at_ms"].as_u64())
        .max()
}

/// Applies that alternate one value, one after the other.
pub(super) fn measure(hub: &Hub, app: &App, count: usize, way: &str, table: &mut Table) -> Result<(), DemoError> {
    let (mut line, mut posts, mut wall) = (Vec::new(), Vec::new(), Vec::new());
    let mut parts: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for n in 0..WARM_UP + count {
        let begin = Instant::now();
        let generation = hub.apply(app, n % 2)?;
        let posted = begin.elapsed();
        let stages = hub.wait_reported(app, generation)?;
        let seen = begin.elapsed();
        let admitted = at(&stages, "admitted").ok_or_else(|| wrong("a timeline without `admitted`"))?;
        if n >= WARM_UP {
            let since = |t: u64| t as f64 - admitted as f64;
            line.extend(at(&stages, "reported").map(since));
            posts.push(posted.as_secs_f64() * 1000.0);
            wall.push(seen.as_secs_f64() * 1000.0);
            let names: std::collections::BTreeSet<&str> = stages.iter().filter_map(|s| s["stage"].as_str()).collect();
            for name in names {
                parts
                    .entry(name.to_owned())
                    .or_default()
                    .extend(at(&stages, name).map(since));
            }
        }
        sleep(PAUSE);
    }
    let how =
        format!("{count} applies, one value changed each time, artifacts cached; the hub's timeline, 1 ms resolution");
    table.add(&format!("apply: admitted -> reported, {way}"), spread(line, 0), &how);
    let how = "from before POST to seeing `reported` in the timeline, polled every 0.5 ms over the same connection";
    table.add(&format!("apply: POST -> seen, {way}"), spread(wall, 1), how);
    table.add(
        &format!("apply: POST -> its answer, {way}"),
        spread(posts, 1),
        "the part in which the hub admits, places, signs and commits",
    );
    let mut medians: Vec<(f64, String)> = Vec::new();
    for (name, mut all) in parts {
        all.sort_by(f64::total_cmp);
        medians.push((percentile(&all, 50), name));
    }
    medians.sort_by(|a, b| a.0.total_cmp(&b.0));
    let text: Vec<String> = medians.iter().map(|(ms, name)| format!("{name} {ms:.0}")).collect();
    table.add(
        &format!("apply: stages, {way}"),
        text.join(", "),
        "median of the last record of each stage, ms after admitted",
    );
    Ok(())
}
