//! cnova-runtime-wasm: runs one precompiled WebAssembly workload, as `docs/RAL.md` says.
//!
//! One process per workload: a fault in the engine, or a workload that eats memory, takes nothing else down. The
//! process holds no compiler; it maps machine code that the hub made, and only if its digest is the one in the spec.
//!
//! Three threads: this one runs the workload, `ral` answers the agent, `supervisor` receives signals and time.

mod artifact;
mod control;
mod guest;
mod launch;
mod limits;
mod network;
mod output;
mod supervisor;
mod wasi;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use cnova_ral::{Description, RAL_VERSION};

const USAGE: &str = "usage: cnova-runtime-wasm describe | run --state DIR | --version";

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
    let description = Description {
        ral: RAL_VERSION,
        runtime: "wasm".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        targets: cnova_wasm_engine::HOST_TARGET.map(str::to_owned).into_iter().collect(),
        engine: cnova_wasm_engine::ENGINE.to_owned(),
        features: ["wasi-preview1", "wasi-0.2", "network-tcp"].map(str::to_owned).to_vec(),
    };
    serde_json::json!(description).to_string()
}

fn print_line(line: &str) -> ExitCode {
    match writeln!(std::io::stdout(), "{line}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
