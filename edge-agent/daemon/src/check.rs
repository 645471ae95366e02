//! `cnova-agent check`: what would go wrong at the start, without starting.

use std::fmt::Write;
use std::path::Path;

use cnova_link::FloorClock;

use crate::catalog::Catalog;
use crate::config::AgentConfig;
use crate::run;

/// Findings, line by line.
struct Findings {
    text: String,
    ok: bool,
}

impl Findings {
    fn good(&mut self, what: &str) {
        let _ = writeln!(self.text, "ok       {what}");
    }
    fn warn(&mut self, what: &str) {
        let _ = writeln!(self.text, "warning  {what}");
    }
    fn bad(&mut self, what: &str) {
        self.ok = false;
        let _ = writeln!(self.text, "error    {what}");
    }
}

/// Checks everything that can be checked without touching what runs. The text is for people; false means that the
/// agent would not start.
#[must_use]
pub fn check(path: &Path) -> (String, bool) {
    let mut findings = Findings {
        text: String::new(),
        ok: true,
    };
    match AgentConfig::load(path) {
        Err(error) => findings.bad(&error.to_string()),
        Ok(config) => {
            findings.good(&format!("configuration {}", path.display()));
            check_identity(&config, &mut findings);
            check_runtimes(&config, &mut findings);
            check_state(&config, &mut findings);
            let (mib, cpu) = (config.memory_bytes() >> 20, config.cpu_millis());
            findings.good(&format!(
                "workloads may use {mib} MiB of memory and {cpu} thousandths of a core"
            ));
        }
    }
    (findings.text, findings.ok)
}

fn check_identity(config: &AgentConfig, findings: &mut Findings) {
    let identity = match config.identity.load() {
        Ok(identity) => identity,
        Err(error) => return findings.bad(&error.to_string()),
    };
    match run::place(config, &identity) {
        Ok(place) => findings.good(&format!("node {} at {}", place.node, place.site)),
        Err(error) => findings.bad(&error.to_string()),
    }
    let clock = std::sync::Arc::new(FloorClock::of(&identity));
    let now_s = clock.now_s();
    let authorities = identity.trust().authorities();
    match cnova_shared::certificate::verify(identity.chain(), &authorities, now_s) {
        Ok(_) => {
            let days = identity.not_after_s().saturating_sub(now_s) / 86_400;
            findings.good(&format!(
                "the certificate is of an authority in the trust bundle and ends in {days} days"
            ));
        }
        Err(error) => findings.bad(&error.to_string()),
    }
    let trust = identity.trust().contents();
    findings.good(&format!(
        "trust bundle version {} with {} signing keys",
        trust.version,
        trust.keys.len()
    ));
    if trust.keys.iter().all(|k| k.not_after <= now_s) {
        findings.warn("every signing key in the trust bundle has run out: no new twin will be taken");
    }
    identity.warnings().iter().for_each(|w| findings.warn(w));
    match cnova_link::client_tls(&identity, &config.parent.node, clock) {
        Ok(_) => findings.good(&format!("parent {} at {}", config.parent.node, config.parent.address)),
        Err(error) => findings.bad(&error.to_string()),
    }
}

fn check_runtimes(config: &AgentConfig, findings: &mut Findings) {
    let catalog = Catalog::discover(&config.runtime_dir);
    for runtime in catalog.iter() {
        let c = &runtime.capability;
        let targets = c.targets.join(", ");
        findings.good(&format!(
            "runtime {} {} ({}) for {targets}: {}",
            c.name,
            c.version,
            c.engine,
            runtime.exe.display()
        ));
    }
    catalog.alarms.iter().for_each(|alarm| findings.warn(&alarm.detail));
    if catalog.iter().next().is_none() {
        findings.warn("no runtime: the agent starts, but no workload can");
    }
}

fn check_state(config: &AgentConfig, findings: &mut Findings) {
    match run::prepare_state(&config.state_dir, &config.run_dir()) {
        Ok(_) => findings.good(&format!("state folder {}", config.state_dir.display())),
        Err(run::StartError::Locked { path, by }) => {
            findings.warn(&format!("an agent runs in {}{by}", path.display()));
        }
        Err(error) => findings.bad(&error.to_string()),
    }
}
