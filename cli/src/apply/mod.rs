//! `cnova apply`: read everything, then send it, then follow it.

use std::io;
use std::path::PathBuf;

use cnova_shared::ids::Name;
use serde_json::{Value, json};
use thiserror::Error;

use crate::args::ApplyArgs;
use crate::artifact::ImportError;
use crate::client::{Hub, HubError};
use crate::model::{Applied, Outcome, StageRecord};
use crate::output::Screen;
use crate::{manifest_errors, routes};

mod files;
mod manifests;
pub(crate) mod wait;

use files::LocalFile;
use manifests::ManifestFile;

/// Manifests were not applied, not all, or not everywhere in time.
#[derive(Debug, Error)]
pub(crate) enum ApplyError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} has {bytes} bytes; a manifest has at most {max}", path.display())]
    ManifestTooLarge { path: PathBuf, bytes: u64, max: u64 },
    #[error("{} is not UTF-8 text", path.display())]
    NotText { path: PathBuf },
    #[error("{} holds no manifest: no *.yaml, *.yml or *.json file with apiVersion: cnova/v1 (folders called build are not looked into)", path.display())]
    NoManifests { path: PathBuf },
    #[error("{} is nested more than {max} folders deep, or holds more than {entries} files; name the manifests themselves", path.display())]
    FolderTooLarge { path: PathBuf, max: usize, entries: usize },
    #[error("{manifest}: {pointer} names the file {file:?}, which is looked for at {}: {source}\n  build it first, or correct its path (relative to the manifest)", path.display())]
    Artifact {
        manifest: String,
        pointer: String,
        file: String,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{manifest}: {pointer} names the file {file:?}: it has {bytes} bytes, and an artifact has at most {max}")]
    ArtifactTooLarge {
        manifest: String,
        pointer: String,
        file: String,
        bytes: u64,
        max: u64,
    },
    #[error(
        "{manifest}: {pointer} does not name one container image: {source}\n  of several images choose one with: cnova artifact import FILE --platform OS/ARCH, and name its digest"
    )]
    Image {
        manifest: String,
        pointer: String,
        source: Box<cnova_oci::LayoutError>,
    },
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error("{} was not uploaded: {source}", path.display())]
    Upload { path: PathBuf, source: HubError },
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(
        "this hub does not know dry runs, and applied {name}: see what runs now with: cnova describe application {name}"
    )]
    NotDry { name: Name },
    /// Each was said when it happened.
    #[error("{failed} of {total} manifests not applied")]
    NotApplied { failed: usize, total: usize },
    #[error("not everything runs:\n  - {}", missing.join("\n  - "))]
    NotReported { missing: Vec<String> },
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

/// What is sent for one manifest.
struct Request {
    manifest: ManifestFile,
    files: Vec<LocalFile>,
}

/// What became of it.
struct Done {
    source: String,
    outcome: Value,
    applied: Applied,
    timeline: Vec<StageRecord>,
    missing: Vec<String>,
}

/// Runs the command.
pub(crate) fn run(args: &ApplyArgs, hub: &Hub, screen: &mut Screen<'_>) -> Result<(), ApplyError> {
    // Everything local is read first: a missing file in the last manifest stops the first one too.
    let mut requests = Vec::new();
    for manifest in manifests::read_all(&args.paths)? {
        let files = files::hash_all(&manifest)?;
        requests.push(Request { manifest, files });
    }
    let total = requests.len();
    let mut done = Vec::new();
    for request in requests {
        if let Some(one) = apply_one(args, hub, &request, screen)? {
            done.push(one);
        }
    }
    if !screen.is_table() {
        let all: Vec<Value> = done.iter().map(Done::to_value).collect();
        screen.document(&Value::Array(all), |_| Ok(()))?;
    }
    if done.len() < total {
        return Err(ApplyError::NotApplied {
            failed: total - done.len(),
            total,
        });
    }
    let missing: Vec<String> = done.into_iter().flat_map(|d| d.missing).collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(ApplyError::NotReported { missing })
    }
}

/// `None` when the hub refused it, which has then been said; the next manifest may still be good.
fn apply_one(
    args: &ApplyArgs,
    hub: &Hub,
    request: &Request,
    screen: &mut Screen<'_>,
) -> Result<Option<Done>, ApplyError> {
    let source = request.manifest.source_name();
    match send(args, hub, request, screen) {
        Ok((outcome, applied)) => {
            if screen.is_table() {
                print_applied(&applied, args.dry_run, screen)?;
            }
            let mut done = Done {
                source,
                outcome,
                applied,
                timeline: Vec::new(),
                missing: Vec::new(),
            };
            if let Some(seconds) = args.wait.filter(|_| !request.manifest.is_system()) {
                let followed = wait::follow(hub, &done.applied, seconds, screen)?;
                (done.timeline, done.missing) = (followed.timeline, followed.missing);
            }
            Ok(Some(done))
        }
        Err(NotSent::NotAccepted(text)) => {
            screen.flush()?;
            complain(text.trim_end());
            Ok(None)
        }
        Err(NotSent::Failed(e)) => Err(e),
    }
}

/// Standard error; nothing is left to do when it is closed.
fn complain(text: &str) {
    use std::io::Write;
    let _ = writeln!(io::stderr(), "{text}");
}

enum NotSent {
    /// This manifest is not accepted, and why, for a person.
    NotAccepted(String),
    /// No manifest will be.
    Failed(ApplyError),
}

impl From<ApplyError> for NotSent {
    fn from(e: ApplyError) -> Self {
        Self::Failed(e)
    }
}

fn send(args: &ApplyArgs, hub: &Hub, request: &Request, screen: &mut Screen<'_>) -> Result<(Value, Applied), NotSent> {
    let missing = files::missing(hub, &request.files)?;
    if !args.dry_run {
        files::upload(hub, &missing, screen)?;
        files::attach(hub, &request.files, screen)?;
        return post(hub, request, false);
    }
    for file in &missing {
        files::say("would upload", file, screen).map_err(ApplyError::from)?;
    }
    post(hub, request, true)
}

fn post(hub: &Hub, request: &Request, dry_run: bool) -> Result<(Value, Applied), NotSent> {
    let digest = |f: &LocalFile| (f.name.clone(), Value::String(f.digest.to_string()));
    let artifacts: serde_json::Map<String, Value> = request.files.iter().map(digest).collect();
    let source = request.manifest.source_name();
    let mut body = json!({ "manifest": request.manifest.text, "source": source, "artifacts": artifacts });
    if dry_run {
        body["dry_run"] = Value::Bool(true);
    }
    let place = if request.manifest.is_system() {
        routes::SYSTEMS
    } else {
        routes::APPLICATIONS
    };
    let answer: Value = hub.post(place, &body).map_err(|e| refusal(e, request))?;
    match (serde_json::from_value::<Outcome>(answer.clone()), dry_run) {
        (Ok(Outcome::Applied(applied)), false) | (Ok(Outcome::DryRun(applied)), true) => Ok((answer, applied)),
        (Ok(Outcome::Applied(applied)), true) => Err(ApplyError::NotDry { name: applied.name }.into()),
        (Ok(Outcome::Refused { reasons }), _) => Err(NotSent::NotAccepted(format!(
            "{source}: refused\n  - {}",
            reasons.join("\n  - ")
        ))),
        _ => Err(NotSent::NotAccepted(format!(
            "{source}: the hub's answer is not understood: {answer}"
        ))),
    }
}

/// Tells what is wrong with this manifest from what is wrong with the hub, the token or the network.
fn refusal(e: HubError, request: &Request) -> NotSent {
    let HubError::Refused(refusal) = &e else {
        return NotSent::Failed(e.into());
    };
    let source = request.manifest.source_name();
    let mistakes = manifest_errors::from_details(&refusal.details);
    if !mistakes.is_empty() {
        return NotSent::NotAccepted(manifest_errors::render(&source, &request.manifest.text, &mistakes));
    }
    match (refusal.status, refusal.is_policy()) {
        (401, _) | (403, false) => NotSent::Failed(e.into()),
        _ => NotSent::NotAccepted(format!("{source}: {e}")),
    }
}

fn print_applied(applied: &Applied, dry_run: bool, screen: &mut Screen<'_>) -> io::Result<()> {
    let what = match (dry_run, applied.changed) {
        (true, true) => "would be applied as",
        (true, false) => "would stay as it is,",
        (false, true) => "applied,",
        (false, false) => "unchanged,",
    };
    screen.line(&format!("{} {what} generation {}", applied.name, applied.generation))?;
    for (workload, nodes) in &applied.placed {
        if !nodes.is_empty() {
            let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
            screen.line(&format!("  placed     {workload} -> {}", nodes.join(", ")))?;
        }
    }
    for (secret, version) in &applied.secrets {
        screen.line(&format!("  secret     {secret} (version {version})"))?;
    }
    for (workload, why) in &applied.unproven {
        screen.line(&format!(
            "  unproven   {workload}: {why}, unless it lies beside its file"
        ))?;
    }
    for (workload, why) in &applied.unplaced {
        screen.line(&format!("  unplaced   {workload}: {why}"))?;
    }
    Ok(())
}

impl Done {
    fn to_value(&self) -> Value {
        json!({
            "source": self.source,
            "outcome": self.outcome,
            "timeline": self.timeline,
            "missing": self.missing,
        })
    }
}
