//! `cnova secret`: values go to the hub and never come back.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use cnova_shared::ids::Name;
use cnova_shared::limits::SECRET_BYTES;
use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::age::timestamp;
use crate::args::Secret;
use crate::client::Hub;
use crate::failure::read_and_print_error;
use crate::output::{Screen, Table};
use crate::routes;

read_and_print_error!(SecretError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the value in {} has more than {SECRET_BYTES} bytes, which is the most; larger things are artifacts", path.display())]
    TooLarge { path: PathBuf },
    #[error("the value is empty: give it with --from-file FILE or on standard input")]
    Empty,
    #[error("--allow {given:?}: write an application, or application/workload ({reason})")]
    NotAGrantee { given: String, reason: String },
    #[error("the hub's answer to {path} is not understood: {reason}\n  print it as it is with -o json")]
    NotUnderstood { path: &'static str, reason: String },
});

#[derive(Deserialize)]
struct Info {
    secrets: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    name: String,
    version: u64,
    allow: Vec<String>,
    used_by: Vec<String>,
    nodes: std::collections::BTreeMap<String, u64>,
    by: String,
    set_ms: u64,
}

#[derive(Deserialize)]
struct Was {
    version: u64,
    changed: bool,
}

/// Runs the command.
pub(crate) fn run(what: &Secret, hub: &Hub, screen: &mut Screen<'_>) -> Result<(), SecretError> {
    match what {
        Secret::Set { name, from_file, allow } => set(name, from_file.as_deref(), allow, hub, screen),
        Secret::Allow { name, who, nobody: _ } => {
            check(who)?;
            let answer: Value = hub.post(&routes::secret_grants(name), &json!({ "allow": who }))?;
            let text = match who.as_slice() {
                [] => format!("nobody may use secret {name}"),
                who => format!("secret {name} may be used by {} and nobody else", who.join(", ")),
            };
            Ok(screen.document(&answer, |s| s.line(&text))?)
        }
        Secret::List => list(hub, screen),
        Secret::Remove { name } => {
            hub.delete(&routes::secret(name))?;
            let text = format!("secret {name} is removed");
            Ok(screen.document(&json!({"done": text}), |s| s.line(&text))?)
        }
    }
}

fn set(
    name: &Name,
    from_file: Option<&Path>,
    allow: &[String],
    hub: &Hub,
    screen: &mut Screen<'_>,
) -> Result<(), SecretError> {
    check(allow)?;
    let value = match from_file {
        Some(path) => read(File::open(path), path)?,
        None => {
            if io::stdin().is_terminal() {
                let _ = writeln!(
                    io::stderr(),
                    "Type the value (it is shown), and end it with Ctrl-D; or use --from-file or a pipe."
                );
            }
            read(Ok(io::stdin()), Path::new("standard input"))?
        }
    };
    if value.is_empty() {
        return Err(SecretError::Empty);
    }
    let is_line = value.ends_with(b"\n") && value.iter().filter(|b| **b == b'\n').count() == 1;
    let answer: Value = hub.put_bytes(&routes::set_secret(name, allow), "application/octet-stream", &value)?;
    let was: Was = serde_json::from_value(answer.clone()).map_err(|e| SecretError::NotUnderstood {
        path: routes::SECRETS,
        reason: e.to_string(),
    })?;
    let text = match was.changed {
        true => format!("secret {name} is set, version {}", was.version),
        false => format!("secret {name} is as it was, version {}", was.version),
    };
    screen.document(&answer, |s| s.line(&text))?;
    screen.flush()?;
    if is_line {
        let _ = writeln!(
            io::stderr(),
            "note: the line break at the value's end belongs to it; printf %s gives a value without one"
        );
    }
    Ok(())
}

/// Only what such a name consists of goes into a path.
fn check(grantees: &[String]) -> Result<(), SecretError> {
    for given in grantees {
        let parts = given.split_once('/').map_or(vec![given.as_str()], |(a, w)| vec![a, w]);
        if let Some(error) = parts.into_iter().find_map(|part| Name::new(part).err()) {
            let (given, reason) = (given.clone(), error.to_string());
            return Err(SecretError::NotAGrantee { given, reason });
        }
    }
    Ok(())
}

fn read(from: io::Result<impl Read>, path: &Path) -> Result<Zeroizing<Vec<u8>>, SecretError> {
    let fail = |source| SecretError::Read {
        path: path.to_owned(),
        source,
    };
    // With room from the beginning: growing would leave copies of the value behind.
    let mut value = Zeroizing::new(Vec::with_capacity(SECRET_BYTES + 2));
    let mut limited = from.map_err(fail)?.take(SECRET_BYTES as u64 + 1);
    limited.read_to_end(&mut value).map_err(fail)?;
    if value.len() > SECRET_BYTES {
        return Err(SecretError::TooLarge { path: path.to_owned() });
    }
    Ok(value)
}

fn list(hub: &Hub, screen: &mut Screen<'_>) -> Result<(), SecretError> {
    let value: Value = hub.get(routes::SECRETS)?;
    if !screen.is_table() {
        return Ok(screen.document(&value, |_| Ok(()))?);
    }
    let info: Info = serde_json::from_value(value).map_err(|e| SecretError::NotUnderstood {
        path: routes::SECRETS,
        reason: e.to_string(),
    })?;
    let mut table = Table::new(["SECRET", "VERSION", "ALLOWED", "USED BY", "NODES", "SET", "BY"]);
    let names = |list: Vec<String>| {
        if list.is_empty() {
            "-".to_owned()
        } else {
            list.join(", ")
        }
    };
    for row in info.secrets {
        let nodes = row.nodes.iter().map(|(node, version)| match *version == row.version {
            true => node.clone(),
            false => format!("{node} (version {version})"),
        });
        let nodes = names(nodes.collect());
        let version = row.version.to_string();
        let set = timestamp(row.set_ms);
        table.row([
            row.name,
            version,
            names(row.allow),
            names(row.used_by),
            nodes,
            set,
            row.by,
        ]);
    }
    Ok(screen.table(&table)?)
}
