//! One image of a layout.

use std::io::{self, Read};

use crate::digest::{Digest, HashingReader};
use crate::layout::{Layout, LayoutError, blob_name};
use crate::manifest::{Descriptor, ImageConfig, Manifest};

/// An image whose manifest and configuration are verified.
pub struct Image<'a> {
    layout: &'a Layout,
    manifest_bytes: Vec<u8>,
    config_bytes: Vec<u8>,
    manifest: Manifest,
    config: ImageConfig,
}

/// The bytes of a part of an image. Reading to the end verifies them: the last read fails if they are others.
pub struct Blob {
    digest: Digest,
    size: u64,
    inner: HashingReader<Box<dyn Read + Send>>,
}

impl<'a> Image<'a> {
    pub(crate) fn new(
        layout: &'a Layout,
        manifest_bytes: Vec<u8>,
        config_bytes: Vec<u8>,
        manifest: Manifest,
        config: ImageConfig,
    ) -> Image<'a> {
        Image {
            layout,
            manifest_bytes,
            config_bytes,
            manifest,
            config,
        }
    }

    /// What names the image: the digest of its manifest.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest_bytes)
    }

    /// The bytes of its manifest.
    pub fn manifest_bytes(&self) -> &[u8] {
        &self.manifest_bytes
    }

    /// The bytes of its configuration.
    pub fn config_bytes(&self) -> &[u8] {
        &self.config_bytes
    }

    /// Its manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Its configuration.
    pub fn config(&self) -> &ImageConfig {
        &self.config
    }

    /// All that must be stored, in the order in which it may be: the layers, the configuration, and last the manifest
    /// that refers to them.
    pub fn blobs(&self) -> impl Iterator<Item = Result<Blob, LayoutError>> + '_ {
        let manifest = Descriptor {
            media_type: String::new(),
            digest: self.digest(),
            size: self.manifest_bytes.len() as u64,
            platform: None,
            annotations: Default::default(),
        };
        let layers = self.manifest.layers.iter();
        let parts = layers.chain(std::iter::once(&self.manifest.config)).cloned();
        parts.chain(std::iter::once(manifest)).map(|part| self.blob(&part))
    }

    /// Opens one part.
    ///
    /// # Errors
    /// It is not there, or has another length than its descriptor says.
    pub fn blob(&self, part: &Descriptor) -> Result<Blob, LayoutError> {
        let path = || self.layout.path.clone();
        let name = blob_name(&part.digest);
        let opened = self.layout.source.file(&name).map_err(|source| LayoutError::Io {
            path: self.layout.path.join(&name),
            source,
        })?;
        let Some((inner, size)) = opened else {
            let digest = part.digest;
            return Err(LayoutError::Missing { path: path(), digest });
        };
        if size != part.size {
            return Err(LayoutError::Corrupt {
                path: path(),
                digest: part.digest,
                why: format!("{size} bytes instead of {}", part.size),
            });
        }
        Ok(Blob {
            digest: part.digest,
            size,
            inner: HashingReader::new(inner, size),
        })
    }

    /// Reads and verifies every part.
    ///
    /// # Errors
    /// Which one is missing or corrupt.
    pub fn verify(&self) -> Result<(), LayoutError> {
        for blob in self.blobs() {
            let mut blob = blob?;
            let digest = blob.digest;
            io::copy(&mut blob, &mut io::sink()).map_err(|error| LayoutError::Corrupt {
                path: self.layout.path.clone(),
                digest,
                why: error.to_string(),
            })?;
        }
        Ok(())
    }
}

impl Blob {
    /// The digest that its bytes have.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// How many bytes there are.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Read for Blob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if count == 0 && !buffer.is_empty() {
            let found = self.inner.digest();
            if found != self.digest {
                let message = format!("its bytes have digest {found}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
        }
        Ok(count)
    }
}
