//! `cnova artifact`: container images are brought to the hub; what the hub keeps is listed and cleared.

use std::io;
use std::path::Path;

use cnova_oci::{Blob, Image, Layout, LayoutError, Platform, PlatformError};
use cnova_shared::ids::Digest;
use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;

use crate::args::Artifact;
use crate::client::{Hub, HubError};
use crate::output::{Screen, Table};
use crate::{provenance, routes};

/// An image was not imported, or the hub's artifacts cannot be shown.
#[derive(Debug, Error)]
pub(crate) enum ImportError {
    #[error(transparent)]
    Image(#[from] LayoutError),
    #[error("--platform: {0}")]
    Platform(#[from] PlatformError),
    #[error("{what} was not uploaded: {source}")]
    Upload { what: String, source: HubError },
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error("the hub's answer to {path} is not understood: {reason}")]
    NotUnderstood { path: &'static str, reason: String },
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

/// One part of an image and what became of it.
struct Part {
    what: String,
    digest: Digest,
    size: u64,
    there: bool,
}

#[derive(Deserialize)]
struct Stored {
    digest: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    used_by: Vec<String>,
}

/// Runs the command.
pub(crate) fn run(what: &Artifact, hub: &Hub, screen: &mut Screen<'_>) -> Result<(), ImportError> {
    match what {
        Artifact::Import {
            image: path,
            platform,
            reference,
        } => {
            let platform: Option<Platform> = platform.as_deref().map(str::parse).transpose()?;
            let layout = Layout::open(path)?;
            let image = layout.image(platform.as_ref(), reference.as_deref())?;
            import(hub, &image, screen)?;
            Ok(provenance::attach_beside(hub, path, &shared(image.digest()), screen)?)
        }
        // It needs no hub, and does not come here.
        Artifact::Sign(_) => Ok(()),
        Artifact::List => list(hub, screen),
        Artifact::Gc => collect(hub, screen),
    }
}

fn shared(digest: cnova_oci::Digest) -> Digest {
    Digest(*digest.bytes())
}

/// What a blob is in its image: blobs come as layers, configuration, manifest.
fn role(index: usize, layers: usize) -> String {
    match index {
        i if i < layers => format!("layer {} of {layers}", i + 1),
        i if i == layers => "configuration".to_owned(),
        _ => "manifest".to_owned(),
    }
}

/// Uploads what the hub does not have of an image, its manifest last.
fn import(hub: &Hub, image: &Image<'_>, screen: &mut Screen<'_>) -> Result<(), ImportError> {
    let mut parts = Vec::new();
    let layers = image.manifest().layers.len();
    for (index, blob) in image.blobs().enumerate() {
        let part = send(hub, role(index, layers), blob?)?;
        if screen.is_table() {
            let done = if part.there { "there already" } else { "uploaded" };
            let Part { what, size, digest, .. } = &part;
            screen.line(&format!("{done:<13} {what} ({size} bytes, {})", digest.short()))?;
            screen.flush()?;
        }
        parts.push(part);
    }
    let digest = shared(image.digest());
    let listed: Vec<Value> = parts
        .iter()
        .map(|p| json!({"what": p.what, "digest": p.digest, "size": p.size, "uploaded": !p.there}))
        .collect();
    let platform = image.config().platform.to_string();
    let value = json!({"digest": digest, "platform": platform, "parts": listed});
    screen.document(&value, |s| {
        s.line(&format!("image for {platform}; name it in a manifest as"))?;
        s.line(&format!("  artifact: {{digest: \"{digest}\"}}"))
    })?;
    Ok(())
}

fn send(hub: &Hub, what: String, blob: Blob) -> Result<Part, ImportError> {
    let (digest, size) = (shared(blob.digest()), blob.size());
    let there = hub.has_artifact(&digest)?;
    if !there {
        let uploaded = hub.upload_from(&digest, size, blob);
        uploaded.map_err(|source| ImportError::Upload {
            what: format!("the image's {what}"),
            source,
        })?;
    }
    Ok(Part {
        what,
        digest,
        size,
        there,
    })
}

/// The one image of a layout: its digest and the size of its manifest.
pub(crate) fn identify(path: &Path) -> Result<(Digest, u64), LayoutError> {
    let layout = Layout::open(path)?;
    let image = layout.image(None, None)?;
    Ok((shared(image.digest()), image.manifest_bytes().len() as u64))
}

/// Whether the hub lacks any part of the one image of a layout.
pub(crate) fn is_lacking(hub: &Hub, path: &Path) -> Result<bool, ImportError> {
    let layout = Layout::open(path)?;
    let image = layout.image(None, None)?;
    for blob in image.blobs() {
        if !hub.has_artifact(&shared(blob?.digest()))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Uploads what the hub lacks of the one image of a layout, and says so in one line for each part.
pub(crate) fn upload(hub: &Hub, path: &Path, screen: &mut Screen<'_>) -> Result<(), ImportError> {
    let layout = Layout::open(path)?;
    let image = layout.image(None, None)?;
    let layers = image.manifest().layers.len();
    for (index, blob) in image.blobs().enumerate() {
        let part = send(hub, role(index, layers), blob?)?;
        if screen.is_table() && !part.there {
            let Part { what, size, digest, .. } = &part;
            screen.line(&format!(
                "uploaded {} {what} ({size} bytes, {})",
                path.display(),
                digest.short()
            ))?;
            screen.flush()?;
        }
    }
    Ok(())
}

fn list(hub: &Hub, screen: &mut Screen<'_>) -> Result<(), ImportError> {
    let mut answer: Value = hub.get(routes::ARTIFACTS)?;
    let listed = answer.get_mut("artifacts").map(Value::take).unwrap_or_default();
    if !screen.is_table() {
        return Ok(screen.document(&listed, |_| Ok(()))?);
    }
    let all: Vec<Stored> = serde_json::from_value(listed).map_err(|e| ImportError::NotUnderstood {
        path: routes::ARTIFACTS,
        reason: e.to_string(),
    })?;
    let mut t = Table::new(["DIGEST", "BYTES", "USED BY"]);
    for a in &all {
        let used = match a.used_by.as_slice() {
            [] => "nothing".to_owned(),
            [one] => one.clone(),
            [first, rest @ ..] => format!("{first} and {} more", rest.len()),
        };
        t.row([a.digest.clone(), a.size.to_string(), used]);
    }
    Ok(screen.table(&t)?)
}

fn collect(hub: &Hub, screen: &mut Screen<'_>) -> Result<(), ImportError> {
    let answer: Value = hub.post(routes::COLLECT, &json!({}))?;
    let count = answer.get("removed").and_then(Value::as_array).map_or(0, Vec::len);
    let bytes = answer.get("bytes").and_then(Value::as_u64).unwrap_or(0);
    let text = match count {
        0 => "every artifact is in use: nothing was removed".to_owned(),
        n => format!("{n} artifact(s) that nothing used removed, {bytes} bytes"),
    };
    Ok(screen.document(&answer, |s| s.line(&text))?)
}
