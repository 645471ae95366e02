//! cnova-aot: compiles one Wasm file and prints one line of JSON. Started by the hub; see the library.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cnova_aot::{Answer, AotOutcome, INPUT_BYTES_MAX, Rejection, draft_path};
use rustix::process::{Resource, Rlimit, Signal};

const USAGE: &str = "usage: cnova-aot TARGET MEMORY_BYTES CPU_SECONDS OUTPUT_BYTES INPUT.wasm OUTPUT.cwasm";
/// Files that a worker may have open; it needs three pipes, the input and the output.
const OPEN_FILES: u64 = 32;

struct Task {
    target: String,
    memory_bytes: u64,
    cpu_seconds: u64,
    output_bytes: u64,
    input: PathBuf,
    output: PathBuf,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(task) = parse(&arguments) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let (answer, status) = match confine(&task).and_then(|()| work(&task)) {
        Ok(outcome) => (answer(Some(outcome), None), ExitCode::SUCCESS),
        Err(rejection) => (answer(None, Some(rejection)), ExitCode::FAILURE),
    };
    let line = serde_json::json!(answer).to_string();
    match writeln!(io::stdout(), "{line}") {
        Ok(()) => status,
        Err(_) => ExitCode::FAILURE,
    }
}

fn parse(arguments: &[String]) -> Option<Task> {
    let [target, memory_bytes, cpu_seconds, output_bytes, input, output] = arguments else {
        return None;
    };
    Some(Task {
        target: target.clone(),
        memory_bytes: memory_bytes.parse().ok()?,
        cpu_seconds: cpu_seconds.parse().ok()?,
        output_bytes: output_bytes.parse().ok()?,
        input: input.into(),
        output: output.into(),
    })
}

fn answer(outcome: Option<AotOutcome>, error: Option<Rejection>) -> Answer {
    Answer {
        ok: outcome.is_some(),
        outcome,
        error,
    }
}

/// Gives up what compiling does not need, before a byte of the input is read.
fn confine(task: &Task) -> Result<(), Rejection> {
    let limits = [
        (Resource::As, task.memory_bytes),
        (Resource::Cpu, task.cpu_seconds),
        (Resource::Fsize, task.output_bytes),
        (Resource::Nofile, OPEN_FILES),
        (Resource::Core, 0),
    ];
    let apply = || -> io::Result<()> {
        for (resource, limit) in limits {
            // One above, so that CPU time ends with the signal that says so before the one that says nothing.
            let limit = Rlimit {
                current: Some(limit),
                maximum: Some(limit.saturating_add(1)),
            };
            rustix::process::setrlimit(resource, limit)?;
        }
        // A compile that nobody waits for is of no use.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        rustix::thread::set_no_new_privs(true)?;
        Ok(())
    };
    apply().map_err(|error| reject("limits", format!("cannot limit the compiler: {error}")))
}

fn work(task: &Task) -> Result<AotOutcome, Rejection> {
    let wasm = read(&task.input)?;
    let from_engine = |error: cnova_wasm_engine::PrecompileError| reject(error.code(), error.to_string());
    let compiled = cnova_wasm_engine::precompile(&task.target, &wasm).map_err(from_engine)?;
    let found = cnova_wasm_engine::inspect(&wasm).map_err(|error| from_engine(error.into()))?;
    write(&task.output, &compiled)
        .map_err(|error| reject("output", format!("cannot write {}: {error}", task.output.display())))?;
    Ok(AotOutcome {
        size: compiled.len() as u64,
        kind: found.kind.as_str().to_owned(),
        imports: found.imports,
        engine: cnova_wasm_engine::ENGINE.to_owned(),
        target: task.target.clone(),
    })
}

fn read(input: &Path) -> Result<Vec<u8>, Rejection> {
    let mut wasm = Vec::new();
    File::open(input)
        .and_then(|file| file.take(INPUT_BYTES_MAX + 1).read_to_end(&mut wasm))
        .map_err(|error| reject("input", format!("cannot read {}: {error}", input.display())))?;
    if wasm.len() as u64 > INPUT_BYTES_MAX {
        let message = format!("longer than the {INPUT_BYTES_MAX} bytes that are compiled");
        return Err(reject("too_large", message));
    }
    Ok(wasm)
}

/// Writes a draft, forces it to the disk and renames it: the output is whole or is not there.
fn write(output: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = draft_path(output, std::process::id());
    let written = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(&draft)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&draft, output)
    };
    written().inspect_err(|_| {
        let _ = fs::remove_file(&draft);
    })
}

fn reject(code: &str, message: String) -> Rejection {
    Rejection {
        code: code.to_owned(),
        message,
    }
}
