//! `cnova-hil`: runs scenarios by hand.

use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};
use cnova_hil_tests::sim;

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
}

#[allow(clippy::print_stdout)]
fn main() -> ExitCode {
    let Command::Sim { from, seeds, trace } = Args::parse().command;
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
