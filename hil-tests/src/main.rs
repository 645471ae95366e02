//! `cnova-hil`: runs scenarios by hand.

use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};
use cnova_hil_tests::{demo, sim};

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
}

#[allow(clippy::print_stdout)]
fn main() -> ExitCode {
    match Args::parse().command {
        Command::Sim { from, seeds, trace } => simulate(from, seeds, trace),
        Command::Demo { dir, bin, examples, keep } => {
            let absolute = |p: std::path::PathBuf| std::path::absolute(&p).unwrap_or(p);
            let options = demo::Options { dir: absolute(dir), bin: absolute(bin), examples, keep };
            match demo::run(options) {
                Ok(()) => ExitCode::SUCCESS,
                Err(e) => {
                    println!("the demo failed: {e}");
                    ExitCode::FAILURE
                }
            }
        }
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
