//! cnova-wasm-nn: computes models for one Wasm workload. Started by its runtime; see the library.

mod backend;
mod hailo;
mod onnx;
mod openvino;
mod session;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, Signal};

use crate::backend::{Accelerator, Backends};
use crate::session::Session;

const USAGE: &str =
    "usage: cnova-wasm-nn MEMORY_BYTES none|openvino:DEVICE|hailo [LIBRARY], with a socket as standard input";

struct Task {
    memory_bytes: u64,
    accelerator: Option<Accelerator>,
    library: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(task) = parse(&arguments) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match confine(&task).and_then(|()| standard_input()) {
        Ok(socket) => {
            let backends = Backends::new(task.accelerator, task.library);
            Session::new(backends).serve(std::os::unix::net::UnixStream::from(socket))
        }
        Err(error) => {
            eprintln!("cannot confine the worker: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(arguments: &[String]) -> Option<Task> {
    let (memory_bytes, accelerator, library) = match arguments {
        [memory, accelerator] => (memory, accelerator, None),
        [memory, accelerator, library] => (memory, accelerator, Some(library.into())),
        _ => return None,
    };
    let accelerator = match accelerator.split_once(':') {
        None if accelerator == "none" => None,
        None if accelerator == "hailo" => Some(Accelerator::Hailo),
        Some(("openvino", device)) => Some(Accelerator::Openvino(device.to_owned())),
        _ => return None,
    };
    Some(Task {
        memory_bytes: memory_bytes.parse().ok()?,
        accelerator,
        library,
    })
}

/// Gives up what computing does not need, before a byte of a model is read.
fn confine(task: &Task) -> io::Result<()> {
    let limit = |resource, bytes| {
        let limit = Rlimit {
            current: Some(bytes),
            maximum: Some(bytes),
        };
        rustix::process::setrlimit(resource, limit)
    };
    // Not the address space: engines reserve much of it and use little.
    limit(Resource::Data, task.memory_bytes)?;
    limit(Resource::Core, 0)?;
    // A computation that nobody waits for is of no use.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

fn standard_input() -> io::Result<OwnedFd> {
    io::stdin().as_fd().try_clone_to_owned()
}
