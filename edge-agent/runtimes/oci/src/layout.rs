//! An image layout: a folder or an archive with `oci-layout`, `index.json` and `blobs/sha256`.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::digest::Digest;
use crate::image::Image;
use crate::manifest::{
    CONFIG_BYTES_MAX, Descriptor, INDEX_TYPES, ImageConfig, MANIFEST_BYTES_MAX, MANIFEST_TYPES, Manifest,
    ManifestError, check_image,
};
use crate::platform::Platform;
use crate::source::{Opened, Source};

/// How deep an index may point to another.
const INDEX_DEPTH_MAX: u32 = 3;
/// Most images that a layout may offer.
const IMAGES_MAX: usize = 256;
/// Names an image in an index.
const REFERENCE: &str = "org.opencontainers.image.ref.name";
/// Names an image in an index, as containerd and docker write it.
const FULL_NAME: &str = "io.containerd.image.name";
/// Marks what is no image but a note about one, such as a provenance attestation.
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";

/// Why an image could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// A file could not be read.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// Not an archive.
    #[error("{path} is neither a folder nor a tar archive, plain or gzipped: {source}")]
    Archive {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An archive with a name that leads out of it.
    #[error("{path} is refused: its entry `{name}` leads out of the archive")]
    Escape {
        /// Which archive.
        path: PathBuf,
        /// Which entry.
        name: String,
    },
    /// An archive or a folder without an image layout.
    #[error(
        "{path} has no `{missing}`: it is not an OCI image layout (make one with `skopeo copy ... oci-archive:FILE`, \
         `buildah push ... oci-archive:FILE`, or `docker save` of Docker 25 or newer)"
    )]
    NotALayout {
        /// Which.
        path: PathBuf,
        /// Which file it lacks.
        missing: &'static str,
    },
    /// A document of the layout is not valid.
    #[error("{path}: {name} is not valid: {source}")]
    Json {
        /// Which layout.
        path: PathBuf,
        /// Which file or digest.
        name: String,
        /// Where it is wrong.
        source: serde_json::Error,
    },
    /// A manifest or configuration is not acceptable.
    #[error("{path}: {source}")]
    Manifest {
        /// Which layout.
        path: PathBuf,
        /// What is wrong.
        source: ManifestError,
    },
    /// A blob is not there.
    #[error("{path} lacks the blob {digest}: it is incomplete")]
    Missing {
        /// Which layout.
        path: PathBuf,
        /// Which blob.
        digest: Digest,
    },
    /// A blob is not the one that its name says.
    #[error("{path}: blob {digest} is corrupt: {why}")]
    Corrupt {
        /// Which layout.
        path: PathBuf,
        /// Which blob.
        digest: Digest,
        /// What was found.
        why: String,
    },
    /// Nothing there runs on the platform that was asked for.
    #[error("{path} has {offered} only; wanted {wanted}")]
    Platform {
        /// Which layout.
        path: PathBuf,
        /// What it has.
        offered: String,
        /// What was asked for.
        wanted: String,
    },
    /// No image of that name.
    #[error("{path} has no image named `{wanted}`; it has {offered}")]
    Reference {
        /// Which layout.
        path: PathBuf,
        /// What was asked for.
        wanted: String,
        /// What it has.
        offered: String,
    },
    /// More than one image fits.
    #[error("{path} has several images: name one of {offered}")]
    Ambiguous {
        /// Which layout.
        path: PathBuf,
        /// What it has.
        offered: String,
    },
    /// Too many images or indexes within indexes.
    #[error("{path} has more than {IMAGES_MAX} images, or indexes more than {INDEX_DEPTH_MAX} deep")]
    TooMany {
        /// Which layout.
        path: PathBuf,
    },
}

/// An opened layout.
pub struct Layout {
    pub(crate) path: PathBuf,
    pub(crate) source: Source,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

/// An image that a layout offers.
struct Offer {
    descriptor: Descriptor,
    names: Vec<String>,
}

impl Layout {
    /// Opens a folder, a tar archive or a gzipped one. `docker save` archives have a layout in them since Docker 25.
    ///
    /// # Errors
    /// Why it is no layout.
    pub fn open(path: &Path) -> Result<Layout, LayoutError> {
        let layout = Layout {
            path: path.to_owned(),
            source: Source::open(path)?,
        };
        for missing in ["oci-layout", "index.json"] {
            if layout.file(missing)?.is_none() {
                let path = path.to_owned();
                return Err(LayoutError::NotALayout { path, missing });
            }
        }
        Ok(layout)
    }

    /// Chooses an image: of this platform if one is named, of this name if one is given. Its manifest and configuration
    /// are verified; its layers are when they are read.
    ///
    /// # Errors
    /// Why there is none, or why it is not acceptable.
    pub fn image(&self, platform: Option<&Platform>, reference: Option<&str>) -> Result<Image<'_>, LayoutError> {
        let mut offers = Vec::new();
        let index = self.json("index.json", &self.small_file("index.json", MANIFEST_BYTES_MAX)?)?;
        self.gather(index, &[], 0, &mut offers)?;
        let named = self.choose_by_name(offers, reference)?;
        let mut images = Vec::new();
        for offer in named {
            let (manifest, config) = self.documents(&offer.descriptor)?;
            let read = |source| self.manifest_error(source);
            let built_for = ImageConfig::parse(&config).map_err(read)?.platform;
            images.push((built_for, offer, manifest, config));
        }
        let offered = join(images.iter().map(|(built_for, ..)| built_for.to_string()));
        if let Some(wanted) = platform {
            images.retain(|(built_for, ..)| wanted.runs(built_for));
            if images.is_empty() {
                return Err(LayoutError::Platform {
                    path: self.path.clone(),
                    offered,
                    wanted: wanted.to_string(),
                });
            }
        }
        // The same image under two names is one image.
        images.dedup_by(|a, b| a.1.descriptor.digest == b.1.descriptor.digest);
        if images.len() > 1 {
            let name = |(built_for, offer, ..): &(Platform, Offer, Vec<u8>, Vec<u8>)| match offer.names.first() {
                Some(name) => format!("{name} ({built_for})"),
                None => built_for.to_string(),
            };
            return Err(LayoutError::Ambiguous {
                path: self.path.clone(),
                offered: join(images.iter().map(name)),
            });
        }
        let Some((_, _, manifest_bytes, config_bytes)) = images.pop() else {
            return Err(LayoutError::Platform {
                path: self.path.clone(),
                offered: "no image".into(),
                wanted: platform.map_or_else(|| "any".into(), Platform::to_string),
            });
        };
        let (manifest, config) = check_image(&manifest_bytes, &config_bytes).map_err(|e| self.manifest_error(e))?;
        Ok(Image::new(self, manifest_bytes, config_bytes, manifest, config))
    }

    fn choose_by_name(&self, mut offers: Vec<Offer>, reference: Option<&str>) -> Result<Vec<Offer>, LayoutError> {
        let Some(wanted) = reference else { return Ok(offers) };
        let offered = join(offers.iter().flat_map(|offer| offer.names.clone()));
        offers.retain(|offer| offer.names.iter().any(|name| name == wanted));
        if offers.is_empty() {
            return Err(LayoutError::Reference {
                path: self.path.clone(),
                wanted: wanted.to_owned(),
                offered: if offered.is_empty() { "no names".into() } else { offered },
            });
        }
        Ok(offers)
    }

    fn gather(
        &self,
        index: Index,
        inherited: &[String],
        depth: u32,
        offers: &mut Vec<Offer>,
    ) -> Result<(), LayoutError> {
        for descriptor in index.manifests {
            if depth >= INDEX_DEPTH_MAX || offers.len() >= IMAGES_MAX {
                return Err(LayoutError::TooMany {
                    path: self.path.clone(),
                });
            }
            if descriptor.annotations.contains_key(REFERENCE_TYPE) {
                continue;
            }
            let mut names = inherited.to_vec();
            let own = [REFERENCE, FULL_NAME].map(|key| descriptor.annotations.get(key).cloned());
            names.extend(own.into_iter().flatten());
            if INDEX_TYPES.contains(&descriptor.media_type.as_str()) {
                let bytes = self.small_blob(&descriptor, MANIFEST_BYTES_MAX)?;
                let inner = self.json(&descriptor.digest.to_string(), &bytes)?;
                self.gather(inner, &names, depth + 1, offers)?;
            } else if MANIFEST_TYPES.contains(&descriptor.media_type.as_str()) {
                offers.push(Offer { descriptor, names });
            }
        }
        Ok(())
    }

    fn documents(&self, descriptor: &Descriptor) -> Result<(Vec<u8>, Vec<u8>), LayoutError> {
        let manifest_bytes = self.small_blob(descriptor, MANIFEST_BYTES_MAX)?;
        let manifest = Manifest::parse(&manifest_bytes).map_err(|e| self.manifest_error(e))?;
        let config = self.small_blob(&manifest.config, CONFIG_BYTES_MAX)?;
        Ok((manifest_bytes, config))
    }

    /// A verified blob that fits into memory.
    fn small_blob(&self, descriptor: &Descriptor, most: u64) -> Result<Vec<u8>, LayoutError> {
        let name = blob_name(&descriptor.digest);
        if self.file(&name)?.is_none() {
            return Err(LayoutError::Missing {
                path: self.path.clone(),
                digest: descriptor.digest,
            });
        }
        let bytes = self.small_file(&name, most)?;
        let found = Digest::of(&bytes);
        if found != descriptor.digest || bytes.len() as u64 != descriptor.size {
            return Err(LayoutError::Corrupt {
                path: self.path.clone(),
                digest: descriptor.digest,
                why: format!("{} bytes with digest {found}", bytes.len()),
            });
        }
        Ok(bytes)
    }

    fn small_file(&self, name: &str, most: u64) -> Result<Vec<u8>, LayoutError> {
        let mut bytes = Vec::new();
        if let Some((file, _)) = self.file(name)? {
            file.take(most + 1)
                .read_to_end(&mut bytes)
                .map_err(|e| self.io_error(name, e))?;
        }
        if bytes.len() as u64 > most {
            let message = format!("longer than {most} bytes");
            return Err(self.io_error(name, io::Error::new(io::ErrorKind::FileTooLarge, message)));
        }
        Ok(bytes)
    }

    fn file(&self, name: &str) -> Result<Option<Opened>, LayoutError> {
        self.source.file(name).map_err(|e| self.io_error(name, e))
    }

    fn json(&self, name: &str, bytes: &[u8]) -> Result<Index, LayoutError> {
        serde_json::from_slice(bytes).map_err(|source| LayoutError::Json {
            path: self.path.clone(),
            name: name.to_owned(),
            source,
        })
    }

    fn io_error(&self, name: &str, source: io::Error) -> LayoutError {
        let path = self.path.join(name);
        LayoutError::Io { path, source }
    }

    fn manifest_error(&self, source: ManifestError) -> LayoutError {
        let path = self.path.clone();
        LayoutError::Manifest { path, source }
    }
}

pub(crate) fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn join(words: impl Iterator<Item = String>) -> String {
    let mut words: Vec<String> = words.collect();
    words.dedup();
    words.join(", ")
}
