//! How an instance ended, for a person.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::ExitStatus;

use cnova_ral::ExitReason;

use crate::observe::describe_exit;

const ERR_TAIL_BYTES: u64 = 1024;

/// How the wait for an instance's end went.
#[derive(Debug, Default)]
pub(super) struct End {
    pub(super) status: Option<ExitStatus>,
    /// What the agent itself did to it.
    pub(super) ours: Option<String>,
}

/// Whether it ended as it should, how, and whether its artifacts are to be looked at.
pub(super) fn explain(dir: &Path, end: &End) -> (bool, String, bool) {
    match cnova_ral::read_exit(dir) {
        Ok(Some(exit)) => {
            let (ok, detail) = describe_exit(&exit);
            let detail = match &end.ours {
                Some(ours) => format!("{ours}; {detail}"),
                None => detail,
            };
            (ok, detail, exit.reason == ExitReason::Refused)
        }
        Ok(None) => (false, without_exit_file(dir, end), false),
        Err(error) => (false, format!("its exit file cannot be read: {error}"), false),
    }
}

fn without_exit_file(dir: &Path, end: &End) -> String {
    if let Some(ours) = &end.ours {
        return ours.clone();
    }
    let mut detail = match end.status {
        Some(status) => format!("killed: its runtime ended without an exit file ({status})"),
        None => "killed: its runtime ended without an exit file".to_owned(),
    };
    if let Some(words) = last_words(dir) {
        detail.push_str("; it printed: ");
        detail.push_str(&words);
    }
    detail
}

/// The end of what the runtime itself printed.
fn last_words(dir: &Path) -> Option<String> {
    let mut file = File::open(dir.join(cnova_ral::file::RUNTIME_ERR)).ok()?;
    let skip = file.metadata().ok()?.len().saturating_sub(ERR_TAIL_BYTES);
    file.seek(SeekFrom::Start(skip)).ok()?;
    let mut bytes = Vec::new();
    file.take(ERR_TAIL_BYTES).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    (!text.is_empty()).then_some(text)
}
