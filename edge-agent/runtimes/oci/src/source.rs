//! Where the files of a layout are: in a folder, or in an archive.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use crate::layout::LayoutError;
use crate::manifest::TOTAL_BYTES_MAX;
use crate::tree::InnerPath;

/// Most entries of an archive that holds a layout.
const ARCHIVE_ENTRIES_MAX: usize = 10_000;
/// An archive has headers and padding besides the blobs.
const ARCHIVE_BYTES_MAX: u64 = TOTAL_BYTES_MAX + (64 << 20);

/// A file of a layout, and its length.
pub(crate) type Opened = (Box<dyn Read + Send>, u64);

pub(crate) enum Source {
    Folder(PathBuf),
    Archive {
        file: Arc<File>,
        index: HashMap<String, Span>,
    },
}

/// Where a file lies in an archive.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    start: u64,
    size: u64,
}

impl Source {
    pub(crate) fn open(path: &Path) -> Result<Source, LayoutError> {
        let io_error = |source| LayoutError::Io {
            path: path.to_owned(),
            source,
        };
        let mut file = File::open(path).map_err(io_error)?;
        if file.metadata().map_err(io_error)?.is_dir() {
            return Ok(Source::Folder(path.to_owned()));
        }
        let mut magic = [0; 2];
        let is_gzip = file.read_exact(&mut magic).is_ok() && magic == [0x1f, 0x8b];
        file.seek(SeekFrom::Start(0)).map_err(io_error)?;
        let file = if is_gzip {
            inflate(file).map_err(io_error)?
        } else {
            file
        };
        let index = index_of(&file, path)?;
        Ok(Source::Archive {
            file: Arc::new(file),
            index,
        })
    }

    /// Opens a file of the layout; its length comes with it. Nothing if it is not there.
    pub(crate) fn file(&self, name: &str) -> io::Result<Option<Opened>> {
        match self {
            Source::Folder(dir) => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = match rustix::fs::open(dir.join(name), flags, Mode::empty()) {
                    Ok(fd) => File::from(fd),
                    Err(rustix::io::Errno::NOENT) => return Ok(None),
                    Err(errno) => return Err(errno.into()),
                };
                let meta = file.metadata()?;
                if !meta.is_file() {
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
                }
                Ok(Some((Box::new(file), meta.len())))
            }
            Source::Archive { file, index } => Ok(index.get(name).map(|span| {
                let section = Section {
                    file: file.clone(),
                    at: span.start,
                    end: span.start + span.size,
                };
                (Box::new(section) as Box<dyn Read + Send>, span.size)
            })),
        }
    }
}

struct Section {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let most = buffer.len().min(left);
        let count = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// A compressed archive cannot be read here and there, so it is unpacked into a file without a name first.
fn inflate(packed: File) -> io::Result<File> {
    let mut out = tempfile::tempfile()?;
    let mut plain = flate2::read::MultiGzDecoder::new(packed).take(ARCHIVE_BYTES_MAX + 1);
    let count = io::copy(&mut plain, &mut out)?;
    if count > ARCHIVE_BYTES_MAX {
        let message = format!("unpacks to more than {ARCHIVE_BYTES_MAX} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    out.flush()?;
    out.seek(SeekFrom::Start(0))?;
    Ok(out)
}

fn index_of(file: &File, path: &Path) -> Result<HashMap<String, Span>, LayoutError> {
    let archive_error = |source| LayoutError::Archive {
        path: path.to_owned(),
        source,
    };
    let mut archive = tar::Archive::new(file);
    let mut index = HashMap::new();
    for (count, entry) in archive.entries_with_seek().map_err(archive_error)?.enumerate() {
        let entry = entry.map_err(archive_error)?;
        if count >= ARCHIVE_ENTRIES_MAX {
            let message = format!("more than {ARCHIVE_ENTRIES_MAX} entries");
            return Err(archive_error(io::Error::other(message)));
        }
        let name = entry.path().map_err(archive_error)?.into_owned();
        let Some(inner) = InnerPath::of(&name) else {
            return Err(LayoutError::Escape {
                path: path.to_owned(),
                name: name.to_string_lossy().chars().take(200).collect(),
            });
        };
        // Links, which older `docker save` archives have, are no blobs.
        if !matches!(
            entry.header().entry_type(),
            tar::EntryType::Regular | tar::EntryType::Continuous
        ) {
            continue;
        }
        let span = Span {
            start: entry.raw_file_position(),
            size: entry.size(),
        };
        let full = inner.parent.join(String::from_utf8_lossy(&inner.name).as_ref());
        if let Some(full) = full.to_str() {
            index.insert(full.to_owned(), span);
        }
    }
    Ok(index)
}
