//! Secrets through the whole line, with the real programs: set at the hub, read by workloads, rotated, opened again
//! without anybody above; and then looked for everywhere, also in support bundles.

#![allow(clippy::unwrap_used, clippy::too_many_lines)]

#[allow(dead_code, reason = "each test of a line uses a part of it")]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use cnova_oci::testing::{ImageBuilder, LayerBuilder};
use cnova_shared::ids::Digest;
use serde_json::{Value, json};
use support::{AGENT, GATEWAY, HUB, Line, Shape};

/// In every value, so that it can be looked for.
const MARK: &str = "PLANTED-7c1e";
/// An enrolment token, and a variable that is no secret to us and may be one to somebody.
const TOKEN: &str = "PLANTEDTOKEN-19d3";
const VARIABLE: &str = "PLANTEDVARIABLE-55aa";
const GUEST: &str = include_str!("../../edge-agent/runtimes/wasm/tests/guests/wat/secrets.wat");

/// The values of one round.
struct Round {
    variable: String,
    file: String,
}

impl Round {
    fn new(n: u32) -> Self {
        Self {
            variable: format!("{MARK}-variable-{n}"),
            file: format!("{MARK}-file-{n}\n"),
        }
    }

    fn set(&self, line: &Line, vault: &Path) {
        for (name, value) in [("db-password", &self.variable), ("tls-key", &self.file)] {
            let file = vault.join(name);
            fs::write(&file, value).unwrap();
            line.cnova(&[
                "secret",
                "set",
                name,
                "--from-file",
                &file.display().to_string(),
                "--allow",
                "vault",
            ]);
        }
    }

    /// What the Wasm workload prints when it has read them.
    fn of_wasm(&self) -> String {
        let env = fnv(format!("DB={}\0", self.variable).as_bytes());
        format!("env {env} file {}", fnv(self.file.as_bytes()))
    }

    /// What the container prints.
    fn of_container(&self) -> String {
        let hex = |text: &str| Digest::of(text.as_bytes()).hex();
        format!("env {} file {}", hex(&self.variable), hex(&self.file))
    }
}

fn fnv(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    format!("{hash:08x}")
}

/// Whether containers can be tried here.
fn has_containers() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    let there = is_root && Path::new("/bin/busybox").exists();
    if !there {
        eprintln!("SKIPPED: containers need root and /bin/busybox (apt install busybox-static): only Wasm is tried");
    }
    there
}

fn manifest(line: &Line, containers: bool) -> String {
    line.write("vault/guest.wasm", wat::parse_str(GUEST).unwrap());
    let secrets = "secrets: [{name: db-password, env: DB}, {name: tls-key, path: /run/secrets/key}]";
    let mut text = format!(
        "apiVersion: cnova/v1\nkind: Application\nmetadata: {{name: vault}}\nworkloads:\n  - name: reader\n    \
         runtime: wasm\n    artifact: {{file: guest.wasm}}\n    args: [stay]\n    resources: {{memory: 16MiB}}\n    \
         {secrets}\n"
    );
    if containers {
        let layer = LayerBuilder::new()
            .busybox(&["sh", "sleep", "sha256sum", "cut"])
            .unwrap();
        let script = "e=$(printf %s \"$DB\" | sha256sum | cut -c 1-64); f=$(sha256sum < /run/secrets/key | cut -c 1-64); \
                      echo \"env $e file $f\"; exec sleep 100000";
        let config = json!({"Entrypoint": ["/bin/sh", "-c", script]});
        let image = ImageBuilder::new().layer(layer).config(config);
        image.write_tar(&line.path("vault/image.tar")).unwrap();
        text.push_str(&format!(
            "  - name: box\n    runtime: container\n    artifact: {{file: image.tar}}\n    resources: {{memory: 16MiB}}\n    \
             stopGrace: 100ms\n    env: {{PLAIN: {VARIABLE}}}\n    {secrets}\n"
        ));
    }
    line.write("vault/vault.yaml", text).display().to_string()
}

/// The last line of a workload's log, asked of the node.
fn last_line(line: &Line, workload: &str) -> String {
    let said = line.try_cnova(&["logs", &format!("vault/{workload}"), "--node", AGENT]);
    said.out.lines().last().unwrap_or_default().to_owned()
}

fn wait_for_round(line: &Line, round: &Round, containers: bool) {
    line.wait("the Wasm workload has read its secrets", |l| {
        last_line(l, "reader").ends_with(&round.of_wasm())
    });
    if containers {
        line.wait("the container has read its secrets", |l| {
            last_line(l, "box").ends_with(&round.of_container())
        });
    }
}

/// Files below a folder whose bytes hold a mark.
fn holders(dir: &Path, mark: &[u8], found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => holders(&path, mark, found),
            Ok(kind) if kind.is_file() => {
                let bytes = fs::read(&path).unwrap_or_default();
                if bytes.windows(mark.len()).any(|w| w == mark) {
                    found.push(path.display().to_string());
                }
            }
            _ => {}
        }
    }
}

/// Programs of ours whose environment or command line holds a mark.
fn exposed(line: &Line) -> Vec<String> {
    let place = line.path("").display().to_string();
    let holds = |bytes: &[u8]| bytes.windows(MARK.len()).any(|w| w == MARK.as_bytes());
    let mut found = Vec::new();
    let mut ours = 0;
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let cmdline = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let text = String::from_utf8_lossy(&cmdline).into_owned();
        if text.contains("cnova-") && text.contains(place.trim_end_matches('/')) {
            ours += 1;
            let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
            if holds(&cmdline) || holds(&environ) {
                found.push(text);
            }
        }
    }
    assert!(ours >= 4, "hub, gateway, agent and a runtime are looked at, not {ours}");
    found
}

/// Everything that people and other programs are shown.
fn shown(line: &Line) -> String {
    let raw = line.path("twin.cose").display().to_string();
    line.cnova(&["get", "twin", AGENT, "--raw", &raw]);
    let mut all = String::new();
    for args in [
        &["secret", "list"][..],
        &["secret", "list", "-o", "json"],
        &["get", "twin", AGENT, "-o", "json"],
        &["get", "nodes", "-o", "json"],
        &["get", "workloads", "-o", "json"],
        &["get", "applications", "-o", "json"],
        &["get", "history", AGENT, "-o", "json"],
        &["get", "audit", "-o", "json"],
        &["describe", "application", "vault"],
        &["explain", "workload", "vault/reader", "-o", "json"],
    ] {
        all.push_str(&line.cnova(args));
    }
    all
}

/// Makes a support bundle of a program, and unpacks it to one run of bytes.
fn bundle(line: &Line, node: &str, out: &Path, more: &[&str]) -> Vec<u8> {
    let programs = std::env::current_exe().unwrap();
    let program = match node {
        HUB => "cnova-hub",
        GATEWAY => "cnova-gateway",
        _ => "cnova-agent",
    };
    let made = Command::new(programs.parent().and_then(Path::parent).unwrap().join(program))
        .arg("support-bundle")
        .arg("--config")
        .arg(line.path(&format!("{node}.toml")))
        .arg("--out")
        .arg(out)
        .args(more)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let unpacked = Command::new("gzip").arg("-dc").arg(out).output().unwrap();
    assert!(unpacked.status.success());
    unpacked.stdout
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|w| w == part)
}

/// Every private key and sealed key of the plant, in pieces that nothing else has.
fn key_pieces(line: &Line) -> Vec<Vec<u8>> {
    let trust = line.path("trust");
    let mut files = vec![
        trust.join("hub-signing.key"),
        line.path("state").join(AGENT).join("ledger.key"),
        line.path("tokens.toml"),
    ];
    files.extend([HUB, GATEWAY, AGENT].map(|node| trust.join("nodes").join(node).join("node.key")));
    let mut pieces = Vec::new();
    for file in files {
        let bytes = fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let long = |word: &&str| word.len() >= 40;
        let words: Vec<Vec<u8>> = text
            .split(|c: char| !(c.is_ascii_alphanumeric() || "+/=".contains(c)))
            .filter(long)
            .map(|word| word.as_bytes().to_vec())
            .collect();
        let raw = if words.is_empty() {
            vec![bytes[bytes.len() - 32..].to_vec()]
        } else {
            words
        };
        pieces.extend(raw);
    }
    assert!(pieces.len() >= 6);
    pieces
}

/// All files below a folder, with what is in them and when that was changed.
fn contents(dir: &Path, found: &mut BTreeMap<String, (Vec<u8>, SystemTime)>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => contents(&path, found),
            Ok(kind) if kind.is_file() => {
                let changed = entry.metadata().and_then(|m| m.modified()).unwrap();
                found.insert(
                    path.display().to_string(),
                    (fs::read(&path).unwrap_or_default(), changed),
                );
            }
            _ => {}
        }
    }
}

/// What helps is in the bundles, and nothing of what is secret, whoever made them.
fn check_bundles(line: &mut Line, vault: &Path) {
    let running = bundle(line, AGENT, &vault.join("running.tar.gz"), &["--logs"]);
    let above = [GATEWAY, HUB].map(|node| bundle(line, node, &vault.join(format!("{node}.tar.gz")), &[]));
    // While the agent is down, too, and nothing of its state is touched.
    line.kill(AGENT);
    let state = line.path("state").join(AGENT);
    let read = || {
        let mut all = BTreeMap::new();
        contents(&state, &mut all);
        // Workloads run on and write there.
        all.retain(|path, _| !path.contains("/run/"));
        all
    };
    let before = read();
    let down = bundle(line, AGENT, &vault.join("down.tar.gz"), &[]);
    assert!(read() == before, "the state is as it was");
    line.start(AGENT);
    for part in [
        "MANIFEST.json",
        "\"id\": \"vault/reader\"",
        "env ",
        "db-password",
        "logs/vault.reader.",
    ] {
        assert!(holds(&running, part.as_bytes()), "{part}");
    }
    for part in ["ledger.json", "\"id\": \"vault/reader\"", "no agent answers"] {
        assert!(holds(&down, part.as_bytes()), "{part}");
    }
    assert!(!holds(&down, b"logs/vault.reader."));
    let [gateway, hub] = &above;
    assert!(holds(gateway, b"address = \"127.0.0.1:") && holds(gateway, b" twin\n"));
    assert!(holds(hub, b"hub-signing.key") && holds(hub, b"MemTotal"));
    let mut secrets: Vec<Vec<u8>> = [MARK, TOKEN, VARIABLE].map(|s| s.as_bytes().to_vec()).into();
    secrets.extend(key_pieces(line));
    for all in [&running, &down, gateway, hub] {
        for secret in &secrets {
            assert!(!holds(all, secret), "{}", String::from_utf8_lossy(secret));
        }
    }
}

#[test]
fn secrets_reach_workloads_and_nobody_else() {
    let containers = has_containers();
    // Not in the line's folder: there nothing of it may be found.
    let vault = tempfile::tempdir().unwrap();
    let mut line = Line::new(Shape::Embedded);
    // A token that nobody needs any more, as it lies on many a node.
    let token = line.write("enrolment-token", TOKEN).display().to_string();
    let path = line.path(&format!("{AGENT}.toml"));
    let text = fs::read_to_string(&path).unwrap();
    let enrolment = format!("[enrolment]\nendpoints = [\"127.0.0.1:9\"]\ntoken_file = \"{token}\"\n");
    fs::write(&path, text + &enrolment).unwrap();
    line.start_all();
    let manifest = manifest(&line, containers);
    let refused = line.try_cnova(&["apply", &manifest]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("there is no secret"), "{}", refused.err);

    let first = Round::new(1);
    first.set(&line, vault.path());
    line.cnova(&["apply", &manifest, "--wait=60"]);
    wait_for_round(&line, &first, containers);
    let pids = line.workload_pids();
    assert_eq!(line.cnova(&["secret", "list"]).matches(AGENT).count(), 2);

    // The same values change nothing, other ones start the workloads anew.
    first.set(&line, vault.path());
    let dry = line.cnova(&["apply", &manifest, "--dry-run"]);
    assert!(dry.contains("db-password (version 1)"), "{dry}");
    assert_eq!(line.workload_pids(), pids);
    let second = Round::new(2);
    second.set(&line, vault.path());
    wait_for_round(&line, &second, containers);
    let rotated = line.workload_pids();
    assert!(pids.iter().all(|pid| !rotated.contains(pid)), "{pids:?} {rotated:?}");
    let used = line.try_cnova(&["secret", "remove", "tls-key"]);
    assert!(
        used.code == Some(1) && used.err.contains("is used by vault/"),
        "{}",
        used.err
    );
    let all = shown(&line);
    assert!(all.contains("db-password") && !all.contains(MARK), "{all}");

    // Nobody is above, and a new agent: what runs runs on, and what has crashed is started with its secrets.
    line.kill(HUB);
    line.kill(GATEWAY);
    line.kill(AGENT);
    line.start(AGENT);
    line.wait("the workloads are adopted", |l| {
        l.log(AGENT).matches("adopted").count() > usize::from(containers)
    });
    assert_eq!(line.workload_pids(), rotated);
    for pid in &rotated {
        // With leave to dump core: it must not.
        let _ = Command::new("prlimit")
            .args(["--pid", &pid.to_string(), "--core=unlimited"])
            .status();
        let pid = rustix::process::Pid::from_raw(i32::try_from(*pid).unwrap()).unwrap();
        // A container's second process goes with its first.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::ABORT);
    }
    line.wait("they are started again", |l| {
        let now = l.workload_pids();
        now.len() == rotated.len() && now.iter().all(|pid| !rotated.contains(pid))
    });
    line.wait("they have read their secrets once more", |l| {
        let mut logs = Vec::new();
        holders(&l.path("state").join(AGENT), second.of_wasm().as_bytes(), &mut logs);
        let mut boxes = Vec::new();
        holders(
            &l.path("state").join(AGENT),
            second.of_container().as_bytes(),
            &mut boxes,
        );
        logs.len() >= 2 && (!containers || boxes.len() >= 2)
    });
    line.start(GATEWAY);
    line.start(HUB);
    line.wait("all of it is back", |l| {
        l.nodes().len() == 2 && l.nodes().iter().all(|n: &Value| n["in_sync"] == true)
    });
    assert!(!shown(&line).contains(MARK));

    check_bundles(&mut line, vault.path());

    // Neither value of any round is anywhere: configurations, stores and their logs, twins, specs, workload folders,
    // program logs, core files.
    assert_eq!(exposed(&line), Vec::<String>::new());
    let mut found = Vec::new();
    holders(&line.path(""), MARK.as_bytes(), &mut found);
    assert_eq!(found, Vec::<String>::new());
    // The search itself finds what there is to find.
    holders(vault.path(), MARK.as_bytes(), &mut found);
    assert_eq!(found.len(), 2);
    holders(&line.path(""), TOKEN.as_bytes(), &mut found);
    assert_eq!(found.len(), 3);
}
