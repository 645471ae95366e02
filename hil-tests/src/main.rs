//! `cnova-hil`: runs scenarios by hand.

use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};
use cnova_hil_tests::scenario::targets::TargetName;
use cnova_hil_tests::scenario::{self, Scenario};
use cnova_hil_tests::{demo, measure, sim};

/// Runs the scenarios of the whole line.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the simulator over a range of seeds.
    Sim {
        /// The first seed.
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// How many seeds.
        #[arg(long, default_value_t = 1000)]
        seeds: u64,
        /// How many of the last steps to show of a seed that fails.
        #[arg(long, default_value_t = sim::world::TRACE_LINES)]
        trace: usize,
    },
    /// Run scenarios of a board and its plant: on the simulator, a virtual board, or a real one.
    Scenarios(ScenarioArgs),
    /// Run the whole line on this machine, as separate processes on loopback.
    Demo {
        /// The folder for everything that the demo makes.
        #[arg(long)]
        dir: std::path::PathBuf,
        /// The folder with the programs.
        #[arg(long)]
        bin: std::path::PathBuf,
        /// The repository's examples.
        #[arg(long)]
        examples: std::path::PathBuf,
        /// Leave the fleet up at the end.
        #[arg(long)]
        keep: bool,
    },
    /// Measure the whole line on this machine, as separate processes on loopback.
    Measure {
        /// The folder for everything that the measurement makes.
        #[arg(long)]
        dir: std::path::PathBuf,
        /// The folder with the programs.
        #[arg(long)]
        bin: std::path::PathBuf,
        /// The repository's examples.
        #[arg(long)]
        examples: std::path::PathBuf,
        /// How many applies, each way.
        #[arg(long, default_value_t = 200)]
        applies: usize,
        /// How many nodes connect to one gateway.
        #[arg(long, default_value_t = 1000)]
        nodes: usize,
        /// How long quiet uplinks are watched.
        #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
        idle_seconds: u64,
    },
    /// Measure what trust costs: attestations, proven and measured starts, memory with a TPM; needs swtpm.
    MeasureTrust {
        /// The folder for everything that the measurement makes.
        #[arg(long)]
        dir: std::path::PathBuf,
        /// The folder with the programs.
        #[arg(long)]
        bin: std::path::PathBuf,
        /// The repository's examples.
        #[arg(long)]
        examples: std::path::PathBuf,
    },
    /// Measure the three runtimes beside runc, crun and wasmtime, and an agent with many workloads of each; needs root.
    MeasureRuntimes {
        /// The folder for everything that the measurement makes.
        #[arg(long)]
        dir: std::path::PathBuf,
        /// The folder with the programs.
        #[arg(long)]
        bin: std::path::PathBuf,
        /// The repository's examples.
        #[arg(long)]
        examples: std::path::PathBuf,
        /// The container runtime, linked statically.
        #[arg(long)]
        container_static: Option<std::path::PathBuf>,
        /// The `wasmtime` command.
        #[arg(long)]
        wasmtime: Option<std::path::PathBuf>,
        /// How many rounds.
        #[arg(long, default_value_t = 40)]
        rounds: usize,
        /// How many workloads of each runtime the agent is given.
        #[arg(long, value_delimiter = ',', default_value = "3,10,100")]
        crowds: Vec<usize>,
    },
}

#[derive(Debug, clap::Args)]
struct ScenarioArgs {
    /// What they run on: `sim`, `sim:SEED`, a virtual board such as `qemu-x86_64`, or `labgrid:ENVIRONMENT-FILE`.
    #[arg(long, default_value = "sim")]
    on: TargetName,
    /// Only these; all without it.
    #[arg(value_name = "SCENARIO")]
    names: Vec<String>,
    /// Show which there are, and end.
    #[arg(long)]
    list: bool,
    /// Make what the image of a real board needs that is built elsewhere, and end.
    #[arg(long)]
    prepare: bool,
    /// The folder with the programs of the hub, and those that go onto the board.
    #[arg(long, default_value = "target/debug")]
    bin: std::path::PathBuf,
    /// The folder with the programs that go onto the board, where it has another architecture.
    #[arg(long)]
    board_bin: Option<std::path::PathBuf>,
    /// Where the report goes: `junit.xml` and `index.html`.
    #[arg(long, default_value = "report")]
    report: std::path::PathBuf,
    /// How often the power is cut.
    #[arg(long, default_value_t = 5)]
    cuts: usize,
    /// How many minutes the long run takes: a day on a real board, 3 minutes elsewhere.
    #[arg(long)]
    soak: Option<u64>,
    /// Of everything that is drawn.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn absolute(path: std::path::PathBuf) -> std::path::PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

/// The program's end, and what to say when it is not a good one.
#[allow(clippy::print_stdout)]
fn ended(what: &str, done: Result<(), demo::DemoError>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            println!("the {what} failed: {e}");
            ExitCode::FAILURE
        }
    }
}

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Sim { from, seeds, trace } => simulate(from, seeds, trace),
        Command::Scenarios(args) => run_scenarios(args),
        Command::Demo {
            dir,
            bin,
            examples,
            keep,
        } => {
            let options = demo::Options {
                dir: absolute(dir),
                bin: absolute(bin),
                examples,
                keep,
            };
            ended("demo", demo::run(options))
        }
        Command::Measure {
            dir,
            bin,
            examples,
            applies,
            nodes,
            idle_seconds,
        } => {
            let (dir, bin) = (absolute(dir), absolute(bin));
            ended(
                "measurement",
                measure::run(&measure::Options {
                    dir,
                    bin,
                    examples,
                    applies,
                    nodes,
                    idle_seconds,
                }),
            )
        }
        Command::MeasureTrust { dir, bin, examples } => {
            let (dir, bin, examples) = (absolute(dir), absolute(bin), absolute(examples));
            ended(
                "measurement",
                measure::trust::run(&measure::trust::Options { dir, bin, examples }),
            )
        }
        Command::MeasureRuntimes {
            dir,
            bin,
            examples,
            container_static,
            wasmtime,
            rounds,
            crowds,
        } => {
            let options = measure::runtimes::Options {
                dir: absolute(dir),
                bin: absolute(bin),
                examples: absolute(examples),
                container_static: container_static.map(absolute),
                wasmtime: wasmtime.map(absolute),
                rounds,
                crowds,
            };
            ended("measurement", measure::runtimes::run(&options))
        }
    }
}

fn run_scenarios(args: ScenarioArgs) -> ExitCode {
    if args.list {
        return list_scenarios();
    }
    let is_real = matches!(args.on, TargetName::Labgrid(_));
    let minutes = args.soak.unwrap_or(if is_real { 24 * 60 } else { 3 });
    let bin = absolute(args.bin);
    let options = scenario::Options {
        board_bin: args.board_bin.map_or_else(|| bin.clone(), absolute),
        bin,
        cuts: args.cuts,
        soak: std::time::Duration::from_secs(minutes * 60),
        seed: args.seed,
    };
    if args.prepare {
        return prepare_image(&args.on, &options);
    }
    scenarios(&args.on, &args.names, &args.report, &options)
}

#[allow(clippy::print_stdout)]
fn list_scenarios() -> ExitCode {
    for Scenario { name, shows, needs, .. } in &scenario::ALL {
        println!("{name}\n    {shows}\n    needs {needs}");
    }
    ExitCode::SUCCESS
}

#[allow(clippy::print_stdout)]
fn prepare_image(on: &TargetName, options: &scenario::Options) -> ExitCode {
    match on.prepare(options) {
        Ok([bundle, bootstrap]) => {
            println!(
                "build the board's image with\n  CNOVA_TRUST_BUNDLE = \"{bundle}\"\n  CNOVA_BOOTSTRAP = \"{bootstrap}\""
            );
            ExitCode::SUCCESS
        }
        Err(trouble) => {
            println!("error: {trouble}");
            ExitCode::FAILURE
        }
    }
}

/// Runs them and writes the report; fails when one of them does.
#[allow(clippy::print_stdout)]
fn scenarios(on: &TargetName, names: &[String], report: &std::path::Path, options: &scenario::Options) -> ExitCode {
    let unknown = names.iter().find(|name| scenario::ALL.iter().all(|s| s.name != **name));
    if let Some(name) = unknown {
        println!("error: there is no scenario `{name}`: `cnova-hil scenarios --list` shows which there are");
        return ExitCode::FAILURE;
    }
    let chosen: Vec<&Scenario> = (scenario::ALL.iter())
        .filter(|s| names.is_empty() || names.iter().any(|name| name == s.name))
        .collect();
    let done = scenario::run_on(on, &chosen, options);
    if let Err(e) = done.write(report) {
        println!("error: the report cannot be written to {}: {e}", report.display());
        return ExitCode::FAILURE;
    }
    for outcome in &done.outcomes {
        println!("{:<18} {}", outcome.name, outcome.end);
    }
    println!("report: {0}/index.html, {0}/junit.xml", report.display());
    match done.is_good() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

#[allow(clippy::print_stdout)]
fn simulate(from: u64, seeds: u64, trace: usize) -> ExitCode {
    let started = Instant::now();
    let (mut events, mut crashes, mut twins, mut slowest) = (0, 0, 0, 0);
    for seed in from..from.saturating_add(seeds) {
        match sim::world::run_traced(seed, trace) {
            Ok(o) => {
                events += o.events;
                crashes += o.crashes;
                twins += o.twins;
                slowest = slowest.max(o.converged_ms - sim::world::FAULTY_MS);
            }
            Err(violation) => {
                println!("{violation}");
                return ExitCode::FAILURE;
            }
        }
    }
    println!(
        "{seeds} seeds from {from}: {events} events, {twins} twins, {crashes} crashes, every one converged (the slowest \
         {slowest} virtual ms after the faults stopped), in {:.1} s",
        started.elapsed().as_secs_f64()
    );
    ExitCode::SUCCESS
}
