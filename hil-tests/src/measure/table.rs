//! Names, values, and how each was measured.

use crate::demo::DemoError;

/// What was measured so far.
#[derive(Default)]
pub(super) struct Table {
    rows: Vec<(String, String, String)>,
}

impl Table {
    pub(super) fn add(&mut self, name: &str, value: impl Into<String>, how: &str) {
        let row = (name.to_owned(), value.into(), how.to_owned());
        super::note(&format!("  {}: {}", row.0, row.1));
        self.rows.push(row);
    }

    /// Does one part; one that fails is a row that says so.
    pub(super) fn part(&mut self, name: &str, work: impl FnOnce(&mut Self) -> Result<(), DemoError>) {
        super::note(name);
        if let Err(e) = work(self) {
            self.add(name, "failed", &e.to_string());
        }
    }

    pub(super) fn markdown(&self) -> String {
        let mut text = "| name | value | how |\n|---|---|---|\n".to_owned();
        for (name, value, how) in &self.rows {
            text.push_str(&format!(
                "| {name} | {value} | {} |\n",
                how.replace('|', "/").replace('\n', " ")
            ));
        }
        text
    }
}

/// The value below which `percent` of the sorted values lie (nearest rank).
pub(super) fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(rank).copied().unwrap_or(f64::NAN)
}

/// `p50 / p99 / max` of some milliseconds.
pub(super) fn spread(mut all: Vec<f64>, digits: usize) -> String {
    all.sort_by(f64::total_cmp);
    let [p50, p99, max] = [50, 99, 100].map(|p| percentile(&all, p));
    format!("p50 {p50:.digits$} ms, p99 {p99:.digits$} ms, max {max:.digits$} ms")
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let all: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!([50, 99, 100].map(|p| percentile(&all, p)), [100.0, 198.0, 200.0]);
        assert_eq!(percentile(&[7.0], 50), 7.0);
        assert!(percentile(&[], 50).is_nan());
    }
}
