//! What trust costs: an attestation from challenge to result, a start that is proven and measured, memory with a TPM.
//!
//! The TPM is swtpm. A chip takes tens of milliseconds for what it does in less than one; so the TPM's own time is told apart.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use cnova_attestation::event_log::Launch;
use cnova_provenance::{AOT_BUILD_TYPE, AOT_BUILDER, Made, Subject, make, sign, verify};
use cnova_root_of_trust::RootOfTrust;
use cnova_root_of_trust::measurer::{Measurer, Program};
use cnova_root_of_trust::testing::{Maker, Swtpm};
use cnova_root_of_trust::tpm::{EkKind, Tpm};
use cnova_shared::bundle::TrustedBuilder;
use cnova_shared::ids::Digest;
use cnova_shared::keys::{Signer, SoftKey};
use cnova_shared::wire::v1::AttestationPolicy;
use serde_json::json;

use super::hub::Hub;
use super::memory::pss;
use super::table::{Table, spread};
use super::{SETTLE, disk, wrong};
use crate::demo::fleet::Fleet;
use crate::demo::{self, DemoError};

/// Launches, checks and attestations of each kind.
const ROUNDS: usize = 200;
/// Agents with a key in a file and in a TPM.
const NODES: [&str; 2] = ["plc-soft", "plc-tpm"];
/// What an agent says when an attestation result has come.
const RESULT: &str = "the hub says of this node";
const PATIENCE: Duration = Duration::from_secs(60);
/// The usual launch register.
const LAUNCH_PCR: u8 = 14;

/// What a measurement of trust is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it keeps everything; made anew.
    pub dir: PathBuf,
    /// The folder with the programs.
    pub bin: PathBuf,
    /// The repository's `examples` folder.
    pub examples: PathBuf,
}

/// Measures everything and prints a table.
///
/// # Errors
/// When swtpm is missing or the fleet cannot be set up.
#[allow(clippy::print_stdout)]
pub fn run(options: &Options) -> Result<(), DemoError> {
    let maker = Maker::new();
    let start = || Swtpm::start_by(&maker, Some(EkKind::P384)).ok_or_else(|| wrong("swtpm is not installed"));
    let (chip, bench) = (start()?, start()?);
    let mut fleet = Fleet::new(demo::Options {
        dir: options.dir.clone(),
        bin: options.bin.clone(),
        examples: options.examples.clone(),
        keep: false,
    })?;
    let mut table = Table::default();
    fleet.set_up()?;
    table.part("disk", |t| disk::measure(fleet.dir(), t));
    table.part("measured launch", |t| launches(&bench, fleet.dir(), t));
    table.part("provenance", provenance);
    table.part("attestation", |t| attestations(&mut fleet, &maker, &chip, t));
    fleet.stop_all();
    println!("{}", table.markdown());
    Ok(())
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

/// Log, sync, extend; and the extend alone.
fn launches(chip: &Swtpm, dir: &Path, table: &mut Table) -> Result<(), DemoError> {
    let tpm: Arc<dyn RootOfTrust> = Arc::new(Tpm::open(chip.config()).map_err(wrong)?);
    let mut extends = Vec::with_capacity(ROUNDS);
    for n in 0..ROUNDS {
        let begin = Instant::now();
        tpm.extend(LAUNCH_PCR + 1, &Digest::of(&n.to_be_bytes()))
            .map_err(wrong)?;
        extends.push(ms(begin));
    }
    let program = Program::this("0").map_err(wrong)?;
    let (measurer, problem) = Measurer::open(&dir.join("launch.log"), tpm, LAUNCH_PCR, program).map_err(wrong)?;
    if let Some(problem) = problem {
        return Err(wrong(problem));
    }
    let (mut first, mut again) = (Vec::with_capacity(ROUNDS), Vec::with_capacity(ROUNDS));
    for n in 0..ROUNDS {
        let launch = Launch {
            workload: format!("app/workload-{n}"),
            artifact: Digest::of(&n.to_be_bytes()),
            spec: Digest::of(b"spec"),
            runtime: Digest::of(b"runtime"),
        };
        for all in [&mut first, &mut again] {
            let begin = Instant::now();
            measurer.measure(launch.clone()).map_err(wrong)?;
            all.push(ms(begin));
        }
    }
    table.add(
        "measured launch: log, fdatasync, extend",
        spread(first, 3),
        &format!("{ROUNDS} launches one after the other; swtpm, reached by TCP"),
    );
    table.add(
        "of it the TPM's extend",
        spread(extends, 3),
        "measured alone, of another register",
    );
    table.add(
        "the same launch again",
        spread(again, 3),
        "logged since boot: nothing is done",
    );
    Ok(())
}

/// A compiled artifact: its compiler's statement, and its source's.
fn provenance(table: &mut Table) -> Result<(), DemoError> {
    let (key, hub) = (
        SoftKey::ed25519_from_seed(&[7; 32]),
        SoftKey::ed25519_from_seed(&[8; 32]),
    );
    let trusted = |key: &SoftKey, builder: &str| TrustedBuilder {
        key: key.public_key().clone(),
        builder: builder.to_owned(),
        level: 2,
        not_after: u64::MAX,
    };
    let ci = "https://ci.example/line-2";
    let builders = [trusted(&key, ci), trusted(&hub, AOT_BUILDER)];
    let statement = |builder: &str, kind: &str, key: &SoftKey| {
        let subjects = [Subject {
            name: "detector.wasm".into(),
            digest: Digest::of(b"detector"),
        }];
        let made = Made {
            subjects: &subjects,
            build_type: kind,
            parameters: json!({"command": ["make"]}),
            dependencies: &[],
            builder,
            builder_version: BTreeMap::new(),
            started_s: 0,
            finished_s: 5,
        };
        sign(&make(&made), &[key]).map_err(wrong)
    };
    let envelopes = [
        (statement(ci, "urn:x:build", &key)?, ci),
        (statement(AOT_BUILDER, AOT_BUILD_TYPE, &hub)?, AOT_BUILDER),
    ];
    let mut all = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        for (envelope, builder) in &envelopes {
            let policy = AttestationPolicy {
                required: true,
                min_level: 2,
                builders: vec![(*builder).to_owned()],
                files: false,
            };
            verify(envelope, &[&policy], &builders, Some(0), &Digest::of(b"detector")).map_err(wrong)?;
        }
        all.push(ms(begin));
    }
    table.add(
        "provenance of a compiled workload",
        spread(all, 3),
        "two envelopes: signature, statement, builder, level, subject",
    );
    Ok(())
}

/// Memory of two idle agents, then challenges one after the other.
fn attestations(fleet: &mut Fleet, maker: &Maker, chip: &Swtpm, table: &mut Table) -> Result<(), DemoError> {
    configure(fleet, maker, chip)?;
    fleet.start("hub-1")?;
    let hub = Hub::new(fleet);
    hub.wait_nodes(0)?;
    for (n, node) in NODES.into_iter().enumerate() {
        if n > 0 {
            enrol(fleet, node)?;
        }
        fleet.start(node)?;
        hub.wait_nodes(n + 1)?;
        sleep(SETTLE);
        let how = "connected, 10 s after its start; the only agent process";
        table.add(&format!("agent PSS, idle, {node}"), pss(fleet.pid(node)), how);
        if n == 0 {
            fleet.kill(node);
        }
    }
    let node = NODES[1];
    let log = fleet.dir().join("logs").join(format!("{node}.log"));
    let results = || {
        fs::read_to_string(&log)
            .map(|text| text.matches(RESULT).count())
            .unwrap_or(0)
    };
    let mut all = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let before = results();
        let begin = Instant::now();
        hub.attest(node)?;
        while results() == before {
            if begin.elapsed() > PATIENCE {
                return Err(wrong(format!("no result after {} attestations", all.len())));
            }
            sleep(Duration::from_micros(200));
        }
        all.push(ms(begin));
    }
    table.add(
        "attestation: request at the hub -> result at the node",
        spread(all, 2),
        &format!("{ROUNDS} in a row: HTTP, challenge, quote of 11 registers by swtpm, appraisal, result; hub directly over the agent"),
    );
    Ok(())
}

/// A hub with a door, and the two agents.
fn configure(fleet: &Fleet, maker: &Maker, chip: &Swtpm) -> Result<(), DemoError> {
    let dir = fleet.dir();
    let at = |name: &str| dir.join(name).display().to_string();
    let put = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap_or(dir)).map_err(wrong)?;
        fs::write(path, bytes).map_err(wrong)
    };
    fleet.cnova(&["trust", "issuer", &at("trust")])?;
    put("makers/swtpm.der", maker.certificate())?;
    let door = fleet.port("area-gw");
    let hub = fs::read_to_string(dir.join("hub-1.toml")).map_err(wrong)?;
    let enrolment = format!(
        "[enrolment]\nlisten = \"127.0.0.1:{door}\"\nissuer_certificate = \"{0}/hub-issuer.pem\"\n\
         issuer_key = \"{0}/hub-issuer.key\"\ntpm_roots = \"{1}\"\n",
        at("trust"),
        at("makers")
    );
    put("hub-1.toml", (hub + &enrolment).as_bytes())?;
    let [soft, tpm] = NODES;
    fleet.cnova(&["trust", "issue", soft, "--site", "plant-9/soft", "--dir", &at("trust")])?;
    let shape = |node: &str| {
        format!(
            "node = \"{node}\"\nstate_dir = \"{}\"\nruntime_dir = \"{}\"\n[parent]\nnode = \"hub-1\"\naddress = \
             \"127.0.0.1:{}\"\n[identity]\n",
            at(&format!("state/{node}")),
            fleet.options().bin.display(),
            fleet.port("hub-1")
        )
    };
    let id = fleet.identity(soft).display().to_string();
    let text = format!(
        "{}certificate = \"{id}/node.pem\"\nkey = \"{id}/node.key\"\ntrust_bundle = \"{id}/trust-bundle.cose\"\n",
        shape(soft)
    );
    put(&format!("{soft}.toml"), text.as_bytes())?;
    let text = format!(
        "{}certificate = \"{}\"\ntrust_bundle = \"{}\"\nroot = \"tpm\"\ntcti = \"{}\"\n[enrolment]\nendpoints = \
         [\"127.0.0.1:{door}\"]\ntoken_file = \"{}\"\n",
        shape(tpm),
        at("tpm/node.pem"),
        at("trust/trust-bundle.cose"),
        chip.tcti(),
        at("tpm/token")
    );
    put(&format!("{tpm}.toml"), text.as_bytes())
}

/// Lets a node in once.
fn enrol(fleet: &Fleet, node: &str) -> Result<(), DemoError> {
    let token = fleet.cnova(&["enroll", "token", "--site", "plant-9/tpm", "--name", node])?;
    let folder = fleet.dir().join("tpm");
    fs::create_dir_all(&folder).map_err(wrong)?;
    fs::write(folder.join("token"), token.trim()).map_err(wrong)
}
