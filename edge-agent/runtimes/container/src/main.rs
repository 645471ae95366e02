//! cnova-runtime-container: runs one container, as `docs/RAL.md` and `docs/CONTAINERS.md` say.
//!
//! Two processes per container, because the library that makes containers is only safe in a process with one thread:
//!
//! - the **shim**, this process, is the one that the agent knows: it answers on the socket, keeps the log and the
//!   time, makes the control group and writes the state and exit files;
//! - the **keeper**, its child, is the first process of a PID namespace of its own and has a mount namespace of its
//!   own. It unpacks the image, makes the container below itself and reaps.
//!
//! The kernel kills the keeper when the shim dies, and everything in the keeper's namespace when the keeper dies, and
//! the mounts go with the namespace: there is no way for a container to outlive its shim.

mod cgroup;
mod complaints;
mod config;
mod control;
mod describe;
mod exec;
mod executor;
mod external;
mod idmap;
mod image;
mod keeper;
mod launch;
mod messages;
mod network;
mod oci;
mod probe;
mod rootfs;
mod seccomp;
mod shim;
mod signals;
mod sys;
mod user;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "usage: cnova-runtime-container describe | run --state DIR | prune CACHE DIGEST... | --version";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["describe"] => print_line(&describe::describe()),
        ["--version"] => print_line(concat!("cnova-runtime-container ", env!("CARGO_PKG_VERSION"))),
        ["run", "--state", dir] => launch::run(Path::new(dir)),
        ["prune", cache, ref keep @ ..] => prune(Path::new(cache), keep),
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

/// Removes unpacked layers except those with these diff_ids and those in use.
fn prune(cache: &Path, keep: &[&str]) -> ExitCode {
    let keep = match keep.iter().map(|digest| digest.parse()).collect() {
        Ok(keep) => keep,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    match cnova_oci::LayerCache::open(cache).and_then(|cache| cache.prune(&keep)) {
        Ok(pruned) => print_line(&format!("removed {}, in use {}", pruned.removed, pruned.in_use)),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn print_line(line: &str) -> ExitCode {
    match writeln!(std::io::stdout(), "{line}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
