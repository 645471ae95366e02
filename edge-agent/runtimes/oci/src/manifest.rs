//! The two documents of an image: the manifest that names its parts, and the configuration that says how it runs.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::digest::Digest;
use crate::platform::Platform;

/// Longest manifest or index, in bytes.
pub const MANIFEST_BYTES_MAX: u64 = 1 << 20;
/// Longest configuration, in bytes.
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Most layers of an image.
pub const LAYERS_MAX: usize = 127;
/// Most bytes of an image's blobs together.
pub const TOTAL_BYTES_MAX: u64 = 8 << 30;

/// Media types of manifests, Docker's among them.
pub(crate) const MANIFEST_TYPES: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
/// Media types of indexes, Docker's among them.
pub(crate) const INDEX_TYPES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// How a layer is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    pub(crate) fn of(media_type: &str) -> Option<Packing> {
        Some(match media_type {
            "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => Packing::Plain,
            "application/vnd.oci.image.layer.v1.tar+gzip" | "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
                Packing::Gzip
            }
            "application/vnd.oci.image.layer.v1.tar+zstd" | "application/vnd.docker.image.rootfs.diff.tar.zstd" => {
                Packing::Zstd
            }
            _ => return None,
        })
    }
}

/// Names a blob.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// What it was built for; only in an index.
    #[serde(default)]
    pub platform: Option<Platform>,
    /// Notes, such as `org.opencontainers.image.ref.name`.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// The parts of one image for one platform. Only [`Manifest::parse`] makes one, so it holds to the limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The configuration.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
}

/// What is wrong with a manifest or a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Longer than the limit of its kind.
    #[error("{what} has {size} bytes; at most {most} are allowed")]
    TooLong {
        /// `manifest`, `configuration`.
        what: &'static str,
        /// Its length.
        size: u64,
        /// The limit.
        most: u64,
    },
    /// Not the JSON it must be.
    #[error("{what} is not valid: {source}")]
    Json {
        /// `manifest`, `configuration`.
        what: &'static str,
        /// Where it is wrong.
        source: serde_json::Error,
    },
    /// A version or a kind that is not understood.
    #[error(
        "manifest is of schema {version} and type `{media_type}`; an OCI or Docker (schema 2) image manifest is needed"
    )]
    Kind {
        /// `schemaVersion`.
        version: u32,
        /// `mediaType`.
        media_type: String,
    },
    /// More layers than the limit.
    #[error("image has {count} layers; at most {LAYERS_MAX} are allowed")]
    Layers {
        /// How many.
        count: usize,
    },
    /// More bytes than the limit.
    #[error("image has more than {TOTAL_BYTES_MAX} bytes")]
    TooLarge,
    /// A layer that cannot be unpacked here.
    #[error("layer {digest} is of type `{media_type}`; tar, tar+gzip and tar+zstd can be unpacked")]
    LayerType {
        /// Which layer.
        digest: Digest,
        /// Its type.
        media_type: String,
    },
    /// Configuration and manifest do not belong together.
    #[error("configuration names {diff_ids} layers, the manifest {layers}: they are not of one image")]
    DiffIds {
        /// In the configuration.
        diff_ids: usize,
        /// In the manifest.
        layers: usize,
    },
    /// The bytes given as configuration are not those that the manifest names.
    #[error("configuration has digest {found}, the manifest names {expected}")]
    ConfigDigest {
        /// Of the bytes given.
        found: Digest,
        /// In the manifest.
        expected: Digest,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ManifestJson {
    schema_version: u32,
    #[serde(default)]
    media_type: String,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

impl Manifest {
    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        let what = "manifest";
        bounded(what, bytes, MANIFEST_BYTES_MAX)?;
        let json: ManifestJson =
            serde_json::from_slice(bytes).map_err(|source| ManifestError::Json { what, source })?;
        let known = json.media_type.is_empty() || MANIFEST_TYPES.contains(&json.media_type.as_str());
        if json.schema_version != 2 || !known {
            return Err(ManifestError::Kind {
                version: json.schema_version,
                media_type: json.media_type,
            });
        }
        let manifest = Manifest {
            config: json.config,
            layers: json.layers,
        };
        manifest.check()?;
        Ok(manifest)
    }

    /// Configuration and layers, in this order: what must be there beside the manifest.
    pub fn parts(&self) -> impl Iterator<Item = &Descriptor> {
        std::iter::once(&self.config).chain(&self.layers)
    }

    fn check(&self) -> Result<(), ManifestError> {
        if self.layers.len() > LAYERS_MAX {
            let count = self.layers.len();
            return Err(ManifestError::Layers { count });
        }
        if self.config.size > CONFIG_BYTES_MAX {
            return Err(ManifestError::TooLong {
                what: "configuration",
                size: self.config.size,
                most: CONFIG_BYTES_MAX,
            });
        }
        let total = self.parts().try_fold(0u64, |sum, part| sum.checked_add(part.size));
        if total.is_none_or(|total| total > TOTAL_BYTES_MAX) {
            return Err(ManifestError::TooLarge);
        }
        match self
            .layers
            .iter()
            .find(|layer| Packing::of(&layer.media_type).is_none())
        {
            None => Ok(()),
            Some(layer) => Err(ManifestError::LayerType {
                digest: layer.digest,
                media_type: layer.media_type.clone(),
            }),
        }
    }
}

/// Digest and size of the configuration and of each layer, in order, of the manifest in these bytes.
///
/// # Errors
/// What is wrong with the manifest.
pub fn parts_of(manifest: &[u8]) -> Result<Vec<(Digest, u64)>, ManifestError> {
    let manifest = Manifest::parse(manifest)?;
    Ok(manifest.parts().map(|part| (part.digest, part.size)).collect())
}

/// How an image is to run. Only [`ImageConfig::parse`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageConfig {
    /// What it was built for.
    pub platform: Platform,
    /// Its process.
    pub process: ProcessDefaults,
    /// Digests of the unpacked layers, lowest first.
    pub diff_ids: Vec<Digest>,
}

/// What an image says about its process; a manifest may say otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ProcessDefaults {
    /// `UID`, `UID:GID` or names; empty is root.
    #[serde(deserialize_with = "null_is_empty")]
    pub user: String,
    /// `NAME=VALUE`.
    #[serde(deserialize_with = "null_is_empty")]
    pub env: Vec<String>,
    /// The program and its first arguments.
    #[serde(deserialize_with = "null_is_empty")]
    pub entrypoint: Vec<String>,
    /// The arguments if nobody gives others, or the program if there is no entry point.
    #[serde(deserialize_with = "null_is_empty")]
    pub cmd: Vec<String>,
    /// Where it starts; empty is `/`.
    #[serde(deserialize_with = "null_is_empty")]
    pub working_dir: String,
    /// The signal that asks it to stop, such as `SIGQUIT`; empty is `SIGTERM`.
    #[serde(deserialize_with = "null_is_empty")]
    pub stop_signal: String,
}

#[derive(Deserialize)]
struct ConfigJson {
    architecture: String,
    os: String,
    #[serde(default)]
    variant: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    config: ProcessDefaults,
    rootfs: RootfsJson,
}

#[derive(Deserialize)]
struct RootfsJson {
    diff_ids: Vec<Digest>,
}

impl ImageConfig {
    /// Reads a configuration.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<ImageConfig, ManifestError> {
        let what = "configuration";
        bounded(what, bytes, CONFIG_BYTES_MAX)?;
        let json: ConfigJson = serde_json::from_slice(bytes).map_err(|source| ManifestError::Json { what, source })?;
        Ok(ImageConfig {
            platform: Platform {
                os: json.os,
                architecture: json.architecture,
                variant: json.variant,
            },
            process: json.config,
            diff_ids: json.rootfs.diff_ids,
        })
    }
}

/// Reads a manifest and the configuration it names, and checks that they belong together.
///
/// # Errors
/// What is wrong with either.
pub fn check_image(manifest: &[u8], config: &[u8]) -> Result<(Manifest, ImageConfig), ManifestError> {
    let manifest = Manifest::parse(manifest)?;
    let found = Digest::of(config);
    if found != manifest.config.digest {
        return Err(ManifestError::ConfigDigest {
            found,
            expected: manifest.config.digest,
        });
    }
    let config = ImageConfig::parse(config)?;
    if config.diff_ids.len() != manifest.layers.len() {
        return Err(ManifestError::DiffIds {
            diff_ids: config.diff_ids.len(),
            layers: manifest.layers.len(),
        });
    }
    Ok((manifest, config))
}

fn bounded(what: &'static str, bytes: &[u8], most: u64) -> Result<(), ManifestError> {
    let size = bytes.len() as u64;
    if size > most {
        return Err(ManifestError::TooLong { what, size, most });
    }
    Ok(())
}

/// Go writes an empty list as `null`.
fn null_is_empty<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: serde::Deserializer<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    fn descriptor(kind: &str, bytes: &[u8]) -> Value {
        json!({"mediaType": kind, "digest": Digest::of(bytes).to_string(), "size": bytes.len()})
    }

    fn config(layers: usize) -> Vec<u8> {
        let diff_ids: Vec<String> = (0..layers).map(|n| Digest::of(&[n as u8]).to_string()).collect();
        json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": null, "User": "7"},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}})
        .to_string()
        .into_bytes()
    }

    fn manifest(config: &[u8], layers: usize) -> Value {
        let layers: Vec<Value> = (0..layers).map(|n| descriptor(LAYER, &[n as u8])).collect();
        json!({"schemaVersion": 2, "config": descriptor("application/vnd.oci.image.config.v1+json", config), "layers": layers})
    }

    #[test]
    fn parts_are_the_configuration_and_then_the_layers() {
        let config = config(2);
        let manifest = manifest(&config, 2).to_string();
        let parts = parts_of(manifest.as_bytes()).unwrap();
        let digests: Vec<Digest> = parts.iter().map(|(digest, _)| *digest).collect();
        assert_eq!(digests, [Digest::of(&config), Digest::of(&[0]), Digest::of(&[1])]);
        let (_, read) = check_image(manifest.as_bytes(), &config).unwrap();
        assert_eq!((read.process.user.as_str(), read.process.cmd.len()), ("7", 0));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let config = config(1);
        type Spoil = fn(&mut Value);
        let cases: [(Spoil, &str); 7] = [
            (|m| m["schemaVersion"] = json!(1), "schema 1"),
            (
                |m| m["mediaType"] = json!("application/vnd.oci.image.index.v1+json"),
                "image.index",
            ),
            (|m| m["layers"][0]["mediaType"] = json!("text/plain"), "text/plain"),
            (|m| m["layers"][0]["size"] = json!(u64::MAX), "more than"),
            (|m| m["config"]["size"] = json!(2 << 20), "configuration has 2097152"),
            (|m| m["layers"][0]["digest"] = json!("sha512:00"), "sha512:00"),
            (|m| m["layers"] = json!(vec![m["layers"][0].clone(); 128]), "128 layers"),
        ];
        for (spoil, expected) in cases {
            let mut json = manifest(&config, 1);
            spoil(&mut json);
            let message = parts_of(json.to_string().as_bytes()).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        let long = vec![b' '; MANIFEST_BYTES_MAX as usize + 1];
        assert!(matches!(parts_of(&long), Err(ManifestError::TooLong { .. })));
    }

    #[test]
    fn a_configuration_of_another_image_is_refused() {
        let one = config(1);
        let two = config(2);
        let json = manifest(&one, 1).to_string();
        assert!(matches!(
            check_image(json.as_bytes(), &two),
            Err(ManifestError::ConfigDigest { .. })
        ));
        let json = manifest(&two, 1).to_string();
        assert!(matches!(
            check_image(json.as_bytes(), &two),
            Err(ManifestError::DiffIds { .. })
        ));
    }
}
