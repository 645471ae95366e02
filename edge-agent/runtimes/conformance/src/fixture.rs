//! What the author of a runtime provides: for each behaviour a spec that shows it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cnova_ral::{Spec, Stream};
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::{Stop, Verdict};

/// Read at a time while hashing, in bytes.
const CHUNK_BYTES: usize = 64 << 10;

/// Something a workload does that the suite watches a runtime deal with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Behaviour {
    /// It runs until it is stopped, ends at the first gentle request, and prints nothing that matters.
    RunsForever,
    /// It ends by itself with [`Case::code`].
    ExitsWith,
    /// It prints [`Case::lines`], in this order on each stream, then ends or runs on.
    Prints,
    /// It prints at least 1 MiB in lines of less than 200 bytes; the last is the last of [`Case::lines`], if there are
    /// any. It then ends with [`Case::code`], or without one runs on (printing or not).
    PrintsALot,
    /// It prints its environment, one `NAME=value` per line, then ends. The suite sets `spec.env`; what the runtime adds
    /// to every environment is in [`Case::lines`].
    PrintsEnvironment,
    /// It has a fault of its own that is no signal; [`Case::detail`] is part of what the runtime says about it.
    Fails,
    /// It does not end on a gentle request, so that only force helps, and prints a line once it is deaf.
    IgnoresStop,
    /// It takes more memory than the spec's limit.
    ExceedsMemory,
    /// A fault of its own ends it by [`Case::signal`].
    DiesBySignal,
    /// Its artifact has the right digest and is not one that this runtime can run.
    Refused,
}

impl Behaviour {
    /// All of them. A fixture says something about each.
    pub const ALL: [Behaviour; 10] = [
        Behaviour::RunsForever,
        Behaviour::ExitsWith,
        Behaviour::Prints,
        Behaviour::PrintsALot,
        Behaviour::PrintsEnvironment,
        Behaviour::Fails,
        Behaviour::IgnoresStop,
        Behaviour::ExceedsMemory,
        Behaviour::DiesBySignal,
        Behaviour::Refused,
    ];

    /// Its name in a fixtures file.
    pub fn as_str(self) -> &'static str {
        match self {
            Behaviour::RunsForever => "runs_forever",
            Behaviour::ExitsWith => "exits_with",
            Behaviour::Prints => "prints",
            Behaviour::PrintsALot => "prints_a_lot",
            Behaviour::PrintsEnvironment => "prints_environment",
            Behaviour::Fails => "fails",
            Behaviour::IgnoresStop => "ignores_stop",
            Behaviour::ExceedsMemory => "exceeds_memory",
            Behaviour::DiesBySignal => "dies_by_signal",
            Behaviour::Refused => "refused",
        }
    }
}

impl fmt::Display for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A spec that shows a behaviour, and what is expected of it.
#[derive(Clone)]
pub struct Case {
    /// What is run. The suite sets its workload, generation and attempt, and in some checks its limits, digest or grace.
    pub spec: Spec,
    /// The exit code.
    pub code: Option<i32>,
    /// The signal that ends it.
    pub signal: Option<i32>,
    /// What it prints.
    pub lines: Vec<(Stream, String)>,
    /// Part of the detail in the exit file.
    pub detail: Option<String>,
    /// Called again and again while the suite waits for lines: sends the packets that make an eBPF program speak.
    pub stimulus: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl Case {
    /// Nothing is expected yet.
    pub fn new(spec: Spec) -> Case {
        Case {
            spec,
            code: None,
            signal: None,
            lines: Vec::new(),
            detail: None,
            stimulus: None,
        }
    }

    /// It ends with this code.
    #[must_use]
    pub fn code(mut self, code: i32) -> Case {
        self.code = Some(code);
        self
    }

    /// This signal ends it.
    #[must_use]
    pub fn signal(mut self, signal: i32) -> Case {
        self.signal = Some(signal);
        self
    }

    /// It prints one more line.
    #[must_use]
    pub fn line(mut self, stream: Stream, text: &str) -> Case {
        self.lines.push((stream, text.to_owned()));
        self
    }

    /// The exit file explains it with this text, among others.
    #[must_use]
    pub fn detail(mut self, text: &str) -> Case {
        self.detail = Some(text.to_owned());
        self
    }

    /// What makes it speak; called again and again while the suite waits.
    #[must_use]
    pub fn stimulus(mut self, stimulus: impl Fn() + Send + Sync + 'static) -> Case {
        self.stimulus = Some(Arc::new(stimulus));
        self
    }

    /// Changes the spec in place, for settings, grants and limits.
    #[must_use]
    pub fn spec(mut self, change: impl FnOnce(&mut Spec)) -> Case {
        change(&mut self.spec);
        self
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("spec", &self.spec).finish_non_exhaustive()
    }
}

/// A runtime executable and how to make it show each behaviour.
#[derive(Debug)]
pub struct Fixture {
    pub(crate) exe: PathBuf,
    pub(crate) runtime: String,
    pub(crate) cases: BTreeMap<Behaviour, Result<Case, String>>,
    files: TempDir,
}

impl Fixture {
    /// For the executable that describes itself as `runtime`. It has a folder for artifacts, removed when it is dropped.
    ///
    /// # Errors
    /// If that folder cannot be made.
    pub fn new(exe: impl Into<PathBuf>, runtime: &str) -> io::Result<Fixture> {
        Ok(Fixture {
            exe: exe.into(),
            runtime: runtime.to_owned(),
            cases: BTreeMap::new(),
            files: tempfile::tempdir()?,
        })
    }

    /// The folder for artifacts and other files of the cases.
    pub fn folder(&self) -> &Path {
        self.files.path()
    }

    /// Writes an artifact into [`Fixture::folder`] and returns [`spec_of`] it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn artifact(&self, name: &str, bytes: &[u8]) -> io::Result<Spec> {
        let path = self.folder().join(name);
        fs::write(&path, bytes)?;
        spec_of(&path)
    }

    /// How the runtime is made to show a behaviour.
    #[must_use]
    pub fn case(mut self, behaviour: Behaviour, case: Case) -> Fixture {
        self.cases.insert(behaviour, Ok(case));
        self
    }

    /// Why this kind of runtime can never show a behaviour. The checks that need it are counted as not applicable.
    #[must_use]
    pub fn not_applicable(mut self, behaviour: Behaviour, reason: &str) -> Fixture {
        self.cases.insert(behaviour, Err(reason.to_owned()));
        self
    }

    /// The case of a behaviour; a check that asks for one that is not applicable ends as such.
    pub(crate) fn get(&self, behaviour: Behaviour) -> Verdict<Case> {
        match self.cases.get(&behaviour) {
            Some(Ok(case)) => Ok(case.clone()),
            Some(Err(reason)) => Err(Stop::NotApplicable(format!("{behaviour}: {reason}"))),
            None => Err(Stop::Failed(format!(
                "the fixture says nothing about `{behaviour}`: give a case, or say why it is not applicable"
            ))),
        }
    }
}

/// A spec that grants nothing and runs this artifact, with the digest of its bytes, 64 MiB of memory and a log of 64 KiB.
///
/// # Errors
/// If the artifact cannot be read.
pub fn spec_of(artifact: &Path) -> io::Result<Spec> {
    let artifact = fs::canonicalize(artifact)?;
    let digest = sha256(&artifact)?;
    serde_json::from_value(serde_json::json!({
        "ral": cnova_ral::RAL_VERSION, "workload": "suite", "artifact": artifact, "digest": digest,
        "limits": { "log_bytes": 64 << 10 },
    }))
    .map_err(io::Error::from)
}

/// `sha256:` and the digest of a file's bytes.
///
/// # Errors
/// If it cannot be read.
pub fn sha256(path: &Path) -> io::Result<String> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let mut file = File::open(path).map_err(named)?;
    let mut context = Context::new(&SHA256);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk).map_err(named)? {
            0 => break,
            count => context.update(&chunk[..count]),
        }
    }
    let hex: String = context.finish().as_ref().iter().map(|b| format!("{b:02x}")).collect();
    Ok(format!("sha256:{hex}"))
}
