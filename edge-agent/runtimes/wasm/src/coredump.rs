//! A trapped workload's memory and stack, kept as a file for those who look for the fault.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use wasmtime::{Store, WasmCoreDump};

use crate::guest::Job;

/// Name of the file in the state folder. It is replaced by the next one.
const FILE: &str = "core.wasm";
/// Memory of a workload up to which it is dumped, in bytes: the dump is made in this process, which needs as much again.
const MEMORY_BYTES_MAX: u64 = 32 << 20;
/// Largest file, in bytes: the memories, globals and frames of at most so much.
const FILE_BYTES_MAX: usize = 40 << 20;

/// Writes the dump and says where it is, or why there is none. A failure here never hides the trap.
pub(crate) fn keep<T: 'static>(error: &wasmtime::Error, store: &mut Store<T>, job: &Job<'_>) -> String {
    let path = job.dir.join(FILE);
    let Some(dump) = error.downcast_ref::<WasmCoreDump>() else {
        return "core dump: none, for this was no trap of the workload's code".to_owned();
    };
    let memory = job.shared.memory_bytes.load(Ordering::Relaxed);
    if memory > MEMORY_BYTES_MAX {
        return format!(
            "core dump: none, {memory} bytes of memory are more than the {MEMORY_BYTES_MAX} that are dumped"
        );
    }
    let bytes = dump.serialize(store, &job.spec.workload);
    if bytes.len() > FILE_BYTES_MAX {
        return format!(
            "core dump: none, its {} bytes are more than {FILE_BYTES_MAX}",
            bytes.len()
        );
    }
    match write(&path, &bytes) {
        Ok(()) => format!("core dump: {}", path.display()),
        Err(error) => format!("core dump: cannot write {}: {error}", path.display()),
    }
}

/// Whole or not at all. Not forced to the disk: it is a convenience, and flash wears.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("part");
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&draft, path));
    written.inspect_err(|_| {
        let _ = fs::remove_file(&draft);
    })
}
