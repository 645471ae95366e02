//! Builds small images from files of this machine.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tar::{EntryType, Header};

use crate::digest::Digest;
use crate::platform::Platform;

/// The files of one layer.
#[derive(Default)]
pub struct LayerBuilder {
    archive: Vec<u8>,
}

/// An image in the making.
pub struct ImageBuilder {
    layers: Vec<(Vec<u8>, Digest, &'static str)>,
    process: Value,
    platform: Platform,
    reference: Option<String>,
}

/// A finished image: its blobs by digest, the manifest's among them.
pub struct BuiltImage {
    /// Digest of the manifest.
    pub digest: Digest,
    /// Digests of configuration and layers, in the manifest's order.
    pub parts: Vec<Digest>,
    /// All blobs.
    pub blobs: Vec<(Digest, Vec<u8>)>,
    index_entry: Value,
}

impl LayerBuilder {
    /// An empty layer.
    pub fn new() -> LayerBuilder {
        LayerBuilder::default()
    }

    /// A folder.
    pub fn folder(self, path: &str, mode: u32) -> LayerBuilder {
        self.owned(path, EntryType::Directory, mode, 0, "", &[])
    }

    /// A file.
    pub fn file(self, path: &str, mode: u32, bytes: &[u8]) -> LayerBuilder {
        self.owned(path, EntryType::Regular, mode, 0, "", bytes)
    }

    /// A symbolic link.
    pub fn symlink(self, path: &str, target: &str) -> LayerBuilder {
        self.owned(path, EntryType::Symlink, 0o777, 0, target, &[])
    }

    /// Any entry, of any owner.
    pub fn owned(
        mut self,
        path: &str,
        kind: EntryType,
        mode: u32,
        id: u64,
        target: &str,
        bytes: &[u8],
    ) -> LayerBuilder {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(id);
        header.set_gid(id);
        header.set_mtime(1_000_000_000);
        header.set_size(bytes.len() as u64);
        // Written as they are, so that hostile names can be made too; they must fit into the header's 100 bytes.
        put(&mut header.as_mut_bytes()[..100], path);
        put(&mut header.as_mut_bytes()[157..257], target);
        header.set_cksum();
        self.archive.extend_from_slice(header.as_bytes());
        self.archive.extend_from_slice(bytes);
        self.archive.resize(self.archive.len().next_multiple_of(512), 0);
        self
    }

    /// A file of this machine under its own path.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn host_file(self, path: &Path) -> io::Result<LayerBuilder> {
        let bytes = fs::read(path)?;
        let name = path.to_string_lossy();
        Ok(self.file(name.trim_start_matches('/'), 0o755, &bytes))
    }

    /// A program of this machine and the shared libraries that `ldd` names.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn host_program(self, program: &Path) -> io::Result<LayerBuilder> {
        let listing = Command::new("ldd").arg(program).output()?;
        let text = String::from_utf8_lossy(&listing.stdout).into_owned();
        let mut layer = self.host_file(program)?;
        let libraries = text
            .split_whitespace()
            .filter(|word| word.starts_with('/'))
            .map(PathBuf::from);
        let mut seen = Vec::new();
        for library in libraries {
            if !seen.contains(&library) {
                layer = layer.host_file(&library)?;
                seen.push(library);
            }
        }
        Ok(layer)
    }

    /// `/bin/busybox` of the package busybox-static, with a link for each of these commands.
    ///
    /// # Errors
    /// The package is not installed.
    pub fn busybox(self, commands: &[&str]) -> io::Result<LayerBuilder> {
        let bytes = fs::read("/bin/busybox")?;
        let base = self
            .folder("bin", 0o755)
            .folder("tmp", 0o1777)
            .folder("etc", 0o755)
            .file("bin/busybox", 0o755, &bytes)
            .file(
                "etc/passwd",
                0o644,
                b"root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/:/bin/sh\n",
            )
            .file("etc/group", 0o644, b"root:x:0:\napp:x:1000:\n");
        let link = |layer: LayerBuilder, name: &&str| layer.symlink(&format!("bin/{name}"), "busybox");
        Ok(commands.iter().fold(base, link))
    }

    /// The archive's bytes.
    pub fn tar(mut self) -> Vec<u8> {
        self.archive.resize(self.archive.len() + 1024, 0);
        self.archive
    }
}

fn put(field: &mut [u8], text: &str) {
    let bytes = text.as_bytes();
    assert!(bytes.len() < field.len(), "`{text}` is too long for a test image");
    field[..bytes.len()].copy_from_slice(bytes);
}

impl Default for ImageBuilder {
    fn default() -> ImageBuilder {
        ImageBuilder::new()
    }
}

impl ImageBuilder {
    /// An image without layers for this machine.
    pub fn new() -> ImageBuilder {
        ImageBuilder {
            layers: Vec::new(),
            process: json!({}),
            platform: Platform::of_this_machine().unwrap_or(Platform {
                os: "linux".into(),
                architecture: "amd64".into(),
                variant: String::new(),
            }),
            reference: None,
        }
    }

    /// One more layer on top, gzipped.
    pub fn layer(self, layer: LayerBuilder) -> ImageBuilder {
        let plain = layer.tar();
        let diff_id = Digest::of(&plain);
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        // Writing into a Vec cannot fail.
        let _ = gzip.write_all(&plain);
        let packed = gzip.finish().unwrap_or_default();
        self.packed_layer(packed, diff_id, "application/vnd.oci.image.layer.v1.tar+gzip")
    }

    /// One more layer from bytes as they are.
    pub fn packed_layer(mut self, packed: Vec<u8>, diff_id: Digest, media_type: &'static str) -> ImageBuilder {
        self.layers.push((packed, diff_id, media_type));
        self
    }

    /// The `config` object: `Entrypoint`, `Cmd`, `Env`, `User`, `WorkingDir`.
    pub fn config(mut self, process: Value) -> ImageBuilder {
        self.process = process;
        self
    }

    /// Built for another machine.
    pub fn platform(mut self, platform: Platform) -> ImageBuilder {
        self.platform = platform;
        self
    }

    /// A name in the index.
    pub fn reference(mut self, name: &str) -> ImageBuilder {
        self.reference = Some(name.to_owned());
        self
    }

    /// Puts it together.
    pub fn build(self) -> BuiltImage {
        let diff_ids: Vec<String> = self.layers.iter().map(|(_, id, _)| id.to_string()).collect();
        let config = json!({
            "architecture": self.platform.architecture, "os": self.platform.os, "variant": self.platform.variant,
            "config": self.process, "rootfs": {"type": "layers", "diff_ids": diff_ids},
        })
        .to_string()
        .into_bytes();
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|(packed, _, kind)| descriptor(kind, packed))
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config), "layers": layers,
        })
        .to_string()
        .into_bytes();
        let mut index_entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        if let Some(name) = self.reference {
            index_entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        }
        let digest = Digest::of(&manifest);
        let mut blobs = vec![(Digest::of(&config), config)];
        blobs.extend(
            self.layers
                .into_iter()
                .map(|(packed, ..)| (Digest::of(&packed), packed)),
        );
        let parts = blobs.iter().map(|(digest, _)| *digest).collect();
        blobs.push((digest, manifest));
        BuiltImage {
            digest,
            parts,
            blobs,
            index_entry,
        }
    }

    /// Puts it together and writes it as a layout in a tar archive.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_tar(self, path: &Path) -> io::Result<Digest> {
        let image = self.build();
        write_tar(path, std::slice::from_ref(&image))?;
        Ok(image.digest)
    }
}

impl BuiltImage {
    /// Writes each blob as a file named by its digest; the way an agent's store holds them.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write_blobs(&self, dir: &Path) -> io::Result<()> {
        for (digest, bytes) in &self.blobs {
            fs::write(dir.join(digest.hex()), bytes)?;
        }
        Ok(())
    }
}

/// A layout with these images as a tar archive.
///
/// # Errors
/// The file cannot be written.
pub fn write_tar(path: &Path, images: &[BuiltImage]) -> io::Result<()> {
    let entries: Vec<&Value> = images.iter().map(|image| &image.index_entry).collect();
    let index = json!({"schemaVersion": 2, "manifests": entries}).to_string();
    let mut layer = LayerBuilder::new()
        .file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)
        .file("index.json", 0o644, index.as_bytes());
    for (digest, bytes) in images.iter().flat_map(|image| &image.blobs) {
        layer = layer.file(&format!("blobs/sha256/{}", digest.hex()), 0o644, bytes);
    }
    File::create(path)?.write_all(&layer.tar())
}

fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": Digest::of(bytes).to_string(), "size": bytes.len()})
}
