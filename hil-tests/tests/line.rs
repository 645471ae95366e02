//! The line as it is installed: real processes that are driven through `cnova`, and what may happen to them.

#![allow(clippy::unwrap_used, clippy::too_many_lines)]

mod support;

use std::fs;

use support::{AGENT, APP, GATEWAY, HUB, Line, Said, Shape};

#[test]
fn the_line_runs_over_mosquitto() {
    if !Line::has_mosquitto() {
        return;
    }
    let mut line = Line::new(Shape::Mosquitto);
    line.start_all();
    line.apply(1);
    let first = line.pid();
    line.apply(2);
    let second = line.pid();
    assert_ne!(first, second);

    // A version that is applied while the broker between gateway and agent is away.
    line.kill(&Line::mosquitto_of(GATEWAY));
    let third = line.version(3);
    line.cnova(&["apply", &third]);
    assert_eq!(line.workload_pids(), [second], "the workload needs no broker");
    line.start_mosquitto(GATEWAY);
    line.wait_for_version(3);

    // And one while that between hub and gateway is.
    line.kill(&Line::mosquitto_of(HUB));
    let fourth = line.version(4);
    line.cnova(&["apply", &fourth]);
    line.start_mosquitto(HUB);
    line.wait_for_version(4);
    line.delete();
}

#[test]
fn an_agent_directly_under_the_hub() {
    let mut line = Line::new(Shape::NoGateway);
    line.start_all();
    line.apply(1);
    let first = line.pid();
    line.apply(2);
    let second = line.pid();
    assert_ne!(first, second);
    line.kill(HUB);
    line.start(HUB);
    line.wait("the hub knows everything again", |l| l.has_converged(2));
    assert_eq!(line.pid(), second);
    line.delete();
}

#[test]
fn a_twin_survives_everything_above_it() {
    let mut line = Line::new(Shape::Embedded);
    line.start_all();
    line.apply(1);
    let pid = line.pid();

    // Nothing above the agent, and a new agent.
    line.kill(HUB);
    line.kill(GATEWAY);
    line.kill(AGENT);
    assert_eq!(line.workload_pids(), [pid], "the workload needs no agent");
    line.start(AGENT);
    line.wait("the workload is adopted", |l| l.log(AGENT).contains("adopted"));
    assert_eq!(line.workload_pids(), [pid]);
    line.start(GATEWAY);
    line.start(HUB);
    line.wait("the hub knows of the adoption", |l| {
        l.has_converged(1) && l.workload()["adopted"] == true
    });
    assert_eq!(line.pid(), pid);

    // The agent's ledger is garbage.
    line.stop(AGENT);
    ruin(&line, AGENT, "agent.db");
    line.start(AGENT);
    line.wait("the alarm about the ledger", |l| has_alarm(l, AGENT, "store-set-aside"));
    line.wait("the agent has its twin again", |l| l.has_converged(1));
    assert_eq!(line.pid(), pid, "the workload was not adopted");
    assert!(is_kept(&line, AGENT, "agent.db"), "the damaged ledger is gone");

    // The gateway's store is garbage.
    line.stop(GATEWAY);
    ruin(&line, GATEWAY, "gateway.db");
    line.start(GATEWAY);
    line.wait("the alarm about the gateway's store", |l| {
        l.node(GATEWAY)["alarms"].as_array().is_some_and(|a| !a.is_empty())
    });
    line.wait("the gateway knows everything again", |l| l.has_converged(1));
    assert_eq!(line.pid(), pid);
    assert!(is_kept(&line, GATEWAY, "gateway.db"), "the damaged store is gone");

    // All of it still works.
    line.apply(2);
    line.delete();
}

static GARBAGE: [u8; 65_536] = [0xa5; 65_536];

fn ruin(line: &Line, node: &str, file: &str) {
    let state = line.path("state").join(node);
    assert!(state.join(file).is_file(), "{node} has no {file}");
    fs::write(state.join(file), GARBAGE).unwrap();
    let wal = state.join(format!("{file}-wal"));
    if wal.exists() {
        fs::write(wal, GARBAGE).unwrap();
    }
}

/// Whether the garbage is beside the file.
fn is_kept(line: &Line, node: &str, file: &str) -> bool {
    let mut all = fs::read_dir(line.path("state").join(node))
        .unwrap()
        .map(|e| e.unwrap().path());
    all.any(|path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with(file) && name != file && path.is_file() && fs::read(path).unwrap() == GARBAGE
    })
}

fn has_alarm(line: &Line, node: &str, code: &str) -> bool {
    let node = line.node(node);
    node["alarms"]
        .as_array()
        .is_some_and(|all| all.iter().any(|a| a["c"] == code))
}

#[test]
fn bad_manifests_through_the_cli() {
    let mut line = Line::new(Shape::Embedded);
    line.start_all();
    line.version(1);
    let good = fs::read_to_string(line.path("v1/watch.yaml")).unwrap();
    let two = good.replace(
        "workloads:\n",
        "workloads:\n  - {name: sleeper, runtime: wasm, artifact: {file: guest.wasm}}\n",
    );
    let big = format!("{good}# {}\n", "x".repeat(10 << 20));
    line.write("v1/text.wasm", "this is not Wasm");
    let cases: [(&str, String, &[&str]); 7] = [
        ("not YAML", good.replace("metadata:", "metadata: [}"), &["bad.yaml:3"]),
        (
            "wrong types",
            good.replace("name: watch", "name: [1]").replace("16MiB", "[]"),
            &[
                "bad.yaml:4:",
                "/metadata/name",
                "bad.yaml:9:",
                "/workloads/0/resources/memory",
            ],
        ),
        (
            "unknown field",
            good.replace("memory:", "memry:"),
            &[
                "bad.yaml:9:",
                "/workloads/0/resources/memry",
                "unknown field",
                "did you mean \"memory\"?",
            ],
        ),
        (
            "duplicate names",
            two,
            &["bad.yaml:7:", "/workloads/1/name", "sleeper", "already used in line 6"],
        ),
        ("10 MB", big, &["bad.yaml", "a manifest has at most"]),
        (
            "no such file",
            good.replace("guest.wasm", "gone.wasm"),
            &["bad.yaml", "/workloads/0/artifact", "gone.wasm"],
        ),
        (
            "not Wasm",
            good.replace("guest.wasm", "text.wasm"),
            &["bad.yaml", "text.wasm", "not a WebAssembly binary"],
        ),
    ];
    let mut wrong = Vec::new();
    for (what, manifest, wanted) in cases {
        let path = line.write("v1/bad.yaml", manifest).display().to_string();
        let Said { code, out, err } = line.try_cnova(&["apply", &path]);
        let missing: Vec<_> = wanted.iter().filter(|w| !format!("{out}{err}").contains(**w)).collect();
        eprintln!("{what}: exit code {code:?}\n{out}{err}");
        if code != Some(1) || !missing.is_empty() {
            wrong.push(format!("{what}: exit code {code:?}, without {missing:?}:\n{out}{err}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(
        line.cnova(&["get", "applications", "-o", "json"]).trim(),
        "[]",
        "something was applied"
    );
    line.apply(1);

    line.kill(HUB);
    let good = line.path("v1/watch.yaml").display().to_string();
    for args in [
        &["apply", &good][..],
        &["get", "nodes"],
        &["delete", APP, "--yes"],
        &["logs", "watch/sleeper"],
    ] {
        let Said { code, err, .. } = line.try_cnova(args);
        assert_eq!(code, Some(3), "cnova {}: {err}", args.join(" "));
        assert!(
            err.contains("127.0.0.1"),
            "cnova {} does not say where: {err}",
            args.join(" ")
        );
    }
}

#[test]
fn two_agents_with_one_identity() {
    const TWIN: &str = "plc-1-again";
    let mut line = Line::new(Shape::Embedded);
    line.start_all();
    line.apply(1);
    let pid = line.pid();

    // In the same state folder it does not even start.
    line.write(&format!("{TWIN}.toml"), line.configuration(AGENT, AGENT));
    line.start(TWIN);
    line.wait("the second agent is refused", |l| {
        l.log(TWIN).contains("another agent uses")
    });
    line.stop(TWIN);
    assert_eq!(line.workload_pids(), [pid]);

    // From a copy of the disk, as it were.
    line.write(&format!("{TWIN}.toml"), line.configuration(AGENT, TWIN));
    line.start(TWIN);
    let says = |l: &Line, text: &str| [AGENT, TWIN, GATEWAY].iter().any(|name| l.log(name).contains(text));
    line.wait("an error about the identity is in a log", |l| {
        says(l, "another connection with this identity")
    });
    // After a few rounds one of them, either, is refused for a while.
    line.wait("one of them is refused", |l| {
        says(l, "two devices use one certificate") && says(l, "two agents use identity")
    });
    line.wait("the hub shows the gateway's alarm", |l| {
        l.cnova(&["get", "nodes", "-o", "json"]).contains("identity-conflict")
    });
    line.wait("the other one works", |l| l.has_converged(1));
    assert!(
        line.workload_pids().contains(&pid),
        "the first one's workload was stopped"
    );
    assert!(line.runs(AGENT) && line.runs(GATEWAY) && line.runs(HUB));
    line.cnova(&["get", "nodes"]);

    // Without the second one, and with a gateway that holds nothing against the first, all is as it was.
    line.stop(TWIN);
    line.kill(GATEWAY);
    line.start(GATEWAY);
    line.kill(AGENT);
    line.start(AGENT);
    line.wait("the first agent adopts its workload", |l| {
        let w = l.workload();
        l.has_converged(1) && w["adopted"] == true && w["pid"] == pid
    });
    assert!(line.workload_pids().contains(&pid));
}
