//! The bundle of a program that has no more to show than its settings, its store's size and its machine.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Bundle, CertificateFacts, Snapshot, SupportError, add_folder, add_machine, add_settings};

/// A program.
#[derive(Clone, Copy, Debug)]
pub struct Program<'a> {
    /// What it is called.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// Its settings.
    pub settings: &'a Path,
    /// Keys of them that are nobody's secret.
    pub harmless: &'a [&'a str],
}

/// Where a program keeps its things.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its state.
    pub state_dir: PathBuf,
    /// Its certificate.
    pub certificate: PathBuf,
    /// Its database.
    pub database: PathBuf,
}

/// Rows of each table of a database.
pub type Rows = Vec<(String, u64)>;

/// Makes a bundle; what is said about it, for a person. `place` is where the settings lead to, or why they lead nowhere;
/// `rows` counts those of a copy of the database.
///
/// # Errors
/// [`SupportError`].
pub fn make(
    program: &Program<'_>,
    place: Result<Place, String>,
    out: Option<PathBuf>,
    rows: impl Fn(&Path) -> Result<Rows, String>,
) -> Result<String, SupportError> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let made_s = since.as_secs();
    let path = out.unwrap_or_else(|| PathBuf::from(format!("{}-support-{made_s}.tar.gz", program.name)));
    let mut bundle = Bundle::create(&path, program.name, program.version, made_s)?;
    add_settings(&mut bundle, program.settings, program.harmless)?;
    match place {
        Ok(place) => add_place(&mut bundle, &place, rows)?,
        Err(why) => {
            bundle.leave_out("everything that the configuration leads to", why);
            add_machine(&mut bundle, Path::new("/"))?;
        }
    }
    for what in [
        "keys",
        "tokens",
        "secrets",
        "what is in the store, but for how much it is",
    ] {
        bundle.leave_out(what, "it is secret, or may be");
    }
    bundle.finish()
}

fn add_place(
    bundle: &mut Bundle,
    place: &Place,
    rows: impl Fn(&Path) -> Result<Rows, String>,
) -> Result<(), SupportError> {
    let certificate = place.certificate.display().to_string();
    match CertificateFacts::read(&place.certificate) {
        Ok(facts) => bundle.add_json("certificate.json", &certificate, &facts)?,
        Err(why) => bundle.leave_out(certificate, why),
    }
    let database = place.database.display().to_string();
    let copied = Snapshot::of(&place.database).map_err(|e| e.to_string());
    match copied.and_then(|copy| rows(copy.path())) {
        Ok(rows) => {
            let text: String = rows
                .iter()
                .map(|(table, rows)| format!("{rows:>10} {table}\n"))
                .collect();
            bundle.add("store.txt", &database, text.as_bytes())?;
        }
        Err(why) => bundle.leave_out(database, why),
    }
    add_folder(bundle, &place.state_dir)?;
    add_machine(bundle, &place.state_dir)
}
