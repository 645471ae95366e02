//! Opening images: folders, archives, platforms, names, and what is not acceptable.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use cnova_oci::testing::{BuiltImage, ImageBuilder, LayerBuilder, write_tar};
use cnova_oci::{Digest, Layout, LayoutError, Platform};

fn image(architecture: &str, name: &str) -> BuiltImage {
    let platform = Platform {
        os: "linux".into(),
        architecture: architecture.into(),
        variant: String::new(),
    };
    let layer = LayerBuilder::new().file("which", 0o644, architecture.as_bytes());
    ImageBuilder::new()
        .layer(layer)
        .platform(platform)
        .reference(name)
        .build()
}

fn unpack_tar(archive: &Path, dir: &Path) {
    tar::Archive::new(fs::File::open(archive).unwrap()).unpack(dir).unwrap();
}

#[test]
fn folder_archive_and_gzipped_archive_hold_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let built = image("amd64", "press:1");
    let archive = dir.path().join("image.tar");
    write_tar(&archive, std::slice::from_ref(&built)).unwrap();
    let folder = dir.path().join("folder");
    unpack_tar(&archive, &folder);
    let gzipped = dir.path().join("image.tar.gz");
    let mut gzip = flate2::write::GzEncoder::new(fs::File::create(&gzipped).unwrap(), flate2::Compression::fast());
    gzip.write_all(&fs::read(&archive).unwrap()).unwrap();
    gzip.finish().unwrap();
    for path in [archive, folder, gzipped] {
        let layout = Layout::open(&path).unwrap();
        let image = layout.image(None, None).unwrap();
        assert_eq!(image.digest(), built.digest);
        image.verify().unwrap();
        let mut read = Vec::new();
        for blob in image.blobs() {
            let mut blob = blob.unwrap();
            let mut bytes = Vec::new();
            blob.read_to_end(&mut bytes).unwrap();
            assert_eq!((Digest::of(&bytes), bytes.len() as u64), (blob.digest(), blob.size()));
            read.push(blob.digest());
        }
        // The manifest comes last: who has it has everything.
        assert_eq!(read.last(), Some(&built.digest));
        assert_eq!(read.len(), 3);
    }
}

#[test]
fn the_platform_and_the_name_choose() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.tar");
    let images = [
        image("amd64", "press:1"),
        image("arm64", "press:1"),
        image("arm64", "press:2"),
    ];
    write_tar(&path, &images).unwrap();
    let layout = Layout::open(&path).unwrap();
    let arm64: Platform = "linux/arm64".parse().unwrap();
    let amd64: Platform = "linux/amd64".parse().unwrap();
    assert_eq!(layout.image(Some(&amd64), None).unwrap().digest(), images[0].digest);
    assert_eq!(
        layout.image(Some(&arm64), Some("press:1")).unwrap().digest(),
        images[1].digest
    );
    let riscv: Platform = "linux/riscv64".parse().unwrap();
    let message = layout.image(Some(&riscv), None).err().unwrap().to_string();
    assert!(
        message.contains("image.tar has linux/amd64, linux/arm64 only; wanted linux/riscv64"),
        "{message}"
    );
    let message = layout.image(None, Some("press:3")).err().unwrap().to_string();
    assert!(
        message.contains("`press:3`") && message.contains("press:2"),
        "{message}"
    );
    assert!(matches!(layout.image(None, None), Err(LayoutError::Ambiguous { .. })));
}

#[test]
fn a_changed_or_missing_blob_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let built = image("amd64", "x");
    let archive = dir.path().join("image.tar");
    write_tar(&archive, std::slice::from_ref(&built)).unwrap();
    for (number, digest) in built.blobs.iter().map(|(digest, _)| *digest).enumerate() {
        let folder = dir.path().join(number.to_string());
        unpack_tar(&archive, &folder);
        let blob = folder.join("blobs/sha256").join(digest.hex());
        let mut bytes = fs::read(&blob).unwrap();
        bytes[0] ^= 1;
        fs::write(&blob, bytes).unwrap();
        let layout = Layout::open(&folder).unwrap();
        let error = layout.image(None, None).and_then(|image| image.verify()).unwrap_err();
        assert!(
            matches!(&error, LayoutError::Corrupt { digest: named, .. } if *named == digest),
            "{error}"
        );
        fs::remove_file(&blob).unwrap();
        let error = layout.image(None, None).and_then(|image| image.verify()).unwrap_err();
        assert!(
            matches!(&error, LayoutError::Missing { digest: named, .. } if *named == digest),
            "{error}"
        );
    }
}

#[test]
fn what_is_no_layout_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let open = || Layout::open(&path).err().unwrap().to_string();
    fs::write(&path, "not an archive at all".repeat(100)).unwrap();
    assert!(open().contains("neither a folder nor a tar archive"));
    fs::write(&path, LayerBuilder::new().file("manifest.json", 0o644, b"[]").tar()).unwrap();
    assert!(open().contains("not an OCI image layout"));
    fs::write(&path, LayerBuilder::new().file("../oci-layout", 0o644, b"{}").tar()).unwrap();
    assert!(open().contains("leads out of the archive"));
    let long =
        LayerBuilder::new()
            .file("oci-layout", 0o644, b"{}")
            .file("index.json", 0o644, &vec![b' '; (1 << 20) + 1]);
    fs::write(&path, long.tar()).unwrap();
    let message = Layout::open(&path)
        .unwrap()
        .image(None, None)
        .err()
        .unwrap()
        .to_string();
    assert!(message.contains("longer than"), "{message}");
}

#[test]
fn indexes_within_indexes_have_an_end() {
    let dir = tempfile::tempdir().unwrap();
    let built = image("amd64", "x");
    let blobs = dir.path().join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    built.write_blobs(&blobs).unwrap();
    fs::write(dir.path().join("oci-layout"), "{}").unwrap();
    let size = built.blobs.last().unwrap().1.len();
    let mut entry = serde_json::json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": built.digest, "size": size,
    });
    for depth in 0..4 {
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
        fs::write(dir.path().join("index.json"), &index).unwrap();
        let opened = Layout::open(dir.path()).unwrap();
        let found = opened.image(None, None).map(|image| image.digest());
        match depth {
            0..=2 => assert_eq!(found.unwrap(), built.digest),
            _ => assert!(matches!(found, Err(LayoutError::TooMany { .. }))),
        }
        let digest = Digest::of(index.as_bytes());
        fs::write(blobs.join(digest.hex()), &index).unwrap();
        entry = serde_json::json!({
            "mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest, "size": index.len(),
        });
    }
}
