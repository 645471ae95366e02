//! `cnova build`: runs a build command and signs what came of it.
//!
//! The command sees a few variables of the environment and no more. What it reads and where it connects to is not
//! limited: how far such a build is believed is for the trust bundle to say, not for the one who signs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cnova_provenance::Dependency;
use serde_json::{Value, json};

use super::{AttestError, Local, Statement, beside, check_builder, envelope, git, inputs, report, write};
use crate::age;
use crate::args::BuildArgs;
use crate::output::Screen;
use crate::trust;

const BUILD_TYPE: &str = "urn:cnova:build:command:v1";
/// Variables that every build gets as they are.
const PASSED: [&str; 2] = ["PATH", "HOME"];
/// Variables that every build gets with these values.
const SET: [(&str, &str); 2] = [("LANG", "C.UTF-8"), ("TZ", "UTC")];

/// Runs the command.
pub(crate) fn run(args: &BuildArgs, screen: &mut Screen<'_>) -> Result<(), AttestError> {
    check_builder(&args.signer.builder)?;
    let key = trust::read_key(&args.signer.key).map_err(AttestError::Key)?;
    // Before the build: it may write into its own sources.
    let folder = std::env::current_dir().map_err(|source| AttestError::Read {
        path: PathBuf::from("."),
        source,
    })?;
    for output in &args.out {
        remove(output)?;
        remove(&beside(output))?;
    }
    let dependencies = dependencies(args, &folder)?;
    let started_s = age::now_ms() / 1000;
    make(args, screen)?;
    let finished_s = age::now_ms() / 1000;
    let mut made = Vec::new();
    for path in &args.out {
        if !path.exists() {
            return Err(AttestError::NotMade { path: path.clone() });
        }
        made.push(Local::read(path, args.image)?);
    }
    let subjects: Vec<_> = made.iter().map(Local::subject).collect();
    let statement = Statement {
        build_type: BUILD_TYPE,
        parameters: parameters(args),
        dependencies: &dependencies,
        builder: &args.signer.builder,
        times_s: (started_s, finished_s),
    };
    let envelope = envelope(&subjects, statement, &key)?;
    let mut signed = Vec::new();
    for local in made {
        let file = beside(&local.path);
        write(&file, &envelope, false)?;
        signed.push((local, file));
    }
    Ok(report(&signed, &key, &args.signer.builder, screen)?)
}

/// What lies there would otherwise be signed as if the build had made it.
fn remove(path: &Path) -> Result<(), AttestError> {
    let failed = |source| AttestError::Write {
        path: path.to_owned(),
        source,
    };
    if path.is_dir() {
        if !path.join("oci-layout").is_file() {
            return Err(AttestError::Folder { path: path.to_owned() });
        }
        return fs::remove_dir_all(path).map_err(failed);
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed(e)),
        _ => Ok(()),
    }
}

fn dependencies(args: &BuildArgs, folder: &Path) -> Result<Vec<Dependency>, AttestError> {
    let mut all = git::state(folder)?;
    all.extend(inputs::of_paths(&args.input)?);
    inputs::check(all.len())?;
    Ok(all)
}

fn environment(args: &BuildArgs) -> BTreeMap<String, String> {
    let passed = PASSED.iter().map(|n| (*n).to_owned()).chain(args.env.iter().cloned());
    let passed = passed.filter_map(|name| std::env::var(&name).ok().map(|value| (name, value)));
    let set = SET
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    // What the caller names goes before what is set.
    set.chain(passed).collect()
}

fn make(args: &BuildArgs, screen: &mut Screen<'_>) -> Result<(), AttestError> {
    let (program, arguments) = args
        .command
        .split_first()
        .map_or(("", &[][..]), |(p, a)| (p.as_str(), a));
    screen.flush()?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(environment(args))
        .stdin(Stdio::null());
    // Standard output is for what this program prints, which others may read.
    command.stdout(std::io::stderr());
    let status = command.status().map_err(|source| AttestError::Start {
        program: program.to_owned(),
        source,
    })?;
    if status.success() {
        return Ok(());
    }
    Err(AttestError::Failed {
        program: program.to_owned(),
        status: status.to_string(),
    })
}

/// Names of variables, and not their values: those may be secret, and provenance is for everybody to read.
fn parameters(args: &BuildArgs) -> Value {
    json!({
        "command": args.command,
        "environment": {
            "passed": PASSED.iter().map(|n| (*n).to_owned()).chain(args.env.iter().cloned()).collect::<Vec<_>>(),
            "set": BTreeMap::from(SET),
        },
        "outputs": args.out,
    })
}
