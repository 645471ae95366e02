//! What one durable write costs here: every figure with a commit in it holds several of them.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use super::table::{Table, spread};
use super::wrong;
use crate::demo::DemoError;

const WRITES: usize = 200;

/// Appends a page and waits until the disk has it, again and again.
pub(super) fn measure(dir: &Path, table: &mut Table) -> Result<(), DemoError> {
    let mut file = File::create(dir.join("disk")).map_err(wrong)?;
    let mut all = Vec::with_capacity(WRITES);
    for _ in 0..WRITES {
        let begin = Instant::now();
        file.write_all(&[7; 4096]).map_err(wrong)?;
        file.sync_data().map_err(wrong)?;
        all.push(begin.elapsed().as_secs_f64() * 1000.0);
    }
    table.add(
        "disk: append 4 KiB and fdatasync",
        spread(all, 2),
        &format!("{WRITES} times, where the state folders are"),
    );
    Ok(())
}
