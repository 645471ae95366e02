//! Unpacking layers: limits, packings, the cache.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use cnova_oci::testing::LayerBuilder;
use cnova_oci::{Descriptor, Digest, LayerCache, UnpackError, UnpackLimits, Unpacked, unpack};
use tar::EntryType;

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

fn no_root() -> bool {
    let skip = !rustix::process::geteuid().is_root();
    if skip {
        eprintln!("skipped: unpacking a layer needs root");
    }
    skip
}

fn descriptor(media_type: &str, packed: &[u8]) -> Descriptor {
    Descriptor {
        media_type: media_type.into(),
        digest: Digest::of(packed),
        size: packed.len() as u64,
        platform: None,
        annotations: Default::default(),
    }
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(plain).unwrap();
    gzip.finish().unwrap()
}

fn unpacked(
    media_type: &str,
    packed: &[u8],
    plain: &[u8],
    dir: &Path,
    limits: UnpackLimits,
) -> Result<Unpacked, UnpackError> {
    unpack(
        packed,
        &descriptor(media_type, packed),
        &Digest::of(plain),
        dir,
        &limits,
        1000,
    )
}

#[test]
fn every_packing_unpacks_to_the_same() {
    if no_root() {
        return;
    }
    let layer = LayerBuilder::new()
        .folder("a", 0o750)
        .file("a/b", 0o4755, b"content")
        .symlink("a/l", "../../outside")
        .owned("a/h", EntryType::Link, 0, 0, "a/b", &[])
        .owned("a/p", EntryType::Fifo, 0o600, 5, "", &[]);
    let plain = layer.tar();
    // Two frames, as parallel packers write them, and one to skip between.
    let mut zstd = ruzstd::encoding::compress_to_vec(&plain[..700], ruzstd::encoding::CompressionLevel::Fastest);
    zstd.extend_from_slice(&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
    zstd.extend(ruzstd::encoding::compress_to_vec(
        &plain[700..],
        ruzstd::encoding::CompressionLevel::Fastest,
    ));
    for (media_type, packed) in [(PLAIN, plain.clone()), (GZIP, gzip(&plain)), (ZSTD, zstd)] {
        let dir = tempfile::tempdir().unwrap();
        let done = unpacked(media_type, &packed, &plain, dir.path(), UnpackLimits::default()).unwrap();
        assert_eq!((done.entries, done.bytes), (5, 7));
        let file = fs::metadata(dir.path().join("a/b")).unwrap();
        assert_eq!((file.uid(), file.mode() & 0o7777, file.nlink()), (1000, 0o4755, 2));
        assert_eq!(
            fs::metadata(dir.path().join("a")).unwrap().permissions().mode() & 0o777,
            0o750
        );
        assert_eq!(fs::symlink_metadata(dir.path().join("a/p")).unwrap().uid(), 1005);
        assert_eq!(
            fs::read_link(dir.path().join("a/l")).unwrap(),
            Path::new("../../outside")
        );
    }
}

#[test]
fn bombs_stop_at_their_limits() {
    if no_root() {
        return;
    }
    let limits = UnpackLimits {
        entries: 10,
        bytes: 1 << 20,
        path_bytes: 64,
    };
    let attempt = |layer: LayerBuilder| {
        let dir = tempfile::tempdir().unwrap();
        let plain = layer.tar();
        unpacked(GZIP, &gzip(&plain), &plain, dir.path(), limits)
            .unwrap_err()
            .to_string()
    };
    let zeros = LayerBuilder::new().file("zeros", 0o644, &vec![0; 2 << 20]);
    assert!(attempt(zeros).contains("more than 1048576 bytes"));
    let many = (0..11).fold(LayerBuilder::new(), |layer, n| layer.file(&format!("f{n}"), 0o644, b""));
    assert!(attempt(many).contains("more than 10 entries"));
    let long = LayerBuilder::new().file(&"x/".repeat(40), 0o644, b"");
    assert!(attempt(long).contains("too long"));
    // More after the end of the archive.
    let mut plain = LayerBuilder::new().tar();
    plain.resize(2 << 20, 0);
    let dir = tempfile::tempdir().unwrap();
    let error = unpacked(GZIP, &gzip(&plain), &plain, dir.path(), limits).unwrap_err();
    assert!(matches!(error, UnpackError::TooMuch { .. }), "{error}");
}

#[test]
fn nothing_gets_out() {
    if no_root() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let outside = home.path().join("outside");
    fs::write(&outside, "untouched").unwrap();
    let absolute = outside.to_str().unwrap();
    let attempts = [
        LayerBuilder::new().file("../outside", 0o644, b"x"),
        LayerBuilder::new().file("a/../../outside", 0o644, b"x"),
        LayerBuilder::new().file(absolute, 0o644, b"x"),
        LayerBuilder::new().symlink("l", "..").file("l/outside", 0o644, b"x"),
        LayerBuilder::new().owned("h", EntryType::Link, 0, 0, "../outside", &[]),
        LayerBuilder::new()
            .symlink("l", "..")
            .owned("h", EntryType::Link, 0, 0, "l/outside", &[]),
        LayerBuilder::new()
            .symlink("l", "../outside")
            .owned("h", EntryType::Link, 0, 0, "l", &[]),
        LayerBuilder::new().file("a/.wh...", 0, b""),
        LayerBuilder::new().file(".wh.", 0, b""),
        LayerBuilder::new().symlink("l", "..").file("l/.wh.outside", 0, b""),
        LayerBuilder::new().owned("d", EntryType::Char, 0o666, 0, "", &[]),
    ];
    for (number, layer) in attempts.into_iter().enumerate() {
        let dir = home.path().join(number.to_string());
        fs::create_dir(&dir).unwrap();
        let plain = layer.tar();
        let error = unpacked(PLAIN, &plain, &plain, &dir, UnpackLimits::default()).unwrap_err();
        assert!(
            matches!(error, UnpackError::Refused { .. } | UnpackError::Entry { .. }),
            "{number}: {error}"
        );
        assert_eq!(fs::read_to_string(&outside).unwrap(), "untouched");
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), number + 2);
    }
    // A file that takes a link's name does not write through it.
    let dir = home.path().join("replaced");
    fs::create_dir(&dir).unwrap();
    let plain = LayerBuilder::new()
        .symlink("l", "../outside")
        .file("l", 0o644, b"mine")
        .tar();
    unpacked(PLAIN, &plain, &plain, &dir, UnpackLimits::default()).unwrap();
    assert_eq!(fs::read_to_string(&outside).unwrap(), "untouched");
    assert_eq!(fs::read_to_string(dir.join("l")).unwrap(), "mine");
}

#[test]
fn mutated_layers_never_get_through() {
    if no_root() {
        return;
    }
    let plain = LayerBuilder::new()
        .folder("a", 0o755)
        .file("a/b", 0o644, b"content")
        .tar();
    let packed = gzip(&plain);
    for at in 0..packed.len() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = packed.clone();
        bytes[at] ^= 0x55;
        let result = unpack(
            &bytes[..],
            &descriptor(GZIP, &packed),
            &Digest::of(&plain),
            dir.path(),
            &UnpackLimits::default(),
            0,
        );
        assert!(result.is_err(), "byte {at}");
    }
}

#[test]
fn of_several_at_once_one_unpacks() {
    let home = tempfile::tempdir().unwrap();
    let cache = LayerCache::open(home.path()).unwrap();
    let digest = Digest::of(b"layer");
    let unpacked = AtomicU32::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let layer = cache.layer(&digest, 7, |dir| {
                    unpacked.fetch_add(1, Ordering::SeqCst);
                    thread::sleep(std::time::Duration::from_millis(50));
                    fs::write(dir.join("done"), "").unwrap();
                    Ok(())
                });
                assert!(layer.unwrap().path.join("done").exists());
            });
        }
    });
    assert_eq!(unpacked.load(Ordering::SeqCst), 1);
    // Another range of ids is another folder.
    assert!(cache.layer(&digest, 8, |_| Ok(())).unwrap().fresh);
}

#[test]
fn an_interruption_is_redone_and_a_failure_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let cache = LayerCache::open(home.path()).unwrap();
    let digest = Digest::of(b"layer");
    let draft = home.path().join("drafts").join(format!("{}-0", digest.hex()));
    fs::create_dir(&draft).unwrap();
    fs::write(draft.join("half"), "").unwrap();
    let failed = cache.layer(&digest, 0, |_| {
        Err(UnpackError::TooMuch {
            layer: digest,
            most: 1,
            what: "bytes",
        })
    });
    assert!(failed.is_err());
    assert!(!draft.exists());
    fs::create_dir(&draft).unwrap();
    fs::write(draft.join("half"), "").unwrap();
    let layer = cache.layer(&digest, 0, |dir| {
        assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
        Ok(())
    });
    assert!(layer.unwrap().fresh);
}

#[test]
fn a_prune_spares_what_is_used_and_what_is_kept() {
    let home = tempfile::tempdir().unwrap();
    let cache = LayerCache::open(home.path()).unwrap();
    let [used, kept, old] = [b"used", b"kept", b"old."].map(|bytes| Digest::of(bytes));
    let in_use = cache.layer(&used, 0, |_| Ok(())).unwrap();
    for digest in [&kept, &old] {
        cache.layer(digest, 0, |_| Ok(())).unwrap();
    }
    let pruned = cache.prune(&BTreeSet::from([kept])).unwrap();
    assert_eq!((pruned.removed, pruned.in_use), (1, 1));
    assert!(in_use.path.exists());
    drop(in_use);
    let pruned = cache.prune(&BTreeSet::new()).unwrap();
    assert_eq!((pruned.removed, pruned.in_use), (2, 0));
    assert_eq!(fs::read_dir(home.path().join("locks")).unwrap().count(), 0);
}
