//! Checks of when and with what a workload runs.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::checks::{Checker, positive_duration};
use super::errors::{nearest, quoted};
use super::model::RuntimeKind;
use super::settings;
use super::settings_checks::{self, Around};

/// The five fields of cron, with what each may hold.
const CRON_FIELDS: [(&str, &str); 5] = [
    ("minute", "0 to 59"),
    ("hour", "0 to 23"),
    ("day of the month", "1 to 31"),
    ("month", "1 to 12 or JAN to DEC"),
    ("day of the week", "0 to 7 or SUN to SAT"),
];
/// A firing is looked for from here, 2026-01-01; leap days come within the years that cron's search covers.
const SEARCH_FROM_S: i64 = 1_767_225_600;
/// Shortest time between two questions for a workload's health.
const HEALTH_INTERVAL_MIN_MS: u64 = 100;

impl<'a> Checker<'a> {
    /// Everything of one workload that `wire_conditions.rs` describes.
    pub(super) fn conditions(&mut self, at: &str) {
        self.volumes(at);
        // Of accelerators, two of one kind are two claims.
        let devices: Vec<String> = (0..self.items(&format!("{at}/devices")))
            .map(|i| format!("{at}/devices/{i}"))
            .collect();
        self.unique(&devices, "device");
        self.schedule(&format!("{at}/schedule"));
        self.health(&format!("{at}/health"));
        self.wasm_only(at);
    }

    fn volumes(&mut self, at: &str) {
        let count = self.items(&format!("{at}/volumes"));
        let fields = |name: &str| -> Vec<String> { (0..count).map(|i| format!("{at}/volumes/{i}/{name}")).collect() };
        for path in fields("path") {
            self.mount_path(&path);
        }
        self.unique(&fields("name"), "volume name");
        // A folder over a file, or two over each other, would hide one of them.
        let files = (0..self.items(&format!("{at}/files"))).map(|i| format!("{at}/files/{i}/path"));
        let paths: Vec<String> = files.chain(fields("path")).collect();
        self.unique_from(&paths, "path", paths.len() - count);
    }

    pub(super) fn schedule(&mut self, at: &str) {
        self.quantity(&format!("{at}/for"), positive_duration);
        self.quantity(&format!("{at}/late"), super::quantity::duration);
        let zone_at = format!("{at}/zone");
        let zone = self.text(&zone_at).unwrap_or("UTC");
        if jiff::tz::TimeZone::get(zone).is_err() {
            let hint = "an IANA time zone such as Europe/Berlin, or UTC".to_owned();
            self.push(&zone_at, format!("there is no time zone {}", quoted(zone)), Some(hint));
        }
        let cron_at = format!("{at}/cron");
        if let Some(cron) = self.text(&cron_at)
            && let Err((message, hint)) = check_cron(cron)
        {
            self.push(&cron_at, message, Some(hint));
        }
    }

    fn health(&mut self, at: &str) {
        self.whole_number(&format!("{at}/failures"));
        self.quantity(&format!("{at}/within"), positive_duration);
        let interval = format!("{at}/interval");
        self.quantity(&interval, super::quantity::duration);
        if let Some(Ok(ms)) = self.get(&interval).map(super::quantity::duration)
            && ms < HEALTH_INTERVAL_MIN_MS
        {
            let message =
                format!("{ms} ms is too often: at least {HEALTH_INTERVAL_MIN_MS} ms lie between two questions");
            self.push(&interval, message, None);
        }
    }

    fn wasm_only(&mut self, at: &str) {
        if self.text(&format!("{at}/runtime")) == Some(RuntimeKind::Wasm.as_str()) {
            return;
        }
        for grant in ["threads", "nn"] {
            let pointer = format!("{at}/grants/{grant}");
            if self.get(&pointer) == Some(&Value::Bool(true)) {
                let message = "only a Wasm workload can be granted this".to_owned();
                self.push(&pointer, message, Some("remove the line".to_owned()));
            }
        }
    }

    /// Settings against what the runtime understands.
    pub(super) fn settings(&mut self, at: &str) {
        let runtime = match self.text(&format!("{at}/runtime")) {
            Some("wasm") => RuntimeKind::Wasm,
            Some("container") => RuntimeKind::Container,
            Some("ebpf") => RuntimeKind::Ebpf,
            _ => return,
        };
        let none = Value::Object(serde_json::Map::new());
        let pointer = format!("{at}/settings");
        let given = match self.root.pointer(&pointer) {
            Some(Value::Object(_)) => self.get(&pointer),
            // The schema has said that it is no map.
            Some(_) => return,
            None => None,
        };
        let files = (0..self.items(&format!("{at}/files"))).filter_map(|i| self.text(&format!("{at}/files/{i}/path")));
        let around = Around {
            files: files.collect(),
            nn: self.get(&format!("{at}/grants/nn")) == Some(&Value::Bool(true)),
            written: given.unwrap_or(&none),
        };
        let mistakes = match settings::read(runtime, around.written) {
            Ok(settings) => settings_checks::check(&settings, &around),
            Err(mistakes) => mistakes,
        };
        for mistake in mistakes {
            let full = format!("{pointer}{}", mistake.pointer);
            self.push_at(&full, mistake.at_key, mistake.message, mistake.hint);
        }
    }

    /// That every needed workload of the application exists, and that no needs go in a circle.
    pub(super) fn needs(&mut self, workloads: usize) {
        let own = self.text("/metadata/name").unwrap_or_default();
        let name_of = |i: usize| self.text(&format!("/workloads/{i}/name"));
        let index: BTreeMap<&str, usize> = (0..workloads).filter_map(|i| Some((name_of(i)?, i))).collect();
        let mut edges: Vec<Vec<(usize, String)>> = vec![Vec::new(); workloads];
        for (from, needed_here) in edges.iter_mut().enumerate() {
            let mut seen = BTreeSet::new();
            for n in 0..self.items(&format!("/workloads/{from}/needs")) {
                let at = format!("/workloads/{from}/needs/{n}");
                let Some((pointer, written)) = self.need(&at) else {
                    continue;
                };
                let (application, name) = written.split_once('/').unwrap_or((own, written));
                if !seen.insert((application, name)) {
                    self.push(&pointer, format!("{} is needed already", quoted(written)), None);
                }
                if application != own {
                    continue;
                }
                match index.get(name) {
                    Some(to) => {
                        self.never_finishes(&at, *to, name);
                        needed_here.push((*to, pointer));
                    }
                    None => {
                        let hint = nearest(name, index.keys().copied())
                            .unwrap_or_else(|| "one of another application is written application/workload".to_owned());
                        let message = format!("this application has no workload {}", quoted(name));
                        self.push(&pointer, message, Some(hint));
                    }
                }
            }
        }
        if let Some((path, pointer)) = circle(&edges) {
            let names: Vec<&str> = path
                .iter()
                .map(|i| index.iter().find(|(_, at)| *at == i).map_or("?", |(name, _)| *name))
                .collect();
            let message = format!(
                "the needs go in a circle, so that none would ever start: {}",
                names.join(" -> ")
            );
            self.push(&pointer, message, None);
        }
    }

    /// Where the name of a need stands, and the name.
    fn need(&self, at: &str) -> Option<(String, &'a str)> {
        if let Some(name) = self.text(at) {
            return Some((at.to_owned(), name));
        }
        let pointer = format!("{at}/workload");
        self.text(&pointer).map(|name| (pointer, name))
    }

    /// What is always started again never finishes, unless a schedule lets it.
    fn never_finishes(&mut self, need: &str, index: usize, name: &str) {
        let condition = format!("{need}/condition");
        let workload = format!("/workloads/{index}");
        let policy = self.text(&format!("{workload}/restart/policy"));
        let scheduled = self.root.pointer(&format!("{workload}/schedule")).is_some();
        if self.text(&condition) == Some("finished") && !scheduled && policy.is_none_or(|p| p == "always") {
            let message = format!("{} never finishes: it is started again whenever it ends", quoted(name));
            let hint = format!("give {name} restart: {{policy: on-failure}}");
            self.push(&condition, message, Some(hint));
        }
    }
}

/// The first circle: its members, the first again at the end, and where the need stands that closes it.
fn circle(edges: &[Vec<(usize, String)>]) -> Option<(Vec<usize>, String)> {
    let mut done = vec![false; edges.len()];
    for start in 0..edges.len() {
        // A path of (workload, next need to follow); as long as the deepest chain of needs.
        let mut path: Vec<(usize, usize)> = vec![(start, 0)];
        while let Some((at, next)) = path.last_mut() {
            let (here, edge) = (*at, *next);
            *next += 1;
            match edges[here].get(edge) {
                _ if done[here] => {
                    path.pop();
                }
                None => {
                    done[here] = true;
                    path.pop();
                }
                Some((to, pointer)) => {
                    if let Some(from) = path.iter().position(|(w, _)| w == to) {
                        let mut names: Vec<usize> = path[from..].iter().map(|(w, _)| *w).collect();
                        names.push(*to);
                        return Some((names, pointer.clone()));
                    }
                    path.push((*to, 0));
                }
            }
        }
    }
    None
}

/// What is wrong with a cron expression, and what would be right.
fn check_cron(cron: &str) -> Result<(), (String, String)> {
    let fields: Vec<&str> = cron.split_whitespace().collect();
    if fields.len() != CRON_FIELDS.len() {
        let message = format!("{} has {} fields; cron has 5", quoted(cron), fields.len());
        let hint = "minute, hour, day of the month, month, day of the week, for example \"0 6 * * MON-FRI\"".to_owned();
        return Err((message, hint));
    }
    for (i, (field, (name, range))) in fields.iter().zip(CRON_FIELDS).enumerate() {
        let mut alone = ["*"; 5];
        alone[i] = field;
        if cronexpr::parse_crontab(&format!("{} UTC", alone.join(" "))).is_err() {
            let message = format!("the {name} {} of {} is not understood", quoted(field), quoted(cron));
            return Err((
                message,
                format!("{range}, lists (1,2), ranges (1-5), steps (*/15), or *"),
            ));
        }
    }
    let whole = cronexpr::parse_crontab(&format!("{} UTC", fields.join(" ")));
    let from = cronexpr::MakeTimestamp::from_second(SEARCH_FROM_S);
    let fires = whole.and_then(|c| from.and_then(|f| c.find_next(f)));
    match fires {
        Ok(_) => Ok(()),
        Err(_) => Err((
            format!("{} never comes", quoted(cron)),
            "there is no such day in any month that it names".to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn circles_are_found_and_chains_are_none() {
        let edges = |list: &[(usize, usize)]| {
            let mut all = vec![Vec::new(); 6];
            for (from, to) in list {
                all[*from].push((*to, format!("{from}>{to}")));
            }
            all
        };
        assert_eq!(circle(&edges(&[(0, 1), (1, 2), (0, 2), (3, 2), (4, 0)])), None);
        assert_eq!(circle(&edges(&[(2, 2)])), Some((vec![2, 2], "2>2".into())));
        let (path, at) = circle(&edges(&[(0, 1), (1, 2), (2, 3), (3, 1)])).unwrap();
        assert_eq!((path, at.as_str()), (vec![1, 2, 3, 1], "3>1"));
        let chain: Vec<(usize, usize)> = (0..5).map(|i| (i, i + 1)).collect();
        assert_eq!(circle(&edges(&chain)), None);
    }

    #[test]
    fn cron() {
        for good in [
            "0 6 * * MON-FRI",
            "*/15 * * * *",
            "0 0 29 2 *",
            "30 2 1,15 * *",
            "0 0 L * *",
        ] {
            assert_eq!(check_cron(good), Ok(()), "{good}");
        }
        for (bad, said) in [
            ("0 6 * *", "has 4 fields"),
            ("61 * * * *", "the minute \"61\""),
            ("0 24 * * *", "the hour \"24\""),
            ("0 0 0 * *", "the day of the month \"0\""),
            ("0 0 * 13 *", "the month \"13\""),
            ("0 0 * * FRIDAY!", "the day of the week"),
            ("0 0 31 2 *", "never comes"),
            ("@daily x x x x", "the minute"),
        ] {
            let (message, _) = check_cron(bad).unwrap_err();
            assert!(message.contains(said), "{bad}: {message}");
        }
    }
}
