//! The memory of a process.

use std::fs;

/// Proportional set size in KiB: shared pages are counted in part.
pub(super) fn pss_kib(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("Pss:"));
    line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse().ok())
        .unwrap_or(0)
}

/// The same, for a person; what is anonymous is said too, as the rest is mostly the program's text.
pub(super) fn pss(pid: u32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let field = |name: &str| -> f64 {
        let line = text.lines().find_map(|l| l.strip_prefix(name));
        line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse().ok())
            .unwrap_or(0.0)
            / 1024.0
    };
    format!(
        "{:.2} MiB ({:.2} MiB of it anonymous)",
        field("Pss:"),
        field("Pss_Anon:")
    )
}
