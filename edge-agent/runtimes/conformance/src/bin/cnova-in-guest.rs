//! Runs an executable of this machine in a virtual machine with a plain Debian kernel and control groups v2. Made to be
//! cargo's runner, so that the tests of any crate can be tried there:
//! `CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=target/debug/cnova-in-guest cargo test -p cnova-ral cgroup::`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cnova_ral_conformance::guest::{Guest, GuestError};

const USAGE: &str = "usage: cnova-in-guest EXECUTABLE [ARGUMENT]...";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((program, rest)) = arguments.split_first() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(Path::new(program), rest) {
        Ok(status) => ExitCode::from(u8::try_from(status).unwrap_or(1)),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(program: &Path, arguments: &[String]) -> Result<i32, GuestError> {
    let path: PathBuf = std::path::absolute(program).map_err(|source| GuestError::Io {
        action: "find",
        path: program.to_owned(),
        source,
    })?;
    let guest = Guest::new()?;
    guest.install(&path)?;
    let program = path.to_string_lossy();
    let command: Vec<&str> = [&*program]
        .into_iter()
        .chain(arguments.iter().map(String::as_str))
        .collect();
    let run = guest.run(&command, &[])?;
    io::stdout()
        .write_all(run.output.as_bytes())
        .map_err(|source| GuestError::Io {
            action: "print to",
            path: "/dev/stdout".into(),
            source,
        })?;
    Ok(run.status)
}
