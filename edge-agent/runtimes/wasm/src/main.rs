//! cnova-runtime-wasm: runs one precompiled WebAssembly workload, as `docs/RAL.md` says.
//!
//! One process per workload: a fault in the engine, or a workload that eats memory, takes nothing else down. The
//! process holds no compiler; it maps machine code that the hub made, and only if its digest is the one in the spec.
//!
//! With `grants.nn` a worker computes models beside it.
//!
//! Three threads: this one runs the workload, `ral` answers the agent, `supervisor` receives signals and time.

mod artifact;
mod control;
mod coredump;
mod desk;
mod guest;
mod launch;
mod lifecycle;
mod limits;
mod network;
mod nn;
mod output;
mod secrets;
mod supervisor;
mod wasi;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use cnova_ral::{Description, RAL_VERSION};

const USAGE: &str = "usage: cnova-runtime-wasm describe | run --state DIR | --version";

/// What it can do beyond running modules; `wasi-nn` comes with its worker.
const FEATURES: [&str; 7] = [
    "wasi-preview1",
    "wasi-0.2",
    "network-tcp",
    "lifecycle",
    "core-dump",
    "cpu-budget",
    cnova_ral::SECRETS_FEATURE,
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["describe"] => print_line(&describe()),
        ["--version"] => print_line(concat!("cnova-runtime-wasm ", env!("CARGO_PKG_VERSION"))),
        ["run", "--state", dir] => launch::run(Path::new(dir)),
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn describe() -> String {
    let nn = nn::is_installed().then_some("wasi-nn");
    let description = Description {
        ral: RAL_VERSION,
        runtime: "wasm".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        targets: cnova_wasm_engine::HOST_TARGET
            .into_iter()
            .chain([cnova_wasm_engine::PULLEY_TARGET])
            .map(str::to_owned)
            .collect(),
        engine: cnova_wasm_engine::ENGINE.to_owned(),
        features: FEATURES.iter().copied().chain(nn).map(str::to_owned).collect(),
    };
    serde_json::json!(description).to_string()
}

fn print_line(line: &str) -> ExitCode {
    match writeln!(std::io::stdout(), "{line}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
