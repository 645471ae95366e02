//! One layer, from its packed bytes to a folder that overlayfs can use.

use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use tar::{Archive, Entry, EntryType};

use crate::digest::{Digest, HashingReader};
use crate::manifest::{Descriptor, Packing};
use crate::tree::{Attributes, InnerPath, Tree};

/// User and group ids that a container has: 0 up to, not including, this.
pub const IDS_PER_CONTAINER: u32 = 65_536;

/// Marks what hides an entry of a lower layer.
const WHITEOUT: &[u8] = b".wh.";
/// Marks a folder that hides all of its counterpart in lower layers.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Packed bytes are read in pieces of this size.
const BUFFER_BYTES: usize = 64 << 10;

/// How much a layer may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnpackLimits {
    /// Most entries.
    pub entries: u64,
    /// Most bytes of the unpacked archive, and of the files in it.
    pub bytes: u64,
    /// Longest path, in bytes.
    pub path_bytes: usize,
}

impl Default for UnpackLimits {
    fn default() -> UnpackLimits {
        UnpackLimits {
            entries: 200_000,
            bytes: 4 << 30,
            path_bytes: 2048,
        }
    }
}

/// What a layer held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of its files.
    pub bytes: u64,
}

/// Why a layer was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The packed bytes cannot be read, or are not what their type says.
    #[error("layer {layer} cannot be read: {source}")]
    Read {
        /// Which layer.
        layer: Digest,
        /// Why.
        source: io::Error,
    },
    /// An entry could not be made.
    #[error("layer {layer}: `{path}` cannot be unpacked: {source}")]
    Entry {
        /// Which layer.
        layer: Digest,
        /// Which entry.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// An entry that is not acceptable.
    #[error("layer {layer}: `{path}` is refused: {why}")]
    Refused {
        /// Which layer.
        layer: Digest,
        /// Which entry.
        path: PathBuf,
        /// Why.
        why: &'static str,
    },
    /// More than a limit allows.
    #[error("layer {layer} has more than {most} {what}")]
    TooMuch {
        /// Which layer.
        layer: Digest,
        /// The limit.
        most: u64,
        /// `entries`, `bytes`.
        what: &'static str,
    },
    /// The packed bytes are not those that the manifest names.
    #[error("layer {layer} is corrupt: its bytes have digest {found}")]
    Digest {
        /// Which layer.
        layer: Digest,
        /// What was read.
        found: Digest,
    },
    /// The unpacked bytes are not those that the configuration names.
    #[error("layer {layer} unpacks to {found}; the configuration names {expected}")]
    DiffId {
        /// Which layer.
        layer: Digest,
        /// What came out.
        found: Digest,
        /// What was to come out.
        expected: Digest,
    },
    /// A media type that cannot be unpacked.
    #[error("layer {layer} is of type `{media_type}`; tar, tar+gzip and tar+zstd can be unpacked")]
    Type {
        /// Which layer.
        layer: Digest,
        /// Its type.
        media_type: String,
    },
}

/// Unpacks a layer into `target`, which must be empty, and verifies both of its digests. Owners are shifted by `shift`,
/// the first host id of the container's user namespace. On an error `target` is not to be used.
///
/// # Errors
/// What is wrong with the layer, or why it could not be written.
pub fn unpack(
    packed: impl Read,
    layer: &Descriptor,
    diff_id: &Digest,
    target: &Path,
    limits: &UnpackLimits,
    shift: u32,
) -> Result<Unpacked, UnpackError> {
    let id = layer.digest;
    let read_error = |source| classify(id, limits, source);
    let packing = Packing::of(&layer.media_type).ok_or_else(|| UnpackError::Type {
        layer: id,
        media_type: layer.media_type.clone(),
    })?;
    let mut packed = HashingReader::new(packed, layer.size);
    let (done, found) = {
        let plain = decoder(packing, &mut packed).map_err(read_error)?;
        let mut plain = HashingReader::new(plain, limits.bytes);
        let tree = begin(target, shift).map_err(|source| UnpackError::Entry {
            layer: id,
            path: target.to_owned(),
            source,
        })?;
        let mut unpacking = Unpacking {
            layer: id,
            limits,
            tree,
            done: Unpacked::default(),
        };
        unpacking.archive(&mut plain)?;
        // What follows the end of the archive belongs to the diff_id all the same.
        io::copy(&mut plain, &mut io::sink()).map_err(read_error)?;
        unpacking.tree.sync().map_err(read_error)?;
        (unpacking.done, plain.digest())
    };
    io::copy(&mut packed, &mut io::sink()).map_err(read_error)?;
    let bytes_found = packed.digest();
    if bytes_found != id {
        return Err(UnpackError::Digest {
            layer: id,
            found: bytes_found,
        });
    }
    if found != *diff_id {
        return Err(UnpackError::DiffId {
            layer: id,
            found,
            expected: *diff_id,
        });
    }
    Ok(done)
}

/// The root belongs to the container's root even if the archive does not name it.
fn begin(target: &Path, shift: u32) -> io::Result<Tree> {
    let mut tree = Tree::open(target, shift)?;
    let root = InnerPath {
        parent: PathBuf::new(),
        name: Vec::new(),
    };
    tree.folder(
        &root,
        Attributes {
            uid: 0,
            gid: 0,
            mode: 0o755,
            mtime: 0,
        },
    )?;
    Ok(tree)
}

fn decoder<'a>(packing: Packing, packed: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let packed = BufReader::with_capacity(BUFFER_BYTES, packed);
    Ok(match packing {
        Packing::Plain => Box::new(packed),
        Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
        Packing::Zstd => Box::new(ZstdFrames::new(packed)),
    })
}

/// A reader that stopped at its limit is the bomb it was to stop.
fn classify(layer: Digest, limits: &UnpackLimits, source: io::Error) -> UnpackError {
    if source.kind() == io::ErrorKind::FileTooLarge {
        let (most, what) = (limits.bytes, "bytes");
        return UnpackError::TooMuch { layer, most, what };
    }
    UnpackError::Read { layer, source }
}

struct Unpacking<'a> {
    layer: Digest,
    limits: &'a UnpackLimits,
    tree: Tree,
    done: Unpacked,
}

impl Unpacking<'_> {
    fn archive(&mut self, plain: &mut impl Read) -> Result<(), UnpackError> {
        let mut archive = Archive::new(plain);
        let entries = archive.entries().map_err(|e| self.read_error(e))?;
        for entry in entries {
            let entry = entry.map_err(|e| self.read_error(e))?;
            self.done.entries += 1;
            if self.done.entries > self.limits.entries {
                return Err(self.too_much(self.limits.entries, "entries"));
            }
            self.entry(entry)?;
        }
        Ok(())
    }

    fn entry(&mut self, mut entry: Entry<'_, impl Read>) -> Result<(), UnpackError> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let path = entry.path().map_err(|e| self.read_error(e))?.into_owned();
        let inner = self.inner(&path)?;
        let attributes = self.attributes(&entry, &path)?;
        if inner.name.starts_with(WHITEOUT) {
            return self.whiteout(&path, &inner);
        }
        let made = match kind {
            EntryType::Directory => self.tree.folder(&inner, attributes),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                return self.file(&mut entry, &path, &inner, attributes);
            }
            EntryType::Symlink => {
                let target = self.link_target(&entry, &path)?;
                self.tree.symlink(&inner, &target, attributes)
            }
            EntryType::Link => {
                let target = self.link_target(&entry, &path)?;
                let source = self.inner(&target)?;
                self.tree.hard_link(&inner, &source)
            }
            EntryType::Fifo => self.tree.fifo(&inner, attributes),
            EntryType::Char | EntryType::Block => {
                return Err(self.refused(
                    &path,
                    "it is a device node; devices come from the node, never from an image",
                ));
            }
            _ => return Err(self.refused(&path, "it is of a kind that no layer has")),
        };
        made.map_err(|source| self.entry_error(&path, source))
    }

    fn file(
        &mut self,
        entry: &mut Entry<'_, impl Read>,
        path: &Path,
        inner: &InnerPath,
        attributes: Attributes,
    ) -> Result<(), UnpackError> {
        // A sparse file may be far longer than the archive, so its own length counts too.
        self.done.bytes = self.done.bytes.saturating_add(entry.size());
        if self.done.bytes > self.limits.bytes {
            return Err(self.too_much(self.limits.bytes, "bytes"));
        }
        let mut file = self.tree.file(inner).map_err(|e| self.entry_error(path, e))?;
        io::copy(entry, &mut file).map_err(|source| match source.kind() {
            io::ErrorKind::FileTooLarge => classify(self.layer, self.limits, source),
            _ => self.entry_error(path, source),
        })?;
        self.tree
            .finish_file(&file, attributes)
            .map_err(|e| self.entry_error(path, e))
    }

    fn whiteout(&mut self, path: &Path, inner: &InnerPath) -> Result<(), UnpackError> {
        let made = if inner.name == OPAQUE {
            self.tree.opaque(&inner.parent)
        } else {
            let hidden = &inner.name[WHITEOUT.len()..];
            if matches!(hidden, b"" | b"." | b"..") || hidden.starts_with(WHITEOUT) {
                return Err(self.refused(path, "it hides no name"));
            }
            self.tree.whiteout(&InnerPath {
                parent: inner.parent.clone(),
                name: hidden.to_vec(),
            })
        };
        made.map_err(|source| self.entry_error(path, source))
    }

    /// Extended attributes, file capabilities among them, are never unpacked.
    fn attributes(&self, entry: &Entry<'_, impl Read>, path: &Path) -> Result<Attributes, UnpackError> {
        let header = entry.header();
        let read = |e| self.read_error(e);
        let (uid, gid) = (header.uid().map_err(read)?, header.gid().map_err(read)?);
        let id = |id: u64| u32::try_from(id).ok().filter(|id| *id < IDS_PER_CONTAINER);
        let (Some(uid), Some(gid)) = (id(uid), id(gid)) else {
            return Err(self.refused(path, "its owner is not among the 65536 ids of a container"));
        };
        Ok(Attributes {
            uid,
            gid,
            mode: header.mode().map_err(read)? & 0o7777,
            mtime: header.mtime().map_err(read)?.try_into().unwrap_or(0),
        })
    }

    fn link_target(&self, entry: &Entry<'_, impl Read>, path: &Path) -> Result<PathBuf, UnpackError> {
        let target = entry.link_name().map_err(|e| self.read_error(e))?;
        let target = target.ok_or_else(|| self.refused(path, "it is a link to nothing"))?;
        if target.as_os_str().len() > self.limits.path_bytes {
            return Err(self.refused(path, "it is a link to a name that is too long"));
        }
        Ok(target.into_owned())
    }

    fn inner(&self, path: &Path) -> Result<InnerPath, UnpackError> {
        if path.as_os_str().as_bytes().len() > self.limits.path_bytes {
            return Err(self.refused(path, "its name is too long"));
        }
        InnerPath::of(path).ok_or_else(|| self.refused(path, "it leads out of the layer"))
    }

    fn read_error(&self, source: io::Error) -> UnpackError {
        classify(self.layer, self.limits, source)
    }

    fn entry_error(&self, path: &Path, source: io::Error) -> UnpackError {
        let (layer, path) = (self.layer, path.to_owned());
        // What openat2 says about a symbolic link on the way, and about one that would lead out.
        if matches!(
            rustix::io::Errno::from_io_error(&source),
            Some(rustix::io::Errno::LOOP | rustix::io::Errno::XDEV)
        ) {
            let why = "it lies behind a symbolic link";
            return UnpackError::Refused { layer, path, why };
        }
        UnpackError::Entry { layer, path, source }
    }

    fn refused(&self, path: &Path, why: &'static str) -> UnpackError {
        let shown: PathBuf = path.to_string_lossy().chars().take(200).collect::<String>().into();
        UnpackError::Refused {
            layer: self.layer,
            path: shown,
            why,
        }
    }

    fn too_much(&self, most: u64, what: &'static str) -> UnpackError {
        let layer = self.layer;
        UnpackError::TooMuch { layer, most, what }
    }
}

/// Zstandard frames one after the other, as `pzstd` and chunked layers are.
struct ZstdFrames<R: BufRead> {
    state: Option<ZstdState<R>>,
}

enum ZstdState<R: BufRead> {
    Between(R),
    Inside(Box<ruzstd::decoding::StreamingDecoder<R, ruzstd::decoding::FrameDecoder>>),
}

impl<R: BufRead> ZstdFrames<R> {
    fn new(source: R) -> ZstdFrames<R> {
        ZstdFrames {
            state: Some(ZstdState::Between(source)),
        }
    }
}

impl<R: BufRead> Read for ZstdFrames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.state.take() {
                None => return Ok(0),
                Some(ZstdState::Between(mut source)) => {
                    if source.fill_buf()?.is_empty() {
                        return Ok(0);
                    }
                    if skip_frame(&mut source)? {
                        self.state = Some(ZstdState::Between(source));
                        continue;
                    }
                    let frame = ruzstd::decoding::StreamingDecoder::new(source).map_err(io::Error::other)?;
                    self.state = Some(ZstdState::Inside(Box::new(frame)));
                }
                Some(ZstdState::Inside(mut frame)) => match frame.read(buffer)? {
                    0 if !buffer.is_empty() => self.state = Some(ZstdState::Between(frame.into_inner())),
                    count => {
                        self.state = Some(ZstdState::Inside(frame));
                        return Ok(count);
                    }
                },
            }
        }
    }
}

/// Skippable frames carry the index of chunked layers; they are no part of the content.
fn skip_frame(source: &mut impl BufRead) -> io::Result<bool> {
    let start = source.fill_buf()?;
    // A buffer that ends within the magic number is so rare that reading it as a data frame, and failing, will do.
    if start.len() < 4 || start[0] & 0xf0 != 0x50 || start[1..4] != [0x2a, 0x4d, 0x18] {
        return Ok(false);
    }
    source.consume(4);
    let mut length = [0; 4];
    source.read_exact(&mut length)?;
    let length = u64::from(u32::from_le_bytes(length));
    let skipped = io::copy(&mut source.take(length), &mut io::sink())?;
    if skipped < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(true)
}
