//! `cnova attest` and `cnova reference`: what nodes have proven, and what they shall prove.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use cnova_shared::system_bundle;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::age;
use crate::args::{Attest, Reference, ReferenceAdd};
use crate::client::Hub;
use crate::failure::read_and_print_error;
use crate::output::{Screen, Table};
use crate::routes;

/// Longest file of reference values that is read, bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

read_and_print_error!(ProofError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not a file of reference values: {reason}; it is JSON such as {{\"pcrs\": {{\"7\": [\"sha256:...\"]}}}}", path.display())]
    NotReferences { path: PathBuf, reason: String },
    #[error("{}: {reason}", path.display())]
    NotBundle { path: PathBuf, reason: String },
    #[error("{0:?} is not a label: write --label key=value")]
    Label(String),
    #[error("whom is it for? Say --node, --site, --label or --all")]
    ForNobody,
});

/// What is known of a node's attestation.
#[derive(Debug, Deserialize, Serialize)]
struct Attestation {
    node: String,
    tier: String,
    standing: String,
    why: String,
    policy: String,
    judged_s: u64,
    expires_s: u64,
    boot_measured: bool,
    findings: Vec<String>,
    pcrs: BTreeMap<u8, String>,
    agents: Vec<String>,
    launched: Vec<Launch>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by_gateway: Option<Delegated>,
}

/// What a gateway found in the hub's place.
#[derive(Debug, Deserialize, Serialize)]
struct Delegated {
    gateway: String,
    status: String,
    judged_s: u64,
    expires_s: u64,
    told_ms: u64,
    policy: String,
    findings: Vec<String>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Launch {
    seq: u64,
    workload: String,
    artifact: String,
    spec: String,
    runtime: String,
    proven: bool,
}

#[derive(Debug, Deserialize, Serialize)]
struct References {
    version: u64,
    references: Vec<Set>,
    #[serde(default)]
    awaited: Vec<String>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Set {
    name: String,
    all: bool,
    nodes: Vec<String>,
    site: Option<String>,
    labels: BTreeMap<String, String>,
    pcrs: BTreeMap<u8, Vec<String>>,
    #[serde(flatten)]
    more: BTreeMap<String, Value>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Done {
    done: String,
}

/// Runs `cnova attest`.
pub(crate) fn run(what: &Attest, hub: &Hub, screen: &mut Screen<'_>) -> Result<(), ProofError> {
    match what {
        Attest::Show { node } => show(&hub.get(&routes::attestation(node))?, screen)?,
        Attest::Now { node } => done(&hub.post(&routes::attestation(node), &json!({}))?, screen)?,
        Attest::Release { node } => done(&hub.post(&routes::release(node), &json!({}))?, screen)?,
    }
    Ok(())
}

fn done(answer: &Done, screen: &mut Screen<'_>) -> io::Result<()> {
    screen.document(&json!(answer), |s| s.line(&answer.done))
}

fn show(a: &Attestation, screen: &mut Screen<'_>) -> io::Result<()> {
    let now_s = screen.now_ms() / 1000;
    screen.document(&json!(a), |s| {
        s.line(&format!("Node:       {}", a.node))?;
        let key = if a.tier == "tpm" { "in a TPM" } else { "in a file" };
        s.line(&format!("Key:        {key}"))?;
        let why = if a.why.is_empty() {
            String::new()
        } else {
            format!(" ({})", a.why)
        };
        s.line(&format!("Standing:   {}{why}", a.standing))?;
        if let Some(d) = &a.by_gateway {
            let ago = age::age(now_s * 1000, d.judged_s * 1000);
            let policy = or_dash(&d.policy);
            s.line(&format!(
                "By gateway: {}, {ago} ago, while the hub was away: {}, by {policy}",
                d.gateway, d.status
            ))?;
            for finding in &d.findings {
                s.line(&format!("  found:    {finding}"))?;
            }
        }
        if a.judged_s == 0 {
            return Ok(());
        }
        let ago = age::age(now_s * 1000, a.judged_s * 1000);
        let left = a.expires_s.saturating_sub(now_s) / 60;
        s.line(&format!(
            "Judged:     {ago} ago, good for {left} more minutes, by {}",
            or_dash(&a.policy)
        ))?;
        let boot = if a.boot_measured {
            "measured by the firmware"
        } else {
            "not measured: what follows is only as true as the agent that wrote it"
        };
        s.line(&format!("Boot:       {boot}"))?;
        for finding in &a.findings {
            s.line(&format!("Found:      {finding}"))?;
        }
        s.line("Registers:")?;
        for (pcr, value) in &a.pcrs {
            s.line(&format!("  PCR {pcr:<2}    {value}"))?;
        }
        for agent in &a.agents {
            s.line(&format!("Agent:      {agent}"))?;
        }
        if a.launched.is_empty() {
            return s.line("Launched:   nothing since the machine started");
        }
        s.line("Launched since the machine started, in this order:")?;
        let mut table = Table::new(["#", "WORKLOAD", "ARTIFACT", "SPECIFICATION", "RUNTIME", "PROVEN"]);
        for l in &a.launched {
            let proven = if l.proven { "yes" } else { "not yet" };
            let cells = [&l.artifact, &l.spec, &l.runtime].map(|d| short(d));
            let [artifact, spec, runtime] = cells;
            table.row([
                l.seq.to_string(),
                l.workload.clone(),
                artifact,
                spec,
                runtime,
                proven.to_owned(),
            ]);
        }
        s.indented_table(&table)
    })
}

fn short(digest: &str) -> String {
    digest.chars().take("sha256:".len() + 12).collect()
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "no reference values" } else { text }
}

/// Runs `cnova reference`.
pub(crate) fn references(what: &Reference, hub: &Hub, screen: &mut Screen<'_>) -> Result<(), ProofError> {
    match what {
        Reference::Add(args) => {
            let body = new_set(args)?;
            done(&hub.post(&routes::reference(&args.name), &body)?, screen)?;
        }
        Reference::List => list(&hub.get(routes::REFERENCES)?, screen)?,
        Reference::Remove { name } => {
            hub.delete(&routes::reference(name))?;
            let text = format!("reference values {name} are gone");
            screen.document(&json!({ "removed": name }), |s| s.line(&text))?;
        }
    }
    Ok(())
}

fn new_set(args: &ReferenceAdd) -> Result<Value, ProofError> {
    let mut labels = BTreeMap::new();
    for label in &args.label {
        let (key, value) = label.split_once('=').ok_or_else(|| ProofError::Label(label.clone()))?;
        labels.insert(key.to_owned(), value.to_owned());
    }
    let is_selected = args.all || !args.node.is_empty() || args.site.is_some() || !labels.is_empty();
    let mut set = match &args.from_image {
        Some(path) => read_set(path)?,
        None => json!({ "pcrs": {} }),
    };
    set["name"] = json!(args.name);
    if is_selected {
        set["all"] = json!(args.all);
        set["nodes"] = json!(args.node);
        set["site"] = json!(args.site);
        set["labels"] = json!(labels);
    }
    let image = args.from_bundle.as_deref().map(read_bundle).transpose()?;
    let mut body = match &args.from_node {
        // Without a word about whom it is for it is for that node.
        Some(node) if !is_selected => json!({ "from_node": node }),
        Some(node) => json!({ "from_node": node, "set": set }),
        None if !is_selected && !names_somebody(&set) => return Err(ProofError::ForNobody),
        None => json!({ "set": set }),
    };
    if let Some(image) = image {
        body["image"] = image;
    }
    Ok(body)
}

/// What a bundle says that only it decides of the registers.
fn read_bundle(path: &Path) -> Result<Value, ProofError> {
    let fail = |source| ProofError::Read {
        path: path.to_owned(),
        source,
    };
    let mut begin = Vec::new();
    let file = fs::File::open(path).map_err(fail)?;
    let size = file.metadata().map_err(fail)?.len();
    let most = (system_bundle::PREFIX_BYTES + cnova_shared::limits::SYSTEM_HEADER_BYTES) as u64;
    file.take(most).read_to_end(&mut begin).map_err(fail)?;
    let header = system_bundle::Header::read(&begin, size).map_err(|e| ProofError::NotBundle {
        path: path.to_owned(),
        reason: e.to_string(),
    })?;
    Ok(json!({ "measured": header.measured, "loads": header.loads }))
}

fn names_somebody(set: &Value) -> bool {
    let is_said = |v: &Value| !matches!(v, Value::Null | Value::Bool(false));
    ["all", "nodes", "site", "labels"].iter().any(|k| is_said(&set[*k]))
}

fn read_set(path: &Path) -> Result<Value, ProofError> {
    let fail = |source| ProofError::Read {
        path: path.to_owned(),
        source,
    };
    let bad = |reason: String| ProofError::NotReferences {
        path: path.to_owned(),
        reason,
    };
    let len = fs::metadata(path).map_err(fail)?.len();
    if len > FILE_BYTES_MAX {
        return Err(bad(format!("it has {len} bytes, at most {FILE_BYTES_MAX} are read")));
    }
    let text = fs::read_to_string(path).map_err(fail)?;
    let set: Value = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
    if !set["pcrs"].is_object() {
        return Err(bad("it has no \"pcrs\"".into()));
    }
    Ok(set)
}

fn list(all: &References, screen: &mut Screen<'_>) -> io::Result<()> {
    screen.document(&json!(all), |s| {
        if all.references.is_empty() {
            return s.line("No reference values: every node with a TPM is shown with a warning.");
        }
        let mut table = Table::new(["NAME", "FOR", "REGISTERS"]);
        for set in &all.references {
            let pcrs: Vec<String> = set.pcrs.keys().map(ToString::to_string).collect();
            table.row([set.name.clone(), whom(set), pcrs.join(" ")]);
        }
        s.table(&table)?;
        if all.awaited.is_empty() {
            return Ok(());
        }
        s.line(&format!(
            "Not yet at these gateways, which appraise while the hub is away: {}",
            all.awaited.join(", ")
        ))
    })
}

fn whom(set: &Set) -> String {
    if set.all {
        return "every node".to_owned();
    }
    let site = set.site.iter().map(|s| format!("site {s}"));
    let labels = set.labels.iter().map(|(k, v)| format!("{k}={v}"));
    let all: Vec<String> = set.nodes.iter().cloned().chain(site).chain(labels).collect();
    all.join(", ")
}
