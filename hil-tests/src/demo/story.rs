//! What the demo tells, step by step.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use cnova_link::Identity;
use serde_json::Value;

use super::DemoError;
use super::attack;
use super::fleet::{AGENTS, APP, Fleet, TREE};
use super::runtimes;

/// Says something to the person who watches.
#[allow(clippy::print_stdout)]
pub(super) fn say(text: &str) {
    println!("{text}");
}

fn step(number: u32, text: &str) {
    say(&format!("\n{number}. {text}"));
}

/// What was measured, for the end.
#[derive(Default)]
struct Measured {
    lines: Vec<String>,
}

impl Measured {
    fn add(&mut self, what: &str, value: String) {
        self.lines.push(format!("  {what:<62} {value}"));
    }
}

/// Tells the whole story.
pub(super) fn tell(fleet: &mut Fleet) -> Result<(), DemoError> {
    let begin = Instant::now();
    let mut measured = Measured::default();
    root_of_trust(fleet)?;
    start_fleet(fleet, &mut measured)?;
    first_version(fleet, &mut measured)?;
    let old_twin = raw_twin(fleet, "plc-1")?;
    second_version(fleet, &mut measured)?;
    cut_off(fleet, &mut measured)?;
    come_back(fleet, &mut measured)?;
    forgeries(fleet, &old_twin)?;
    step(
        7,
        "Containers and eBPF beside Wasm, and a scheduler that explains itself",
    );
    let all_runtimes = runtimes::tell(fleet)?;
    finish(fleet, &measured, begin, all_runtimes)
}

fn root_of_trust(fleet: &mut Fleet) -> Result<(), DemoError> {
    step(
        1,
        &format!(
            "A root of trust for a demo tree, in {}",
            fleet.dir().join("trust").display()
        ),
    );
    fleet.set_up()?;
    say("  root keys (offline in a real tree), a hub signing key in a trust bundle that the roots signed, a node CA,");
    say(&format!("  and a key and certificate for each of {} nodes", TREE.len()));
    let bundle = fleet.identity("plc-1").join("trust-bundle.cose").display().to_string();
    fleet.show(&["trust", "show", &bundle])
}

fn start_fleet(fleet: &mut Fleet, measured: &mut Measured) -> Result<(), DemoError> {
    step(
        2,
        "A hub, an area gateway under it, a line gateway under that, three agents under the line gateway",
    );
    let begin = Instant::now();
    for (node, _, _) in TREE {
        fleet.start(node)?;
        say(&format!("  started {node} (process {})", fleet.pid(node)));
    }
    fleet.wait(30, "all five nodes below the hub have said hello", |f| {
        nodes(f).is_some_and(|n| n.len() == TREE.len() - 1)
    })?;
    measured.add(
        "start of six processes -> all nodes known to the hub",
        millis(begin.elapsed()),
    );
    for agent in AGENTS {
        measured.add(
            &format!("PSS of the agent on {agent}, idle, this build"),
            format!("{:.1} MiB", pss(fleet.pid(agent))),
        );
    }
    fleet.show(&["get", "nodes"])
}

fn first_version(fleet: &mut Fleet, measured: &mut Measured) -> Result<(), DemoError> {
    step(
        3,
        "A workload that looks for events in a recorded ground vibration; each stage as it is reached",
    );
    let folder = fleet.options().examples.join("vibration-watch").display().to_string();
    fleet.show(&["apply", &folder, "--wait=60"])?;
    stages(
        fleet,
        1,
        "first deployment (Wasm compiled, artifacts fetched)",
        measured,
    )?;
    step(4, "What the hub knows now");
    fleet.show(&["get", "nodes"])?;
    fleet.show(&["get", "workloads"])?;
    fleet.wait(20, "the workload's first findings are in its log", |f| {
        f.cnova(&["logs", &workload(), "--node", "plc-1"])
            .is_ok_and(|t| t.contains("event"))
    })?;
    fleet.show(&["logs", &workload(), "--node", "plc-1", "--lines", "12"])?;
    fleet.show(&["describe", "workload", &format!("{}@plc-1", workload())])
}

fn second_version(fleet: &mut Fleet, measured: &mut Measured) -> Result<(), DemoError> {
    step(
        5,
        "A second version (a higher threshold), then no hub, no gateways, and an agent that is killed",
    );
    let before = instance(fleet, "plc-1")?;
    let folder = fleet
        .options()
        .examples
        .join("vibration-watch-v2")
        .display()
        .to_string();
    fleet.show(&["apply", &folder, "--wait=60"])?;
    stages(fleet, 2, "second version (artifacts cached)", measured)?;
    fleet.show(&["get", "workloads"])?;
    let after = instance(fleet, "plc-1")?;
    say("  both generations on plc-1, from the logs of their instances:");
    for (label, folder) in [("generation 1", &before.1), ("generation 2", &after.1)] {
        let line = first_line(&folder.join("log"), "version").unwrap_or_else(|| "(its log is gone)".into());
        say(&format!("    {label}: {line}"));
    }
    Ok(())
}

fn cut_off(fleet: &mut Fleet, measured: &mut Measured) -> Result<(), DemoError> {
    for node in ["hub-1", "area-gw", "line-gw"] {
        let pid = fleet.pid(node);
        fleet.kill(node);
        say(&format!("  killed {node} (process {pid}) with SIGKILL"));
    }
    let (pid, _) = instance(fleet, "plc-1")?;
    let agent = fleet.pid("plc-1");
    fleet.kill("plc-1");
    say(&format!(
        "  killed the agent on plc-1 (process {agent}) with SIGKILL; its workload, process {pid}: {}",
        alive(pid)
    ));
    fleet.start("plc-1")?;
    let took = fleet.wait(20, "plc-1 adopts its workload", |f| log_has(f, "plc-1", "adopted", 2))?;
    let (same, _) = instance(fleet, "plc-1")?;
    if same != pid {
        return Err(DemoError::Wrong(format!(
            "plc-1 runs process {same} where {pid} ran: it was not adopted"
        )));
    }
    say(&format!(
        "  started the agent on plc-1 again: it adopted process {pid} from its SQLite ledger, with nobody above it"
    ));
    measured.add("agent start -> running workload adopted, offline", millis(took));
    let (pid, _) = instance(fleet, "plc-2")?;
    let agent = fleet.pid("plc-2");
    fleet.kill("plc-2");
    kill_process(pid);
    fleet.wait(10, "the workload of plc-2 is gone", |_| {
        !Path::new(&format!("/proc/{pid}")).exists() || is_zombie(pid)
    })?;
    say(&format!(
        "  killed the agent on plc-2 ({agent}) and its workload ({pid}), as a power cut would"
    ));
    fleet.start("plc-2")?;
    let took = fleet.wait(40, "plc-2 starts its workload again", |f| {
        f.instance("plc-2").is_some_and(|(p, _)| p != pid)
    })?;
    let (new, _) = instance(fleet, "plc-2")?;
    say(&format!(
        "  started the agent on plc-2 again: it verified the twin in its ledger and started process {new}"
    ));
    measured.add(
        "agent start -> killed workload running again, after its 1 s pause",
        millis(took),
    );
    Ok(())
}

fn come_back(fleet: &mut Fleet, measured: &mut Measured) -> Result<(), DemoError> {
    say("  everything comes back: gateways first, the hub last");
    let begin = Instant::now();
    for node in ["line-gw", "area-gw", "hub-1"] {
        fleet.start(node)?;
    }
    fleet.wait(90, "the hub shows what happened while it was away", |f| {
        let adopted = workloads(f).is_some_and(|all| {
            let on = |node: &str| all.iter().find(|w| w["node"] == node).cloned().unwrap_or_default();
            on("plc-1")["adopted"] == true
                && on("plc-2")["attempt"].as_u64() >= Some(2)
                && on("plc-2")["state"] == "running"
        });
        adopted && nodes(f).is_some_and(|n| n.iter().all(|n| n["link"] == "connected" && n["in_sync"] == true))
    })?;
    measured.add(
        "restart of hub and gateways -> spooled reports at the hub",
        millis(begin.elapsed()),
    );
    fleet.show(&["get", "workloads"])?;
    let mut total = 0;
    for agent in AGENTS {
        let history = fleet.json(&["get", "history", agent, "--limit", "1000"])?;
        let rows = history.as_array().cloned().unwrap_or_default();
        let mut seen = std::collections::BTreeSet::new();
        for row in &rows {
            let key = (row["incarnation"].as_u64(), row["seq"].as_u64());
            if key.1.is_none() || !seen.insert(key) {
                return Err(DemoError::Wrong(format!(
                    "entry {row} of {agent} is in the hub's history twice or has no number"
                )));
            }
        }
        total += rows.len();
    }
    say(&format!(
        "  {total} reported entries of three agents are in the hub's history, each once"
    ));
    Ok(())
}

fn forgeries(fleet: &mut Fleet, old_twin: &[u8]) -> Result<(), DemoError> {
    step(
        6,
        "A line gateway that lies: it has the real one's key, and sends plc-1 four twins that it should not take",
    );
    let (pid, _) = instance(fleet, "plc-1")?;
    let forged = attack::forge(&raw_twin(fleet, "plc-1")?, &raw_twin(fleet, "plc-2")?, old_twin)?;
    let folder = fleet.identity("line-gw");
    let me = Identity::load(
        &folder.join("node.pem"),
        &folder.join("node.key"),
        &folder.join("trust-bundle.cose"),
    )
    .map_err(|e| DemoError::Wrong(e.to_string()))?;
    if !attack::stranger_is_unknown(&me) {
        return Err(DemoError::Wrong("the stranger's key is in the trust bundle".into()));
    }
    fleet.kill("line-gw");
    let refusals = attack::lie(&folder, fleet.port("line-gw"), "plc-1", &forged)?;
    for (forgery, (code, detail)) in forged.iter().zip(&refusals) {
        say(&format!("  sent {}:\n    refused, {code}: {detail}", forgery.what));
    }
    fleet.start("line-gw")?;
    fleet.wait(90, "the refusals reach the hub through the real gateway", |f| {
        f.json(&["get", "nodes"]).is_ok_and(|v| {
            let all = v.as_array().cloned().unwrap_or_default();
            all.iter()
                .any(|n| n["node"] == "plc-1" && n["refusals"].as_array().is_some_and(|r| r.len() >= forged.len()))
        })
    })?;
    let (now, _) = instance(fleet, "plc-1")?;
    if now != pid {
        return Err(DemoError::Wrong(format!("plc-1 runs process {now} where {pid} ran")));
    }
    say(&format!(
        "  the last good twin runs on: process {pid} was never touched; the hub knows of every refusal:"
    ));
    fleet.show(&["describe", "node", "plc-1"])
}

fn finish(fleet: &mut Fleet, measured: &Measured, begin: Instant, all_runtimes: bool) -> Result<(), DemoError> {
    step(8, "Measured in this run");
    measured.lines.iter().for_each(|l| say(l));
    if fleet.options().keep {
        say("\nThe fleet stays up. To play with it:");
        let bin = fleet.options().bin.display();
        let tokens = fleet.dir().join("token").display().to_string();
        fleet.write_token(Path::new(&tokens))?;
        say(&format!(
            "  export PATH={bin}:$PATH CNOVA_HUB=http://127.0.0.1:{} CNOVA_TOKEN_FILE={tokens}",
            fleet.port("api")
        ));
        say("  cnova get nodes; cnova describe application vibration-watch; cnova logs vibration-watch/detector");
        say(&format!(
            "  the fleet page is at http://127.0.0.1:{}/ (token: cat {tokens})",
            fleet.port("api")
        ));
        say("  make demo-stop ends it");
        return Ok(());
    }
    fleet.show(&["delete", APP, "--yes"])?;
    for app in runtimes::APPS.iter().filter(|_| all_runtimes) {
        fleet.cnova(&["delete", app, "--yes"])?;
    }
    fleet.wait(60, "every agent has stopped its workload", |f| {
        f.workload_pids().is_empty()
    })?;
    fleet.stop_all();
    let left = fleet.workload_pids();
    if !left.is_empty() {
        return Err(DemoError::Wrong(format!("processes {left:?} are left")));
    }
    say(&format!(
        "\nDone in {:.1} s; nothing is left running. Logs: {}",
        begin.elapsed().as_secs_f64(),
        fleet.dir().join("logs").display()
    ));
    Ok(())
}

fn workload() -> String {
    format!("{APP}/detector")
}

fn nodes(fleet: &Fleet) -> Option<Vec<Value>> {
    fleet.json(&["get", "nodes"]).ok()?.as_array().cloned()
}

fn workloads(fleet: &Fleet) -> Option<Vec<Value>> {
    fleet.json(&["get", "workloads"]).ok()?.as_array().cloned()
}

fn instance(fleet: &Fleet, node: &str) -> Result<(u32, std::path::PathBuf), DemoError> {
    fleet
        .instance(node)
        .ok_or_else(|| DemoError::Wrong(format!("no workload process lives on {node}")))
}

fn raw_twin(fleet: &Fleet, node: &str) -> Result<Vec<u8>, DemoError> {
    let path = fleet.dir().join(format!("{node}.twin"));
    fleet.cnova(&["get", "twin", node, "--raw", &path.display().to_string()])?;
    fs::read(&path).map_err(|source| DemoError::File { path, source })
}

/// From the hub's timeline: admitted to the last running and reported.
fn stages(fleet: &Fleet, generation: u64, what: &str, measured: &mut Measured) -> Result<(), DemoError> {
    let info = fleet.json(&["describe", "application", APP])?;
    let info = if info["timeline"].is_array() {
        info
    } else {
        info["application"].clone()
    };
    let at = |stage: &str| -> Vec<u64> {
        let all = info["timeline"].as_array().cloned().unwrap_or_default();
        all.iter()
            .filter(|r| r["stage"] == stage)
            .filter_map(|r| r["at_ms"].as_u64())
            .collect()
    };
    let (Some(admitted), Some(last)) = (at("admitted").into_iter().min(), at("reported").into_iter().max()) else {
        return Err(DemoError::Wrong(format!(
            "the timeline of generation {generation} is not complete: {}",
            info["timeline"]
        )));
    };
    measured.add(
        &format!("{what}: admitted -> reported, 3 nodes"),
        format!("{} ms", last.saturating_sub(admitted)),
    );
    Ok(())
}

fn millis(d: Duration) -> String {
    format!("{:.1} ms", d.as_secs_f64() * 1000.0)
}

fn alive(pid: u32) -> &'static str {
    if Path::new(&format!("/proc/{pid}")).exists() && !is_zombie(pid) {
        "runs on"
    } else {
        "is gone"
    }
}

fn is_zombie(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .is_some_and(|rest| rest.trim_start().starts_with('Z'))
}

fn kill_process(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

fn first_line(path: &Path, word: &str) -> Option<String> {
    fs::read_to_string(path)
        .ok()?
        .lines()
        .find(|l| l.contains(word))
        .map(str::to_owned)
}

/// Whether a daemon has written `word` since its `starts`-th start.
fn log_has(fleet: &Fleet, node: &str, word: &str, starts: usize) -> bool {
    let text = fs::read_to_string(fleet.dir().join("logs").join(format!("{node}.log"))).unwrap_or_default();
    let mut begins = text.match_indices("starting").map(|(i, _)| i);
    let from = begins.nth(starts - 1).unwrap_or(text.len());
    text[from..].contains(word)
}

/// The memory of a process, shared pages counted in part.
fn pss(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("Pss:"));
    let kib: f64 = line
        .and_then(|l| l.trim().trim_end_matches(" kB").trim().parse().ok())
        .unwrap_or(0.0);
    kib / 1024.0
}
