//! Where artifacts are from: `cnova build`, `cnova artifact sign`, and the files of provenance beside artifacts.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use cnova_provenance::{Dependency, FILE_SUFFIX, Made, Subject};
use cnova_shared::ids::Digest;
use cnova_shared::keys::{SignError, Signer};
use cnova_shared::limits;
use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;

use crate::artifact::{self, ImportError};
use crate::client::{Hub, HubError};
use crate::output::Screen;
use crate::routes;
use crate::trust::TrustError;

pub(crate) mod build;
mod git;
mod inputs;
pub(crate) mod sign;

/// Provenance was not made, or did not reach the hub.
#[derive(Debug, Error)]
pub(crate) enum AttestError {
    #[error("--key: {0}")]
    Key(#[source] TrustError),
    #[error("--builder {0:?} is not a URI of at most 256 printable characters, such as https://ci.example/line-2")]
    Builder(String),
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{} has {bytes} bytes, and an artifact has 1 to {}", path.display(), limits::ARTIFACT_BYTES)]
    Size { path: PathBuf, bytes: u64 },
    #[error("{} does not hold one container image: {source}", path.display())]
    Image {
        path: PathBuf,
        source: Box<cnova_oci::LayoutError>,
    },
    #[error("--material {0:?} is neither a file nor a digest (sha256: and 64 hex digits)")]
    Material(String),
    #[error("{found} inputs; at most {max} are recorded: name fewer, or an archive of them")]
    TooManyInputs { found: usize, max: usize },
    #[error(
        "the provenance has {bytes} bytes, and at most {} are taken: name fewer inputs",
        limits::PROVENANCE_BYTES
    )]
    TooLarge { bytes: usize },
    #[error(transparent)]
    Sign(#[from] SignError),
    #[error("cannot start {program:?}: {source}")]
    Start { program: String, source: io::Error },
    #[error("{program:?} failed ({status}): nothing is signed")]
    Failed { program: String, status: String },
    #[error("--out {} is a folder that is no OCI image layout; it would have to be removed before the build: remove it yourself, or name a file", path.display())]
    Folder { path: PathBuf },
    #[error("the build ended well and did not make {}: correct --out", path.display())]
    NotMade { path: PathBuf },
    #[error(
        "{what} was not uploaded: {source}\n  {file} is written; bring it to the hub with: cnova artifact sign, or cnova apply"
    )]
    Upload {
        what: String,
        file: String,
        source: Box<HubError>,
    },
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

/// An artifact on this disk.
#[derive(Debug)]
pub(crate) struct Local {
    pub(crate) path: PathBuf,
    pub(crate) digest: Digest,
    pub(crate) is_image: bool,
}

impl Local {
    /// Hashes an artifact; of an image its manifest. A folder is an image.
    pub(crate) fn read(path: &Path, is_image: bool) -> Result<Self, AttestError> {
        let is_image = is_image || path.is_dir();
        let digest = if is_image {
            let identified = artifact::identify(path).map_err(|source| AttestError::Image {
                path: path.to_owned(),
                source: Box::new(source),
            });
            identified?.0
        } else {
            inputs::hash_artifact(path)?
        };
        Ok(Self {
            path: path.to_owned(),
            digest,
            is_image,
        })
    }

    fn subject(&self) -> Subject {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Subject {
            name,
            digest: self.digest,
        }
    }
}

/// Where an artifact's provenance lies: beside it.
pub(crate) fn beside(artifact: &Path) -> PathBuf {
    let mut name = OsString::from(artifact);
    name.push(FILE_SUFFIX);
    PathBuf::from(name)
}

/// What is signed, beside what was made.
struct Statement<'a> {
    build_type: &'a str,
    parameters: Value,
    dependencies: &'a [Dependency],
    builder: &'a str,
    times_s: (u64, u64),
}

fn envelope(subjects: &[Subject], statement: Statement<'_>, key: &dyn Signer) -> Result<Vec<u8>, AttestError> {
    let payload = cnova_provenance::make(&Made {
        subjects,
        build_type: statement.build_type,
        parameters: statement.parameters,
        dependencies: statement.dependencies,
        builder: statement.builder,
        builder_version: [("cnova".to_owned(), env!("CARGO_PKG_VERSION").to_owned())].into(),
        started_s: statement.times_s.0,
        finished_s: statement.times_s.1,
    });
    let envelope = cnova_provenance::sign(&payload, &[key])?;
    if envelope.len() > limits::PROVENANCE_BYTES {
        return Err(AttestError::TooLarge { bytes: envelope.len() });
    }
    Ok(envelope)
}

fn check_builder(builder: &str) -> Result<(), AttestError> {
    let fits = (1..=limits::BUILDER_URI_LEN).contains(&builder.len());
    if fits && builder.contains(':') && builder.bytes().all(|b| b.is_ascii_graphic()) {
        Ok(())
    } else {
        Err(AttestError::Builder(builder.to_owned()))
    }
}

/// Writes one envelope, a line, in the place of what was there or after it.
fn write(path: &Path, envelope: &[u8], append: bool) -> Result<(), AttestError> {
    let failed = |source| AttestError::Write {
        path: path.to_owned(),
        source,
    };
    let mut options = File::options();
    options.create(true).write(true).append(append).truncate(!append);
    let mut file = options.open(path).map_err(failed)?;
    let written = file
        .write_all(&[envelope, b"\n"].concat())
        .and_then(|()| file.sync_all());
    written.map_err(failed)
}

/// The envelopes of a file, each with its line.
fn lines(path: &Path) -> Result<Vec<(usize, Vec<u8>)>, io::Error> {
    let most = (limits::PROVENANCE_BYTES + 1) * limits::PROVENANCE_PER_ARTIFACT;
    let length = fs::metadata(path)?.len();
    if length > most as u64 {
        let why = format!("it has {length} bytes; provenance of one artifact has at most {most}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    let text = fs::read(path)?;
    let numbered = text.split(|b| *b == b'\n').enumerate();
    let written = numbered.filter(|(_, line)| !line.iter().all(u8::is_ascii_whitespace));
    Ok(written.map(|(i, line)| (i + 1, line.to_vec())).collect())
}

/// What the hub says of an envelope.
#[derive(Debug, Deserialize)]
struct Attached {
    #[serde(default)]
    builder: Option<String>,
    #[serde(default)]
    level: u8,
    #[serde(default)]
    problem: Option<String>,
}

/// Brings the provenance that lies beside an artifact to the hub, if any does. What the hub does not want is said and
/// stops nothing: whether provenance is needed is for the manifest and the trust bundle to say.
pub(crate) fn attach_beside(
    hub: &Hub,
    artifact: &Path,
    digest: &Digest,
    screen: &mut Screen<'_>,
) -> Result<(), HubError> {
    let file = beside(artifact);
    if !file.is_file() {
        return Ok(());
    }
    attach_file(hub, &file, digest, screen)
}

fn attach_file(hub: &Hub, file: &Path, digest: &Digest, screen: &mut Screen<'_>) -> Result<(), HubError> {
    let name = file.display().to_string();
    let envelopes = match lines(file) {
        Ok(envelopes) => envelopes,
        Err(error) => {
            warn(&format!("{name} is not uploaded: {error}"));
            return Ok(());
        }
    };
    for (line, envelope) in envelopes {
        match attach(hub, digest, &envelope) {
            Ok(attached) => say(&name, &attached, screen),
            Err(HubError::Refused(r)) if r.status == 422 => {
                warn(&format!("{name}, line {line}: {}; sign the artifact again", r.text()));
            }
            // A hub of an earlier version; it asks for no provenance either.
            Err(HubError::Refused(r)) if r.status == 404 && !r.message.contains("upload it first") => {
                warn(&format!("{name}: this hub does not know provenance"));
                return Ok(());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn attach(hub: &Hub, digest: &Digest, envelope: &[u8]) -> Result<Attached, HubError> {
    hub.post_bytes(
        &routes::provenance(digest),
        "application/vnd.dsse.envelope.v1+json",
        envelope,
    )
}

fn say(file: &str, attached: &Attached, screen: &mut Screen<'_>) {
    match (&attached.builder, &attached.problem) {
        (_, Some(problem)) => warn(&format!("{file} is kept and proves nothing yet: {problem}")),
        (Some(builder), None) if screen.is_table() => {
            // The next line that is printed fails as well, and says so.
            let _ = screen.line(&format!("provenance {file}: {builder}, level {}", attached.level));
            let _ = screen.flush();
        }
        _ => {}
    }
}

/// Standard error; nothing is left to do when it is closed.
fn warn(text: &str) {
    let _ = writeln!(io::stderr(), "warning: {text}");
}

/// Uploads an artifact that the hub does not have, and its provenance.
fn upload(hub: &Hub, local: &Local, file: &Path, screen: &mut Screen<'_>) -> Result<(), AttestError> {
    let failed = |source| AttestError::Upload {
        what: local.path.display().to_string(),
        file: file.display().to_string(),
        source: Box::new(source),
    };
    if local.is_image {
        artifact::upload(hub, &local.path, screen)?;
    } else if !hub.has_artifact(&local.digest).map_err(failed)? {
        let open = File::open(&local.path).map_err(|source| AttestError::Read {
            path: local.path.clone(),
            source,
        })?;
        hub.upload(&local.digest, &open).map_err(failed)?;
    }
    attach_file(hub, file, &local.digest, screen).map_err(failed)
}

/// What was signed, for people and for programs.
fn report(signed: &[(Local, PathBuf)], key: &dyn Signer, builder: &str, screen: &mut Screen<'_>) -> io::Result<()> {
    let id = key.public_key().id();
    let one = |(local, file): &(Local, PathBuf)| json!({"artifact": local.path, "digest": local.digest, "file": file});
    let value = json!({
        "builder": builder, "key": id.to_string(), "signed": signed.iter().map(one).collect::<Vec<_>>(),
    });
    screen.document(&value, |s| {
        for (local, file) in signed {
            s.line(&format!("{}  {}", local.digest, local.path.display()))?;
            s.line(&format!("  {}: by {builder}, key {id}", file.display()))?;
        }
        Ok(())
    })
}
