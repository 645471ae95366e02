//! `cnova-hil measure-runtimes`: the three runtimes beside what people use today, in one run.
//!
//! Contenders take turns, round by round, so that whatever else the machine does troubles all of them alike; what counts
//! is the ratio of their medians.

mod bundle;
mod container;
mod contest;
mod crowd;
mod processes;
mod wasm;

use std::fs;
use std::path::{Path, PathBuf};

use cnova_ral::cgroup::Parent;

use super::table::Table;
use super::wrong;
use crate::demo::fleet::Fleet;
use crate::demo::{self, DemoError};

/// Below the root of each hierarchy: the groups of everything that takes part.
const GROUPS: &str = "cnova-measure";

/// What a measurement of the runtimes is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it keeps everything; made anew.
    pub dir: PathBuf,
    /// The folder with the programs.
    pub bin: PathBuf,
    /// The repository's `examples` folder.
    pub examples: PathBuf,
    /// The container runtime, linked statically; the agent starts it too.
    pub container_static: Option<PathBuf>,
    /// The `wasmtime` command.
    pub wasmtime: Option<PathBuf>,
    /// How many rounds.
    pub rounds: usize,
    /// How many workloads the agent is given, one number after the other.
    pub crowds: Vec<usize>,
}

/// Measures everything and prints one table.
///
/// # Errors
/// When its folder cannot be set up; a part that fails is a row of the table.
#[allow(clippy::print_stdout)]
pub fn run(options: &Options) -> Result<(), DemoError> {
    if !rustix::process::geteuid().is_root() {
        return Err(wrong("containers, eBPF and control groups need root"));
    }
    let mut fleet = Fleet::new(demo::Options {
        dir: options.dir.clone(),
        bin: options.dir.join("bin"),
        examples: options.examples.clone(),
        keep: false,
    })?;
    programs(options)?;
    let groups = Parent::find(Some(GROUPS)).map_err(wrong)?;
    let mut table = Table::default();
    table.add("load", load(), "1, 5, 15 minutes, before");
    table.part("containers", |t| container::measure(options, &groups, t));
    table.part("Wasm", |t| wasm::measure(options, &groups, t));
    table.part("memory", |t| crowd::measure(&mut fleet, options, t));
    fleet.stop_all();
    table.add("load", load(), "1, 5, 15 minutes, after");
    sweep();
    println!("{}", table.markdown());
    Ok(())
}

/// Removes what is empty by now: the OCI runtimes leave a group in every hierarchy, also in those that nobody asked for.
fn sweep() {
    for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let place = hierarchy.path().join(GROUPS);
        for group in fs::read_dir(&place).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(group.path());
        }
        let _ = fs::remove_dir(&place);
    }
}

/// One folder with all programs, the static one in its place.
fn programs(options: &Options) -> Result<(), DemoError> {
    let bin = options.dir.join("bin");
    fs::create_dir(&bin).map_err(wrong)?;
    for entry in fs::read_dir(&options.bin).map_err(wrong)? {
        let path = entry.map_err(wrong)?.path();
        let name = path.file_name().unwrap_or_default().to_owned();
        if path.is_file() && wanted(&name.to_string_lossy()) {
            copy(&path, &bin.join(name))?;
        }
    }
    if let Some(program) = &options.container_static {
        copy(program, &bin.join("cnova-runtime-container"))?;
    }
    Ok(())
}

/// The daemons, the command and the runtimes; not what the compiler leaves beside them.
fn wanted(name: &str) -> bool {
    let daemons = ["cnova", "cnova-hub", "cnova-agent", "cnova-aot"];
    let runtime = name.starts_with("cnova-runtime-") && !name.contains('.');
    daemons.contains(&name) || runtime
}

/// The hub looks for its compiler beside the file that a link would lead to.
fn copy(program: &Path, place: &Path) -> Result<(), DemoError> {
    let copied = fs::copy(program, place).map(|_| ());
    copied.map_err(|e| wrong(format!("{}: {e}", program.display())))
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(", ")
}
