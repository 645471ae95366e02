//! One real agent with more and more workloads of each runtime: what it holds itself, and what each workload adds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::super::memory::{pss, pss_kib};
use super::super::table::Table;
use super::super::{DIRECT, SETTLE, wrong};
use super::Options;
use super::container::{PROGRAM, image_builder};
use super::processes::{held, program, trees};
use super::wasm::guest;
use crate::demo::DemoError;
use crate::demo::fleet::Fleet;

/// How long workloads may take to run, or to be gone.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at the folders of the instances.
const POLL: Duration = Duration::from_millis(50);
/// Most workloads of an application; the hub's policy permits 64.
const APPLICATION_MAX: usize = 50;
/// The runtimes, what a workload of it is made of, and what else its manifest says.
const RUNTIMES: [(&str, &str, &str); 3] = [
    ("wasm", "guest.wasm", ""),
    (
        "ebpf",
        "fieldbus_watch.o",
        "    settings: {programs: [{name: fieldbus_watch, kind: socket-filter, attach: lo}], log: events}\n",
    ),
    ("container", "image.tar", "    args: [stay]\n"),
];

pub(super) fn measure(fleet: &mut Fleet, options: &Options, table: &mut Table) -> Result<(), DemoError> {
    fleet.set_up()?;
    configure(fleet)?;
    let dir = fleet.dir().join("crowd");
    artifacts(&dir, options)?;
    fleet.start("hub-1")?;
    fleet.start(DIRECT)?;
    fleet.wait(30, "the agent has said hello", |f| {
        f.cnova(&["get", "nodes"]).is_ok_and(|text| text.contains(DIRECT))
    })?;
    sleep(SETTLE);
    let idle = pss(fleet.pid(DIRECT));
    table.add(
        "agent PSS, idle",
        idle,
        "the only agent process, connected, all three runtimes installed, 10 s after its start",
    );
    for runtime in RUNTIMES {
        table.part(runtime.0, |t| growing(fleet, options, &dir, runtime, t));
        let most = options.crowds.iter().max().copied().unwrap_or(0);
        for n in 0..shares(most).len() {
            // One that was never applied, because an earlier one failed, is not there.
            let _ = fleet.cnova(&["delete", &name(runtime.0, n), "--yes"]);
        }
        wait(fleet, 0)?;
    }
    Ok(())
}

/// An agent directly under the hub, with room for everything.
fn configure(fleet: &Fleet) -> Result<(), DemoError> {
    let trust = fleet.dir().join("trust").display().to_string();
    fleet.cnova(&["trust", "issue", DIRECT, "--site", "plant-9/plc-9", "--dir", &trust])?;
    let text = fs::read_to_string(fleet.dir().join("plc-1.toml")).map_err(wrong)?;
    let text = text
        .replace("plant-7/line-2/plc-1", "plant-9/plc-9")
        .replace("plc-1", DIRECT)
        .replace("line-gw", "hub-1")
        .replace(
            &format!("127.0.0.1:{}", fleet.port("line-gw")),
            &format!("127.0.0.1:{}", fleet.port("hub-1")),
        )
        .replace("\"64MiB\"", "\"16GiB\"")
        .replace("cpu_millis = 500", "cpu_millis = 200000");
    fs::write(fleet.dir().join(format!("{DIRECT}.toml")), text).map_err(wrong)
}

fn artifacts(dir: &Path, options: &Options) -> Result<(), DemoError> {
    image_builder(dir)?.write_tar(&dir.join("image.tar")).map_err(wrong)?;
    fs::write(dir.join("guest.wasm"), guest(true)?).map_err(wrong)?;
    let script = options.examples.join("fieldbus-watch/build.sh");
    let mut build = Command::new(&script);
    let out = build.arg(dir).stdout(Stdio::null()).output();
    let out = out.map_err(|e| wrong(format!("{}: {e}", script.display())))?;
    out.status
        .success()
        .then_some(())
        .ok_or_else(|| wrong(String::from_utf8_lossy(&out.stderr)))
}

fn growing(
    fleet: &Fleet,
    options: &Options,
    dir: &Path,
    (runtime, artifact, more): (&str, &str, &str),
    table: &mut Table,
) -> Result<(), DemoError> {
    let before = pss_kib(fleet.pid(DIRECT));
    for count in &options.crowds {
        let begin = Instant::now();
        for (n, workloads) in shares(*count).into_iter().enumerate() {
            let name = name(runtime, n);
            let folder = dir.join(&name);
            fs::create_dir_all(&folder).map_err(wrong)?;
            fs::copy(dir.join(artifact), folder.join(artifact)).map_err(wrong)?;
            let manifest = manifest(&name, runtime, artifact, more, workloads);
            fs::write(folder.join("app.yaml"), manifest).map_err(wrong)?;
            fleet.cnova(&["apply", &folder.display().to_string()])?;
        }
        wait(fleet, *count)?;
        let took = begin.elapsed().as_secs_f64();
        sleep(SETTLE);
        let agent = pss_kib(fleet.pid(DIRECT));
        let mut pids = trees(&living(fleet));
        pids.retain(|pid| program(*pid) != PROGRAM);
        let all = held(&pids).pss as f64;
        table.add(
            &format!("{count} workloads, {runtime}"),
            format!(
                "agent {} ({:+.1} KiB for each); runtime processes {:.1} MiB, {:.0} KiB for each workload",
                pss(fleet.pid(DIRECT)),
                (agent as f64 - before as f64) / *count as f64,
                all / 1024.0,
                all / *count as f64
            ),
            &format!(
                "PSS 10 s after the last began to run; {} runtime processes; all were running {took:.1} s after the apply",
                pids.len()
            ),
        );
    }
    Ok(())
}

fn name(runtime: &str, n: usize) -> String {
    format!("crowd-{runtime}-{n}")
}

/// How many workloads each of the applications has that together have so many.
fn shares(count: usize) -> Vec<usize> {
    let full = std::iter::repeat_n(APPLICATION_MAX, count / APPLICATION_MAX);
    full.chain([count % APPLICATION_MAX])
        .filter(|share| *share > 0)
        .collect()
}

fn manifest(name: &str, runtime: &str, artifact: &str, more: &str, count: usize) -> String {
    let mut text = format!("apiVersion: cnova/v1\nkind: Application\nmetadata: {{name: {name}}}\nworkloads:\n");
    for n in 0..count {
        text.push_str(&format!(
            "  - name: w{n}\n    runtime: {runtime}\n    artifact: {{file: {artifact}}}\n    \
             resources: {{memory: 16MiB, cpu: 10m}}\n    restart: {{policy: never}}\n{more}    \
             placement: {{site: plant-9/plc-9, replicas: each}}\n"
        ));
    }
    text
}

fn wait(fleet: &Fleet, count: usize) -> Result<(), DemoError> {
    let begin = Instant::now();
    loop {
        let living = living(fleet).len();
        if living == count {
            return Ok(());
        }
        if begin.elapsed() > PATIENCE {
            let why = fleet.cnova(&["get", "workloads"]).unwrap_or_default();
            let why: Vec<&str> = why.lines().take(4).collect();
            return Err(wrong(format!(
                "{living} of {count} workloads are running: {}",
                why.join(" / ")
            )));
        }
        sleep(POLL);
    }
}

/// The processes of the running instances.
fn living(fleet: &Fleet) -> Vec<u32> {
    let run = fleet.dir().join("state").join(DIRECT).join("run");
    let folders = fs::read_dir(run).into_iter().flatten().flatten();
    folders.filter_map(|entry| running(&entry.path())).collect()
}

fn running(folder: &Path) -> Option<u32> {
    let text = fs::read_to_string(folder.join("state.json")).ok()?;
    let state: Value = serde_json::from_str(&text).ok()?;
    let pid = u32::try_from(state["pid"].as_u64()?).ok()?;
    let gone = folder.join("exit.json").exists() || !PathBuf::from(format!("/proc/{pid}")).exists();
    (!gone).then_some(pid)
}

#[cfg(test)]
mod tests {
    #[test]
    fn many_workloads_are_several_applications() {
        assert_eq!(super::shares(3), [3]);
        assert_eq!(super::shares(100), [50, 50]);
        assert_eq!(super::shares(101), [50, 50, 1]);
    }
}
