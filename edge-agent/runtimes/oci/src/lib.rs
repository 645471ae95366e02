//! Container images as the Open Container Initiative lays them out: found, checked and unpacked, never trusted.
//!
//! - whoever imports an image: [`Layout::open`], [`Layout::image`], [`Image::blobs`]
//! - whoever stores it: [`parts_of`], [`check_image`]
//! - whoever runs it: [`Manifest`], [`ImageConfig`], [`LayerCache`]
//!
//! Everything read here was written by somebody else. Each size and count has a limit with a name, each blob is
//! compared with its digest, and no name in an archive leads out of the folder it is unpacked into.

mod cache;
mod digest;
mod image;
mod layout;
mod manifest;
mod platform;
mod source;
#[cfg(feature = "testing")]
pub mod testing;
mod tree;
mod unpack;

pub use cache::{CacheError, LayerCache, LayerUse, Pruned};
pub use digest::{Digest, HashingReader};
pub use image::{Blob, Image};
pub use layout::{Layout, LayoutError};
pub use manifest::{
    CONFIG_BYTES_MAX, Descriptor, ImageConfig, LAYERS_MAX, MANIFEST_BYTES_MAX, Manifest, ManifestError,
    ProcessDefaults, TOTAL_BYTES_MAX, check_image, parts_of,
};
pub use platform::{Platform, PlatformError};
pub use unpack::{IDS_PER_CONTAINER, UnpackError, UnpackLimits, Unpacked, unpack};
