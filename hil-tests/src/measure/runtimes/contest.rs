//! Several contenders, one round after the other, and what their medians say beside each other.

use super::super::table::{Table, percentile};

/// One run of one contender.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lap {
    /// From before the start of the process to the program's first word, in ms.
    pub(super) first: f64,
    /// To the end of the process, in ms.
    pub(super) gone: f64,
    /// CPU time of the group, in ms.
    pub(super) cpu: f64,
    /// Most memory of the group, page cache included, in KiB.
    pub(super) group_peak: f64,
}

/// The laps of one contender.
#[derive(Clone, Debug, Default)]
pub(super) struct Laps {
    pub(super) name: String,
    pub(super) laps: Vec<Lap>,
}

impl Laps {
    pub(super) fn of(name: &str) -> Laps {
        Laps {
            name: name.to_owned(),
            laps: Vec::new(),
        }
    }
}

/// A row for each value of the laps: the medians, and the first contender as a ratio to each other one.
pub(super) fn rows(table: &mut Table, what: &str, contenders: &[Laps], how: &str) {
    type Value = fn(&Lap) -> f64;
    let values: [(&str, &str, Value); 4] = [
        ("start -> first instruction", "ms", |lap| lap.first),
        ("start -> gone", "ms", |lap| lap.gone),
        ("CPU time", "ms", |lap| lap.cpu),
        ("peak of its control group, page cache included", "KiB", |lap| {
            lap.group_peak
        }),
    ];
    for (name, unit, value) in values {
        let all: Vec<(String, Vec<f64>)> = contenders
            .iter()
            .map(|of| (of.name.clone(), of.laps.iter().map(value).collect()))
            .collect();
        table.add(&format!("{what}: {name}"), beside(&all, unit), how);
    }
}

/// `ours 10.0 ms, crun 20.0 ms; ours/crun 0.50`: the first contender beside each other one.
pub(super) fn beside(contenders: &[(String, Vec<f64>)], unit: &str) -> String {
    let medians: Vec<(&str, f64)> = contenders
        .iter()
        .map(|(name, values)| (name.as_str(), median(values)))
        .collect();
    let digits = usize::from(unit == "ms") * 2;
    let figures: Vec<String> = medians
        .iter()
        .map(|(name, value)| format!("{name} {value:.digits$} {unit}"))
        .collect();
    let Some(((first, ours), others)) = medians.split_first() else {
        return String::new();
    };
    let ratios: Vec<String> = others
        .iter()
        .map(|(name, value)| format!("{first}/{name} **{:.2}**", ours / value))
        .collect();
    let separator = if ratios.is_empty() { "" } else { "; " };
    format!("{}{separator}{}", figures.join(", "), ratios.join(", "))
}

pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    percentile(&sorted, 50)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_set_beside_each_other() {
        let all = [
            ("ours".to_owned(), vec![9.0, 10.0, 500.0]),
            ("crun".to_owned(), vec![20.0]),
            ("runc".to_owned(), vec![40.0, 40.0]),
        ];
        assert_eq!(
            beside(&all, "ms"),
            "ours 10.00 ms, crun 20.00 ms, runc 40.00 ms; ours/crun **0.50**, ours/runc **0.25**"
        );
        assert_eq!(beside(&all[..1], "KiB"), "ours 10 KiB");
        assert_eq!(beside(&[], "ms"), "");
    }
}
