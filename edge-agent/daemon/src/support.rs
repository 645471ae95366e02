//! `cnova-agent support-bundle`: what somebody needs who helps from afar, in one file. Works while the agent is down, and
//! never writes to its state.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use cnova_agent_core::ledger::Stored;
use cnova_attestation::event_log;
use cnova_link::read_trust;
use cnova_link::support::{Bundle, CertificateFacts, Snapshot, SupportError, add_folder, add_machine, add_settings};
use cnova_shared::trust::{StoredTrust, TrustState};
use cnova_shared::wire::v1::{Body, Entry, Workload};
use serde_json::{Value, json};

use crate::config::AgentConfig;
use crate::run::wall_ms;
use crate::trusted::LAUNCH_LOG;
use crate::{instance, ledger, status};

/// Keys of `agent.toml` whose values are nobody's secret.
const HARMLESS: [&str; 27] = [
    "node",
    "site",
    "state_dir",
    "runtime_dir",
    "parent.node",
    "parent.address",
    "identity.certificate",
    "identity.key",
    "identity.trust_bundle",
    "identity.root",
    "identity.tcti",
    "enrolment.endpoints",
    "enrolment.server",
    "enrolment.token_file",
    "labels.*",
    "capacity.*",
    "runtime.*",
    "devices.name",
    "devices.nodes",
    "devices.allow",
    "devices.allow_block",
    "power.*",
    "sensors.*",
    "attestation.pcrs",
    "attestation.launch_pcr",
    "attestation.parent",
    "log.*",
];
/// Instances whose logs go in.
const LOGS_MAX: usize = 64;
/// The end of each log, in bytes.
const LOG_BYTES_MAX: u64 = 64 << 10;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The agent's configuration.
    pub config: PathBuf,
    /// The bundle; named after the time unless it is said.
    pub out: Option<PathBuf>,
    /// Whether the ends of workloads' logs go in. Nobody knows what workloads print.
    pub logs: bool,
}

/// Makes a bundle; what is said about it, for a person.
///
/// # Errors
/// [`SupportError`]: it could not be written. What cannot be read is left out, and the manifest says why.
pub fn make(wanted: &Wanted) -> Result<String, SupportError> {
    let made_s = wall_ms() / 1000;
    let default = || PathBuf::from(format!("cnova-agent-support-{made_s}.tar.gz"));
    let path = wanted.out.clone().unwrap_or_else(default);
    let mut bundle = Bundle::create(&path, "cnova-agent", env!("CARGO_PKG_VERSION"), made_s)?;
    add_settings(&mut bundle, &wanted.config, &HARMLESS)?;
    match AgentConfig::load(&wanted.config) {
        Ok(config) => add_node(&mut bundle, &config, wanted.logs)?,
        Err(e) => {
            bundle.leave_out("everything that the configuration leads to", e.to_string());
            add_machine(&mut bundle, Path::new("/"))?;
        }
    }
    bundle.finish()
}

fn add_node(bundle: &mut Bundle, config: &AgentConfig, logs: bool) -> Result<(), SupportError> {
    match status::ask(config) {
        Ok(s) => {
            bundle.add("status.txt", "the agent", status::text(&s).as_bytes())?;
            bundle.add_json("status.json", "the agent", &s)?;
        }
        Err(e) => bundle.leave_out("status", e.to_string()),
    }
    let certificate = &config.identity.certificate;
    match CertificateFacts::read(certificate) {
        Ok(facts) => bundle.add_json("certificate.json", &certificate.display().to_string(), &facts)?,
        Err(e) => bundle.leave_out("certificate", e),
    }
    add_ledger(bundle, config)?;
    let launch_log = config.state_dir.join(LAUNCH_LOG);
    for path in [launch_log.with_extension("waiting"), launch_log] {
        add_launches(bundle, &path)?;
    }
    if logs {
        add_logs(bundle, &config.run_dir())?;
    } else {
        bundle.leave_out(
            "logs of workloads",
            "nobody knows what workloads print: --logs puts their ends in",
        );
    }
    add_folder(bundle, &config.state_dir)?;
    add_machine(bundle, &config.state_dir)?;
    let never = "it is secret, or may be";
    for what in [
        "the node's key",
        "the enrolment token",
        "the ledger key",
        "the key for secrets, and secrets",
        "arguments, variables, settings and input files of workloads",
        "volumes and artifacts",
        "signed messages as they came",
    ] {
        bundle.leave_out(what, never);
    }
    Ok(())
}

/// What the agent remembers, read from a copy.
fn add_ledger(bundle: &mut Bundle, config: &AgentConfig) -> Result<(), SupportError> {
    let path = config.ledger_path();
    let from = path.display().to_string();
    let read = Snapshot::of(&path)
        .map_err(|e| e.to_string())
        .and_then(|copy| ledger::read_copy(copy.path()).map_err(|e| e.to_string()));
    match read {
        Ok(stored) => {
            bundle.add_json("ledger.json", &from, &ledger_facts(config, &stored))?;
            bundle.add("history.txt", &from, history(&stored.stream.entries).as_bytes())
        }
        Err(e) => {
            bundle.leave_out(from, e);
            Ok(())
        }
    }
}

fn ledger_facts(config: &AgentConfig, stored: &Stored) -> Value {
    let instances = stored.instances.iter().map(|row| {
        json!({
            "id": row.id.to_string(), "attempt": row.attempt, "spec": row.spec.to_string(), "failures": row.failures,
            "phase": format!("{:?}", row.phase), "ok": row.ok, "leases": row.leases,
            "good": row.good.as_ref().map(|g| format!("{}.{}", g.epoch, g.generation)),
            "bad": row.bad.map(|d| d.to_string()),
        })
    });
    let results = [
        ("about this node", &stored.ear),
        ("about its parent", &stored.parent_ear),
        ("about this node, by its gateway", &stored.delegated_ear),
        ("about its parent, by a gateway", &stored.delegated_parent_ear),
    ];
    let results = results
        .iter()
        .filter(|(_, bytes)| bytes.is_some())
        .map(|(what, _)| *what);
    json!({
        "twin": twin_facts(config, stored),
        "time_floor_s": stored.time_floor,
        "tpm_counter": stored.counter,
        "floor": format!("{}.{}", stored.floor.0, stored.floor.1),
        "reported_up_to": stored.stream.acked.seq,
        "attestation_results_held": results.collect::<Vec<_>>(),
        "trust": trust_facts(&stored.trust),
        "instances": instances.collect::<Vec<_>>(),
    })
}

fn trust_facts(trust: &StoredTrust) -> Value {
    json!({
        "bundles": trust.bundles.keys().collect::<Vec<_>>(),
        "revocations": trust.revocations.is_some(),
        "delegations": trust.delegations.keys().map(ToString::to_string).collect::<Vec<_>>(),
        "documents": trust.documents.keys().map(|k| k.as_str()).collect::<Vec<_>>(),
    })
}

/// What the twin asks for, once its signature held.
fn twin_facts(config: &AgentConfig, stored: &Stored) -> Value {
    let Some(bytes) = &stored.twin else { return Value::Null };
    let flashed = match read_trust(&config.identity.trust_bundle) {
        Ok(flashed) => flashed,
        Err(e) => return json!({"unreadable": e.to_string()}),
    };
    let (trust, faults) = TrustState::restore(flashed, stored.trust.clone());
    match trust.reopen_twin(bytes) {
        Ok(twin) => json!({
            "version": twin.version().to_string(),
            "node": twin.twin().node.to_string(),
            "workloads": twin.twin().workloads.iter().map(workload_facts).collect::<Vec<_>>(),
        }),
        Err(e) => json!({"unreadable": e.to_string(), "trust": faults}),
    }
}

fn workload_facts(w: &Workload) -> Value {
    json!({
        "id": w.id.to_string(), "runtime": w.runtime, "artifact": w.artifact.digest.to_string(),
        "memory_bytes": w.memory_bytes, "cpu_millis": w.cpu_millis, "priority": w.priority,
        "trust": format!("{:?}", w.trust), "secrets": w.secrets.iter().map(|s| s.name.to_string()).collect::<Vec<_>>(),
    })
}

/// What the agent reported last on each subject, the oldest first.
fn history(entries: &[Entry]) -> String {
    let mut text = String::new();
    for entry in entries {
        let said = match &entry.body {
            Body::Alarm(alarm) => format!("alarm: {}", alarm.detail),
            Body::Workload(w) => format!("{:?} (attempt {}): {}", w.state, w.attempt, w.reason),
            Body::Refused { code, detail, .. } => format!("twin refused as {code}: {detail}"),
            Body::Twin { epoch, generation, .. } => format!("twin {epoch}.{generation}"),
            Body::Gone { .. } => "gone".to_owned(),
            Body::Over => "over".to_owned(),
            _ => "said".to_owned(),
        };
        let _ = writeln!(text, "{} {} {}: {said}", entry.seq, entry.at_ms, entry.key);
    }
    text
}

/// A log of launches, byte for byte and in words.
fn add_launches(bundle: &mut Bundle, path: &Path) -> Result<(), SupportError> {
    let Some(name) = path.file_name().and_then(|n| n.to_str()) else {
        return Ok(());
    };
    bundle.add_file(name, path)?;
    let bytes = fs::read(path).unwrap_or_default();
    let mut text = String::new();
    for event in event_log::events(&bytes) {
        let _ = writeln!(text, "{event:?}");
    }
    bundle.add(&format!("{name}.txt"), &path.display().to_string(), text.as_bytes())
}

fn add_logs(bundle: &mut Bundle, run_dir: &Path) -> Result<(), SupportError> {
    let found = match instance::list(run_dir) {
        Ok(found) => found,
        Err(e) => {
            bundle.leave_out("logs of workloads", e.to_string());
            return Ok(());
        }
    };
    // The newest attempts last.
    let skipped = found.len().saturating_sub(LOGS_MAX);
    if skipped > 0 {
        bundle.leave_out(format!("logs of {skipped} instances"), format!("{LOGS_MAX} are taken"));
    }
    for (id, folder) in found.into_iter().skip(skipped) {
        let from = folder.display().to_string();
        let lines = match cnova_ral::tail_log(&folder, LOG_BYTES_MAX) {
            Ok(lines) => lines,
            Err(e) => {
                bundle.leave_out(format!("the log in {from}"), e.to_string());
                continue;
            }
        };
        let mut text = String::new();
        for line in lines {
            let _ = writeln!(text, "{} {:?} {}", line.at, line.stream, line.text);
        }
        let name = format!(
            "logs/{}.{}.{}.txt",
            id.workload.application, id.workload.name, id.attempt
        );
        bundle.add(&name, &from, text.as_bytes())?;
    }
    Ok(())
}
