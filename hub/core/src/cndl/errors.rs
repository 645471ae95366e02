//! What is wrong with a manifest, and where.

use std::fmt;

/// At most this many errors are kept: a 1 MiB file could otherwise hold hundreds of thousands.
pub const MAX_REPORTED_ERRORS: usize = 1_000;

/// At most this many characters of the user's text are repeated in a message.
const MAX_QUOTED_CHARS: usize = 60;

/// One mistake in a manifest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct ManifestError {
    /// Line, from 1.
    pub line: u32,
    /// Column, from 1, in characters.
    pub column: u32,
    /// JSON pointer (RFC 6901) to the value; empty for the whole document.
    pub pointer: String,
    /// What is wrong, in a sentence without its place.
    pub message: String,
    /// What would probably be right, for example `did you mean "memory"?`.
    pub hint: Option<String>,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)?;
        if !self.pointer.is_empty() {
            write!(f, " {}", self.pointer.escape_debug())?;
        }
        write!(f, ": {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong with a manifest, sorted by place. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ManifestErrors {
    /// The name of the manifest as the caller gave it, usually its path.
    pub source_name: String,
    /// The mistakes, by line and column.
    pub errors: Vec<ManifestError>,
    /// Whether there are more than [`MAX_REPORTED_ERRORS`].
    pub truncated: bool,
}

impl ManifestErrors {
    pub(super) fn new(source_name: &str, mut errors: Vec<ManifestError>) -> Self {
        errors.sort();
        errors.dedup();
        let truncated = errors.len() > MAX_REPORTED_ERRORS;
        errors.truncate(MAX_REPORTED_ERRORS);
        Self {
            source_name: source_name.to_owned(),
            errors,
            truncated,
        }
    }
}

impl fmt::Display for ManifestErrors {
    /// One line per error: `vibration-watch.yaml:12:7 /workloads/0/memry: unknown field (did you mean "memory"?)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.errors.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}:{error}", self.source_name)?;
        }
        if self.truncated {
            write!(
                f,
                "\n{}: and more; only {MAX_REPORTED_ERRORS} errors are shown",
                self.source_name
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for ManifestErrors {}

/// The user's text, safe and short enough for a terminal or a log.
pub(super) fn quoted(text: &str) -> String {
    let short: String = text.chars().take(MAX_QUOTED_CHARS).collect();
    let dots = if short.len() < text.len() { "..." } else { "" };
    format!("\"{}{dots}\"", short.escape_debug())
}

/// `did you mean "memory"?`, if one of the candidates is near enough.
pub(crate) fn nearest<'a>(text: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest_by(text, candidates.into_iter().map(|c| (c, c.to_owned())))
}

/// The same for candidates that are called otherwise than what they are compared by.
pub(super) fn nearest_by<'a>(text: &str, candidates: impl Iterator<Item = (&'a str, String)>) -> Option<String> {
    // A third of the letters may differ; further away a suggestion confuses more than it helps.
    let lower = text.to_lowercase();
    let allowed = lower.chars().count().div_ceil(3).min(4);
    candidates
        .map(|(compared, name)| (strsim::damerau_levenshtein(&lower, &compared.to_lowercase()), name))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, name)| format!("did you mean \"{name}\"?"))
}

/// One step of a JSON pointer, escaped.
pub(super) fn join(pointer: &str, segment: &str) -> String {
    format!("{pointer}/{}", segment.replace('~', "~0").replace('/', "~1"))
}
