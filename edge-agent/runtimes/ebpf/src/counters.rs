//! Maps as counters.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use cnova_ral::COUNTERS_MAX;
use cnova_ral::settings::MapMetric;

use crate::format::{Template, native};
use crate::inspect::MapFacts;
use crate::policy::PER_CPU;
use crate::sys;

/// Longest name of a counter, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Keys of one map that are looked at for one answer; the agent waits for it.
pub const KEYS_MAX: usize = 65_536;

/// Reads one map.
#[derive(Debug)]
pub struct MapReader {
    fd: OwnedFd,
    name: String,
    key_size: usize,
    value_size: usize,
    values: usize,
}

impl MapReader {
    /// For a map whose sizes are known. Per-CPU maps have a value for each possible CPU.
    #[must_use]
    pub fn new(fd: OwnedFd, facts: &MapFacts) -> MapReader {
        let values = match PER_CPU.contains(&facts.map_type) {
            true => aya::util::nr_cpus().unwrap_or(1),
            false => 1,
        };
        MapReader {
            fd,
            name: facts.name.clone(),
            key_size: facts.key_size as usize,
            value_size: facts.value_size as usize,
            values,
        }
    }

    /// Adds what the metric asks for.
    pub fn read(&self, metric: &MapMetric, counters: &mut BTreeMap<String, f64>) {
        match metric {
            MapMetric::Sum => {
                let mut sum = 0u64;
                self.each(KEYS_MAX, |_, value| sum = sum.saturating_add(value));
                add(counters, &self.name, sum);
            }
            MapMetric::ByKey => self.each(COUNTERS_MAX, |key, value| {
                let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
                add(counters, &format!("{}{{{hex}}}", self.name), value);
            }),
            MapMetric::Elements(names) => {
                for (at, name) in (0u32..).zip(names.iter().take(COUNTERS_MAX)) {
                    if let Some(value) = self.lookup(&at.to_ne_bytes()) {
                        add(counters, name, value);
                    }
                }
            }
            MapMetric::Format(text) => {
                // The policy has parsed it before.
                let Ok(template) = Template::parse(text, self.key_size) else {
                    return;
                };
                self.each(COUNTERS_MAX, |key, value| {
                    add(counters, &format!("{}.{}", self.name, template.render(key)), value);
                });
            }
        }
    }

    /// Every key that the kernel shows, at most `most`: a map that changes meanwhile may start over.
    fn each(&self, most: usize, mut act: impl FnMut(&[u8], u64)) {
        let mut key = vec![0; self.key_size];
        let mut next = vec![0; self.key_size];
        let mut found = sys::next_key(self.fd.as_fd(), None, &mut key);
        for _ in 0..most {
            if !matches!(found, Ok(true)) {
                return;
            }
            if let Some(value) = self.lookup(&key) {
                act(&key, value);
            }
            found = sys::next_key(self.fd.as_fd(), Some(&key), &mut next);
            std::mem::swap(&mut key, &mut next);
        }
    }

    fn lookup(&self, key: &[u8]) -> Option<u64> {
        if key.len() != self.key_size {
            return None;
        }
        // The kernel keeps the values of CPUs eight bytes apart.
        let stride = self.value_size.next_multiple_of(8);
        let mut bytes = vec![0; stride * self.values];
        match sys::lookup(self.fd.as_fd(), key, &mut bytes) {
            Ok(true) => Some(
                bytes
                    .chunks_exact(stride)
                    .map(|value| native(&value[..self.value_size]))
                    .fold(0, u64::saturating_add),
            ),
            _ => None,
        }
    }
}

/// Adds a counter if there is room and its name is not too long; what has the same name is summed.
pub fn add(counters: &mut BTreeMap<String, f64>, name: &str, value: u64) {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return;
    }
    #[expect(clippy::cast_precision_loss, reason = "counters are floating point on the wire")]
    let value = value as f64;
    if let Some(counter) = counters.get_mut(name) {
        *counter += value;
    } else if counters.len() < COUNTERS_MAX {
        counters.insert(name.to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_and_the_names_of_counters_are_bounded() {
        let mut counters = BTreeMap::new();
        add(&mut counters, &"n".repeat(NAME_BYTES_MAX + 1), 1);
        add(&mut counters, "", 1);
        assert!(counters.is_empty());
        for number in 0..COUNTERS_MAX + 10 {
            add(&mut counters, &format!("n{number}"), 1);
        }
        add(&mut counters, "n0", 2);
        assert_eq!((counters.len(), counters["n0"]), (COUNTERS_MAX, 3.0));
    }
}
