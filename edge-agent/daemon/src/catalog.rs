//! The runtimes that are installed: executables named `cnova-runtime-<name>`, each asked what it is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io, thread};

use cnova_shared::wire::v1::{Alarm, RuntimeCapability};
use rustix::fs::Access;

const PREFIX: &str = "cnova-runtime-";
/// Most runtimes; more are left out and reported.
const RUNTIMES_MAX: usize = 16;

/// An installed runtime that describes itself.
#[derive(Clone, Debug)]
pub(crate) struct Runtime {
    /// The executable.
    pub(crate) exe: PathBuf,
    /// What it says.
    pub(crate) capability: RuntimeCapability,
    /// Whether its workloads can be given secrets.
    pub(crate) takes_secrets: bool,
}

/// All of them, and what is wrong with the others.
#[derive(Clone, Debug, Default)]
pub(crate) struct Catalog {
    runtimes: BTreeMap<String, Runtime>,
    pub(crate) alarms: Vec<Alarm>,
}

impl Catalog {
    /// Asks every executable in the folder, all at once. A broken one is an alarm, never an end.
    pub(crate) fn discover(folder: &Path) -> Self {
        let mut catalog = Self::default();
        let found = match executables(folder) {
            Ok(found) => found,
            Err(error) => {
                let detail = format!("no runtimes: cannot read {}: {error}", folder.display());
                catalog.alarms.push(Alarm {
                    code: "runtime-dir".into(),
                    detail,
                });
                return catalog;
            }
        };
        let answers: Vec<_> = thread::scope(|scope| {
            let asked: Vec<_> = found
                .into_iter()
                .map(|(name, exe)| {
                    (
                        scope.spawn({
                            let exe = exe.clone();
                            move || describe(&exe)
                        }),
                        name,
                        exe,
                    )
                })
                .collect();
            asked
                .into_iter()
                .map(|(thread, name, exe)| {
                    let answer = thread
                        .join()
                        .unwrap_or_else(|_| Err("it made the agent stumble".into()));
                    (name, exe, answer)
                })
                .collect()
        });
        for (name, exe, answer) in answers {
            let checked = answer.and_then(|(capability, takes_secrets)| {
                let capability = check_name(&name, capability)?;
                Ok((capability, takes_secrets))
            });
            match checked {
                Ok((capability, takes_secrets)) => {
                    let runtime = Runtime {
                        exe,
                        capability,
                        takes_secrets,
                    };
                    catalog.runtimes.insert(name, runtime);
                }
                Err(why) => {
                    let detail = format!("{} is not used: {why}", exe.display());
                    catalog.alarms.push(Alarm {
                        code: format!("runtime-{name}"),
                        detail,
                    });
                }
            }
        }
        catalog
    }

    /// What the node can run.
    pub(crate) fn capabilities(&self) -> Vec<RuntimeCapability> {
        self.runtimes.values().map(|r| r.capability.clone()).collect()
    }

    /// Whether a runtime's workloads can be given secrets.
    pub(crate) fn takes_secrets(&self, runtime: &str) -> bool {
        self.runtimes.get(runtime).is_some_and(|r| r.takes_secrets)
    }

    /// The executable of a runtime.
    pub(crate) fn exe(&self, runtime: &str) -> Option<&Path> {
        self.runtimes.get(runtime).map(|r| r.exe.as_path())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Runtime> {
        self.runtimes.values()
    }
}

fn executables(folder: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .and_then(|n| n.to_str())
            .and_then(|n| n.strip_prefix(PREFIX));
        let runs = path.is_file() && rustix::fs::access(&path, Access::EXEC_OK).is_ok();
        if let Some(name) = name.filter(|_| runs) {
            found.push((name.to_owned(), path));
        }
    }
    found.sort();
    if found.len() > RUNTIMES_MAX {
        tracing::warn!(folder = %folder.display(), "more than {RUNTIMES_MAX} runtimes; the others are left out");
        found.truncate(RUNTIMES_MAX);
    }
    Ok(found)
}

/// What it is, and whether it takes secrets.
fn describe(exe: &Path) -> Result<(RuntimeCapability, bool), String> {
    let says = cnova_ral::describe(exe).map_err(|e| format!("it does not describe itself: {e}"))?;
    if says.ral != cnova_ral::RAL_VERSION {
        return Err(format!(
            "it speaks RAL {}, this agent {}",
            says.ral,
            cnova_ral::RAL_VERSION
        ));
    }
    let takes_secrets = says.features.iter().any(|f| f == cnova_ral::SECRETS_FEATURE);
    let capability = RuntimeCapability {
        name: says.runtime,
        version: says.version,
        engine: says.engine,
        targets: says.targets,
    };
    Ok((capability, takes_secrets))
}

fn check_name(name: &str, capability: RuntimeCapability) -> Result<RuntimeCapability, String> {
    if capability.name == name {
        return Ok(capability);
    }
    Err(format!(
        "it says that it is the runtime {:?}; name the executable {PREFIX}{0}",
        capability.name
    ))
}
