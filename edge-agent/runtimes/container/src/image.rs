//! The image of the spec: verified, and its layers unpacked.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use cnova_oci::{
    CacheError, Digest, ImageConfig, LayerCache, LayerUse, MANIFEST_BYTES_MAX, ManifestError, Platform, UnpackLimits,
    check_image, unpack,
};
use cnova_ral::Spec;

/// An image that can be run. Its layers stay unpacked as long as this lives.
pub(crate) struct LoadedImage {
    pub(crate) config: ImageConfig,
    /// Lowest first.
    pub(crate) layers: Vec<LayerUse>,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error("the spec names no cache folder; a container needs one for its layers")]
    NoCache,
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("artifact {path} has digest {found}, the spec names {expected}")]
    Digest {
        path: PathBuf,
        found: Digest,
        expected: String,
    },
    #[error("artifact: {0}")]
    Manifest(#[from] ManifestError),
    #[error("the spec's parts lack {digest}, which the image's manifest names")]
    PartMissing { digest: Digest },
    #[error("the image is for {found}; this node is {wanted}")]
    Platform { found: String, wanted: String },
    #[error("the image has no layers")]
    NoLayers,
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// Reads, verifies and unpacks what the spec names.
pub(crate) fn load(spec: &Spec, shift: u32) -> Result<LoadedImage, ImageError> {
    let cache_dir = spec.cache.as_ref().ok_or(ImageError::NoCache)?;
    let manifest = read_small(&spec.artifact)?;
    let found = Digest::of(&manifest);
    if found.to_string() != spec.digest {
        return Err(ImageError::Digest {
            path: spec.artifact.clone(),
            found,
            expected: spec.digest.clone(),
        });
    }
    let config_digest = cnova_oci::Manifest::parse(&manifest)?.config.digest;
    let config = read_small(part(spec, &config_digest)?)?;
    let (manifest, config) = check_image(&manifest, &config)?;
    if let Some(here) = Platform::of_this_machine()
        && !here.runs(&config.platform)
    {
        return Err(ImageError::Platform {
            found: config.platform.to_string(),
            wanted: here.to_string(),
        });
    }
    if manifest.layers.is_empty() {
        return Err(ImageError::NoLayers);
    }
    let cache = LayerCache::open(cache_dir)?;
    let mut layers = Vec::new();
    for (layer, diff_id) in manifest.layers.iter().zip(&config.diff_ids) {
        let path = part(spec, &layer.digest)?;
        let unpack_into = |target: &Path| {
            let packed = File::open(path).map_err(|source| cnova_oci::UnpackError::Read {
                layer: layer.digest,
                source,
            })?;
            unpack(packed, layer, diff_id, target, &UnpackLimits::default(), shift).map(|_| ())
        };
        layers.push(cache.layer(diff_id, shift, unpack_into)?);
    }
    Ok(LoadedImage { config, layers })
}

fn part<'a>(spec: &'a Spec, digest: &Digest) -> Result<&'a Path, ImageError> {
    let name = digest.to_string();
    let found = spec.parts.iter().find(|part| part.digest == name);
    found
        .map(|part| part.path.as_path())
        .ok_or(ImageError::PartMissing { digest: *digest })
}

fn read_small(path: &Path) -> Result<Vec<u8>, ImageError> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        // One more than any document may have, so that its own check sees that it is too long.
        File::open(path)?.take(MANIFEST_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|source| ImageError::Io {
        path: path.to_owned(),
        source,
    })
}
