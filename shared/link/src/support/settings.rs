//! Settings, by the names of their keys.

use std::path::Path;

use toml::{Table, Value};

use super::{Bundle, SupportError};
use crate::config;

/// Puts a program's settings in: the file and its drop-ins, each with the keys in `harmless` alone. `a.b` is one key, `a.*` all
/// below it. Comments are not in it.
///
/// # Errors
/// [`SupportError::Write`]. A file that is no TOML is left out: nobody knows what it holds.
pub fn add_settings(bundle: &mut Bundle, path: &Path, harmless: &[&str]) -> Result<(), SupportError> {
    let texts = match config::texts(path) {
        Ok(texts) => texts,
        Err(e) => {
            bundle.leave_out(path.display().to_string(), e.to_string());
            return Ok(());
        }
    };
    for (path, text) in texts {
        add_one(bundle, &path, &text, harmless)?;
    }
    Ok(())
}

fn add_one(bundle: &mut Bundle, path: &Path, text: &str, harmless: &[&str]) -> Result<(), SupportError> {
    let from = path.display().to_string();
    // The error of the parser would quote the text.
    let Ok(table) = text.parse::<Table>() else {
        bundle.leave_out(from, "it is not TOML");
        return Ok(());
    };
    let mut left_out = Vec::new();
    let kept = keep(table, "", harmless, &mut left_out);
    for key in left_out {
        bundle.leave_out(format!("{from}: {key}"), "not known to be harmless");
    }
    let name = path
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    bundle.add(&format!("settings/{name}"), &from, kept.to_string().as_bytes())
}

fn keep(table: Table, below: &str, harmless: &[&str], left_out: &mut Vec<String>) -> Table {
    let mut kept = Table::new();
    for (key, value) in table {
        let name = if below.is_empty() {
            key.clone()
        } else {
            format!("{below}.{key}")
        };
        let is_harmless = || {
            let covers = |h: &&str| match h.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => **h == name,
            };
            harmless.iter().any(covers)
        };
        match value {
            Value::Table(inner) => {
                let inner = keep(inner, &name, harmless, left_out);
                kept.insert(key, Value::Table(inner));
            }
            Value::Array(items) if items.iter().any(Value::is_table) => {
                let items = items.into_iter().map(|item| match item {
                    Value::Table(inner) => Value::Table(keep(inner, &name, harmless, left_out)),
                    _ => Value::Boolean(false),
                });
                kept.insert(key, Value::Array(items.collect()));
            }
            plain if is_harmless() => drop(kept.insert(key, plain)),
            _ => left_out.push(name),
        }
    }
    kept
}
