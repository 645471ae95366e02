//! `cnova-hil measure`: figures of the whole line, with real processes on loopback, in one run.
//!
//! Nothing here is a test: a figure that is worse than it should be is printed as it is.

mod applies;
mod crowd;
mod disk;
mod hub;
mod memory;
mod offline;
pub mod runtimes;
mod table;
pub mod trust;
mod uplink;

use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use crate::demo::fleet::Fleet;
use crate::demo::{self, DemoError};
use hub::{App, Hub};
use memory::pss;
use table::Table;

/// What a measurement is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it keeps everything; made anew.
    pub dir: PathBuf,
    /// The folder with the programs.
    pub bin: PathBuf,
    /// The repository's `examples` folder.
    pub examples: PathBuf,
    /// How many applies each way.
    pub applies: usize,
    /// How many nodes connect to one gateway.
    pub nodes: usize,
    /// How long the uplinks of quiet nodes are watched.
    pub idle_seconds: u64,
}

/// The agent that hangs directly under the hub.
const DIRECT: &str = "plc-9";
/// How long processes are left alone before their memory is read.
const SETTLE: Duration = Duration::from_secs(10);

fn wrong(e: impl std::fmt::Display) -> DemoError {
    DemoError::Wrong(e.to_string())
}

fn note(text: &str) {
    eprintln!("{text}");
}

/// Measures everything and prints a table after each part, so that a part that fails takes nothing with it.
///
/// # Errors
/// When the fleet cannot be set up; a part that fails is a row of the table.
#[allow(clippy::print_stdout)]
pub fn run(options: &Options) -> Result<(), DemoError> {
    let (dir, bin, examples) = (options.dir.clone(), options.bin.clone(), options.examples.clone());
    let mut fleet = Fleet::new(demo::Options {
        dir,
        bin,
        examples,
        keep: false,
    })?;
    let mut table = Table::default();
    let done = all(&mut fleet, options, &mut table);
    fleet.stop_all();
    println!("{}", table.markdown());
    done
}

fn all(fleet: &mut Fleet, options: &Options, table: &mut Table) -> Result<(), DemoError> {
    fleet.set_up()?;
    let links = configure(fleet)?;
    let hub = Hub::new(fleet);
    table.part("disk", |t| disk::measure(fleet.dir(), t));
    table.part("memory", |t| memory_of_few(fleet, &hub, t));
    for node in ["plc-1", "plc-2", DIRECT] {
        fleet.start(node)?;
    }
    hub.wait_nodes(6)?;
    let direct = App::at("direct", "plant-9/plc-9", 1);
    let through = App::at("through", "plant-7/line-2/plc-1", 1);
    table.part("applies, hub directly over the agent", |t| {
        applies::measure(&hub, &direct, options.applies, "direct", t)
    });
    table.part("applies, two gateways", |t| {
        applies::measure(&hub, &through, options.applies, "two gateways", t)
    });
    for app in [&direct, &through] {
        hub.delete(app)?;
    }
    note("quiet");
    sleep(SETTLE * 3);
    table.part("idle uplink", |t| uplink::measure(&links, options.idle_seconds, t));
    table.part("many nodes", |t| crowd::measure(fleet, options.nodes, t));
    table.part("offline start", |t| offline::measure(fleet, &hub, t));
    Ok(())
}

/// Capacity for ten workloads, an agent directly under the hub, and proxies before the uplinks of two agents.
fn configure(fleet: &Fleet) -> Result<Vec<uplink::Counted>, DemoError> {
    let file = |node: &str| fleet.dir().join(format!("{node}.toml"));
    let read = |node: &str| fs::read_to_string(file(node)).map_err(wrong);
    let write = |node: &str, text: String| fs::write(file(node), text).map_err(wrong);
    let roomy = |text: String| {
        text.replace("\"64MiB\"", "\"1GiB\"")
            .replace("cpu_millis = 500", "cpu_millis = 8000")
    };
    let trust = fleet.dir().join("trust").display().to_string();
    fleet.cnova(&["trust", "issue", DIRECT, "--site", "plant-9/plc-9", "--dir", &trust])?;
    let line = format!("127.0.0.1:{}", fleet.port("line-gw"));
    let text = roomy(read("plc-1")?);
    let direct = text
        .replace("plant-7/line-2/plc-1", "plant-9/plc-9")
        .replace("plc-1", DIRECT)
        .replace("line-gw", "hub-1")
        .replace(&line, &format!("127.0.0.1:{}", fleet.port("hub-1")));
    write(DIRECT, direct)?;
    write("plc-1", text)?;
    let mut links = Vec::new();
    for (node, what) in [("plc-2", "no workload"), ("plc-3", "one workload")] {
        let counted = uplink::Counted::start(what, fleet.port("line-gw"))?;
        write(
            node,
            roomy(read(node)?).replace(&line, &format!("127.0.0.1:{}", counted.port)),
        )?;
        links.push(counted);
    }
    Ok(links)
}

/// One agent on this machine, so that no other agent shares the price of its pages.
fn memory_of_few(fleet: &mut Fleet, hub: &Hub, table: &mut Table) -> Result<(), DemoError> {
    for node in ["hub-1", "area-gw"] {
        fleet.start(node)?;
    }
    hub.wait_nodes(1)?;
    sleep(SETTLE);
    table.add(
        "gateway PSS, no children",
        pss(fleet.pid("area-gw")),
        "the only gateway process, 10 s after its start",
    );
    table.add("hub PSS, one gateway", pss(fleet.pid("hub-1")), "10 s after its start");
    for node in ["line-gw", "plc-3"] {
        fleet.start(node)?;
    }
    hub.wait_nodes(3)?;
    sleep(SETTLE);
    table.add(
        "agent PSS, idle",
        pss(fleet.pid("plc-3")),
        "the only agent process, connected, 10 s after its start",
    );
    hub.upload(fleet)?;
    let app = App::at("quiet", "plant-7/line-2/plc-3", 1);
    let generation = hub.apply(&app, 0)?;
    hub.wait_reported(&app, generation)?;
    sleep(SETTLE);
    let (pid, _) = fleet.instance("plc-3").ok_or_else(|| wrong("no workload on plc-3"))?;
    let how = "10 s after the workload began to run";
    table.add("agent PSS, one workload", pss(fleet.pid("plc-3")), how);
    table.add(
        "Wasm runtime process PSS, with its workload",
        pss(pid),
        "the only runtime process; vibration-watch",
    );
    table.add("hub PSS, after one compile", pss(fleet.pid("hub-1")), how);
    Ok(())
}
