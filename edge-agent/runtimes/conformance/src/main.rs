//! `cnova-ral-conformance --runtime EXE --fixtures DIR`: does a runtime keep the interface of `docs/RAL.md`?

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use cnova_ral_conformance::{CHECKS, FIXTURES_FILE, Fixture, Stop, set_patience};

const USAGE: &str =
    "usage: cnova-ral-conformance --runtime EXE --fixtures DIR [--only CHECK]... [--patience SECONDS] | --list";
/// At least one check failed.
const STATUS_FAILED: u8 = 1;
/// The suite could not be run as asked.
const STATUS_USAGE: u8 = 2;

/// What is to be done.
struct Order {
    runtime: String,
    fixtures: String,
    only: Vec<String>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--list"] => list(),
        _ => match parse(&arguments).and_then(|order| Ok((load(&order)?, order))) {
            Ok((fixture, order)) => run(&fixture, &order),
            Err(message) => {
                eprintln!("{message}");
                return ExitCode::from(STATUS_USAGE);
            }
        },
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(STATUS_FAILED),
        Err(error) => {
            eprintln!("cannot print: {error}");
            ExitCode::from(STATUS_USAGE)
        }
    }
}

fn parse(arguments: &[String]) -> Result<Order, String> {
    let (mut runtime, mut fixtures, mut only) = (None, None, Vec::new());
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("`{word}` needs a value\n{USAGE}"))?;
        match word.as_str() {
            "--runtime" => runtime = Some(value.clone()),
            "--fixtures" => fixtures = Some(value.clone()),
            "--patience" => match value.parse() {
                Ok(seconds) => set_patience(Duration::from_secs(seconds)),
                Err(_) => return Err(format!("`{value}` is not a number of seconds")),
            },
            "--only" if CHECKS.iter().any(|check| check.name == value) => only.push(value.clone()),
            "--only" => return Err(format!("there is no check `{value}`; `--list` prints all")),
            _ => return Err(format!("`{word}` is not an option\n{USAGE}")),
        }
    }
    match (runtime, fixtures) {
        (Some(runtime), Some(fixtures)) => Ok(Order {
            runtime,
            fixtures,
            only,
        }),
        _ => Err(format!(
            "--runtime and --fixtures are needed; {FIXTURES_FILE} is read in the latter\n{USAGE}"
        )),
    }
}

fn load(order: &Order) -> Result<Fixture, String> {
    Fixture::load(Path::new(&order.runtime), Path::new(&order.fixtures)).map_err(|error| error.to_string())
}

fn list() -> io::Result<bool> {
    let mut out = io::stdout();
    for check in CHECKS {
        writeln!(out, "{}", check.name)?;
    }
    Ok(true)
}

fn run(fixture: &Fixture, order: &Order) -> io::Result<bool> {
    let mut out = io::stdout();
    let (mut passed, mut failed, mut not_applicable, mut skipped) = (0, 0, 0, 0);
    for check in CHECKS {
        if !order.only.is_empty() && !order.only.iter().any(|name| name == check.name) {
            continue;
        }
        match check.run(fixture) {
            Ok(()) => {
                passed += 1;
                writeln!(out, "pass            {}", check.name)?;
            }
            Err(Stop::Failed(reason)) => {
                failed += 1;
                writeln!(out, "FAIL            {}: {reason}", check.name)?;
            }
            Err(Stop::NotApplicable(reason)) => {
                not_applicable += 1;
                writeln!(out, "not applicable  {}: {reason}", check.name)?;
            }
            Err(Stop::Skipped(reason)) => {
                skipped += 1;
                writeln!(out, "skipped         {}: {reason}", check.name)?;
            }
        }
        out.flush()?;
    }
    writeln!(
        out,
        "{passed} passed, {failed} failed, {not_applicable} not applicable, {skipped} skipped"
    )?;
    Ok(failed == 0)
}
