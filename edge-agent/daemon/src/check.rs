//! `cnova-agent check`: what would go wrong at the start, without starting.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use cnova_devices::{Groups as Hierarchies, PowerReading, Pressure, level};
use cnova_link::FloorClock;

use crate::catalog::Catalog;
use crate::config::AgentConfig;
use crate::groups::{Groups, ROOT_GROUP};
use crate::hardware::Hardware;
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
            check_groups_and_capacity(&config, &mut findings);
            check_hardware(&config, &mut findings);
            check_power(&config, &mut findings);
        }
    }
    (findings.text, findings.ok)
}

fn check_identity(config: &AgentConfig, findings: &mut Findings) {
    if let Some(enrolment) = &config.enrolment
        && !config.identity.certificate.exists()
    {
        let doors: Vec<String> = enrolment.endpoints.iter().map(ToString::to_string).collect();
        return findings.warn(&format!(
            "no certificate yet: it will be asked for at {}",
            doors.join(", ")
        ));
    }
    let identity = match config.identity.load() {
        Ok(identity) => identity,
        Err(error) => return findings.bad(&error.to_string()),
    };
    if let Some(silence) = identity.tpm().and_then(|tpm| tpm.silence()) {
        findings.warn(&format!(
            "{silence}; the agent starts, and what asks for trust waits for the TPM"
        ));
    }
    match run::place(config, &identity) {
        Ok(place) => findings.good(&format!("node {} at {}", place.node, place.site)),
        Err(error) => findings.bad(&error.to_string()),
    }
    let clock = std::sync::Arc::new(FloorClock::of(&identity));
    let now_s = clock.now_s();
    let authorities = identity.trust().authorities();
    match cnova_shared::certificate::verify(&identity.chain(), &authorities, now_s) {
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

/// Only looks: making the groups may move processes, which is the agent's to do when it starts.
fn check_groups_and_capacity(config: &AgentConfig, findings: &mut Findings) {
    let own = Hierarchies::own(&config.sensors.root);
    let wanted = config.runtime.cgroup_parent.as_deref().unwrap_or(ROOT_GROUP);
    let (groups, alarm) = Groups::find(&config.state_dir, Some(wanted));
    for folder in groups.folders() {
        findings.good(&format!("control groups of workloads in {}", folder.display()));
    }
    if let Some(alarm) = alarm {
        findings.warn(&alarm.detail);
        if groups.folders().next().is_none() && config.runtime.cgroup_parent.is_none() {
            findings.warn("when it starts, the agent tries to make control groups below its own; without any it runs all the same");
        }
    }
    let capacity = config.capacity(&groups.limits(own));
    let (mib, cpu) = (capacity.memory_bytes >> 20, capacity.cpu_millis);
    findings.good(&format!(
        "workloads may use {mib} MiB of memory and {cpu} thousandths of a core"
    ));
}

fn check_hardware(config: &AgentConfig, findings: &mut Findings) {
    let (hardware, alarm) = Hardware::new(config.sensors.root.clone(), config.devices.clone());
    for a in hardware.accelerators() {
        let what = format!("accelerator {} ({}, {})", a.id, a.kind, a.class.as_str());
        match a.unusable {
            None => findings.good(&format!("{what}: {}", paths(&a.nodes))),
            Some(why) => findings.warn(&format!("{what} is not used: {why}")),
        }
    }
    for (name, nodes) in hardware.devices() {
        match nodes {
            Ok(nodes) => findings.good(&format!("device {name}: {}", paths(&nodes))),
            Err(why) => findings.warn(&why.to_string()),
        }
    }
    if let Some(alarm) = alarm {
        findings.warn(&format!("devices {}", alarm.detail));
    }
}

fn check_power(config: &AgentConfig, findings: &mut Findings) {
    match config.power.check() {
        Ok(()) => {
            let verdict = level(&PowerReading::read(&config.sensors.root), &config.power, None);
            let word = format!("{:?}", verdict.level).to_lowercase();
            findings.good(&format!("power {word}: {}", verdict.reason));
        }
        Err(error) => findings.bad(&run::StartError::from(error).to_string()),
    }
    match Pressure::read(&config.sensors.root) {
        Ok(p) => {
            let share = |thousandths: u16| format!("{}.{} %", thousandths / 10, thousandths % 10);
            findings.good(&format!(
                "pressure: in 10 s something waited {} of the time for memory, {} for a CPU",
                share(p.memory.some.avg10),
                share(p.cpu.some.avg10)
            ));
        }
        Err(error) => findings.warn(&error.to_string()),
    }
}

fn paths(nodes: &[PathBuf]) -> String {
    if nodes.is_empty() {
        return "no device node".into();
    }
    let nodes: Vec<String> = nodes.iter().map(|n| n.display().to_string()).collect();
    nodes.join(", ")
}
