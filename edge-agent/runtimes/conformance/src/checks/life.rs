//! Describing itself, starting, answering.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use cnova_ral::{Client, Description, Exit, Phase, State, file, is_alive, is_held, read_exit, read_state, spawn};

use crate::bench::wait_for;
use crate::verdict::ensure;
use crate::{Behaviour, Bench, Fixture, Verdict};

/// A runtime of these tests uses less than this, whatever it counts.
const MEMORY_BYTES_MAX: u64 = 1 << 40;

pub(super) fn every_behaviour_is_declared(fixture: &Fixture) -> Verdict {
    let mut missing = Vec::new();
    let mut left_out = 0;
    for behaviour in Behaviour::ALL {
        match fixture.cases.get(&behaviour) {
            None => missing.push(behaviour.as_str()),
            Some(Err(reason)) => {
                left_out += 1;
                eprintln!("not applicable: {behaviour}: {reason}");
            }
            Some(Ok(_)) => {}
        }
    }
    eprintln!("{left_out} of {} behaviours are not applicable", Behaviour::ALL.len());
    ensure!(
        missing.is_empty(),
        "the fixture says nothing about {}",
        missing.join(", ")
    );
    ensure!(
        matches!(fixture.cases.get(&Behaviour::RunsForever), Some(Ok(_))),
        "every runtime can run something for ever: `runs_forever` must have a case"
    );
    Ok(())
}

fn ask(exe: &Path, arguments: &[&str]) -> Verdict<Output> {
    let mut command = Command::new(exe);
    command.args(arguments).env_clear().stdin(Stdio::null());
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    Ok(command.output()?)
}

pub(super) fn describes_itself(fixture: &Fixture) -> Verdict {
    let output = ask(&fixture.exe, &["describe"])?;
    ensure!(output.status.success(), "`describe` ended with {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        text.ends_with('\n') && text.lines().count() == 1,
        "`describe` must print one line, it printed {text:?}"
    );
    let found: Description = serde_json::from_str(&text)?;
    ensure!(found.ral == cnova_ral::RAL_VERSION, "it speaks RAL {}", found.ral);
    ensure!(
        found.runtime == fixture.runtime,
        "it calls itself `{}`, the fixture says `{}`",
        found.runtime,
        fixture.runtime
    );
    ensure!(!found.version.is_empty(), "`version` is empty");
    Ok(())
}

pub(super) fn wrong_usage_is_explained(fixture: &Fixture) -> Verdict {
    for arguments in [&[][..], &["run"], &["run", "--state"], &["fly"]] {
        let output = ask(&fixture.exe, arguments)?;
        ensure!(!output.status.success(), "{arguments:?} is taken for right usage");
        ensure!(
            !output.stderr.is_empty(),
            "{arguments:?} is refused without a word on standard error"
        );
    }
    Ok(())
}

pub(super) fn starts_and_is_known(fixture: &Fixture) -> Verdict {
    let (mut bench, _) = Bench::of(fixture, Behaviour::RunsForever)?;
    bench.start()?;
    let dir = bench.dir().to_owned();
    // Whatever it says before the state file is there, it does not say that it runs.
    let state = wait_for("state.json", || {
        let early = Client::connect(&dir).and_then(|mut client| client.health());
        let state = read_state(&dir)?;
        if let (Ok(health), None) = (early, &state) {
            ensure!(
                health.phase == Phase::Starting,
                "there is no state.json, yet it answers {health:?}"
            );
        }
        if state.is_some() {
            ensure!(is_held(&dir)?, "there is a state.json, but nobody holds `lock`");
        }
        ensure!(state.is_some() || bench.runs()?, "it ended: {:?}", read_exit(&dir)?);
        Ok(state)
    })?;
    check_state(&bench, &state)?;
    let path = dir.join(file::SOCKET);
    let mode = fs::metadata(&path)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "{} has mode {mode:o}, not 600", file::SOCKET);
    let owner = fs::metadata(&path)?.uid();
    ensure!(
        owner == rustix::process::getuid().as_raw(),
        "{} belongs to {owner}",
        file::SOCKET
    );
    ensure!(read_exit(&dir)?.is_none(), "it runs and has an exit.json");
    bench.ensure_healthy("the start")
}

fn check_state(bench: &Bench, state: &State) -> Verdict {
    ensure!(is_alive(state), "state.json does not name a living process: {state:?}");
    let pid = bench.pid()?;
    ensure!(
        state.pid == pid,
        "state.json names process {}, the one that was started is {pid}: do not daemonize",
        state.pid
    );
    let spec = &bench.spec;
    ensure!(
        state.ral == cnova_ral::RAL_VERSION,
        "state.json: `ral` is {}",
        state.ral
    );
    ensure!(
        state.phase == Phase::Running,
        "state.json: `phase` is {:?}",
        state.phase
    );
    for (field, found, wanted) in [
        ("workload", state.workload.clone(), spec.workload.clone()),
        ("digest", state.digest.clone(), spec.digest.clone()),
        ("epoch", state.epoch.to_string(), spec.epoch.to_string()),
        ("generation", state.generation.to_string(), spec.generation.to_string()),
        ("attempt", state.attempt.to_string(), spec.attempt.to_string()),
    ] {
        ensure!(
            found == wanted,
            "state.json: `{field}` is {found}, the spec says {wanted}"
        );
    }
    Ok(())
}

pub(super) fn health_is_plausible(fixture: &Fixture) -> Verdict {
    let (mut bench, _) = Bench::of(fixture, Behaviour::RunsForever)?;
    bench.start_and_wait()?;
    let mut client = bench.client()?;
    let first = client.health()?;
    std::thread::sleep(Duration::from_millis(20));
    let second = client.health()?;
    let elapsed = millis(bench.started.elapsed());
    ensure!(first.healthy && first.detail.is_none(), "it is not healthy: {first:?}");
    ensure!(
        first.uptime_ms < second.uptime_ms && second.uptime_ms <= elapsed,
        "uptime was {} ms, then {} ms, {elapsed} ms after the start",
        first.uptime_ms,
        second.uptime_ms
    );
    Ok(())
}

pub(super) fn metrics_are_plausible(fixture: &Fixture) -> Verdict {
    let (mut bench, _) = Bench::of(fixture, Behaviour::RunsForever)?;
    bench.start_and_wait()?;
    let mut client = bench.client()?;
    let mut last = client.metrics()?;
    let processors = std::thread::available_parallelism()?.get() as u64;
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(10));
        let next = client.metrics()?;
        let elapsed = millis(bench.started.elapsed());
        ensure!(
            last.uptime_ms < next.uptime_ms && next.uptime_ms <= elapsed,
            "uptime was {} ms, then {} ms, {elapsed} ms after the start",
            last.uptime_ms,
            next.uptime_ms
        );
        // Some kernels count CPU time in ticks of 10 ms.
        ensure!(
            last.cpu_ms <= next.cpu_ms && next.cpu_ms <= elapsed * processors + 20,
            "CPU time was {} ms, then {} ms, in {elapsed} ms on {processors} processors",
            last.cpu_ms,
            next.cpu_ms
        );
        ensure!(
            (1..MEMORY_BYTES_MAX).contains(&next.memory_bytes),
            "it says that it uses {} bytes of memory",
            next.memory_bytes
        );
        ensure!(
            next.log_bytes >= last.log_bytes && next.log_writes >= last.log_writes,
            "log counters went back"
        );
        ensure!(
            next.log_dropped_lines == 0,
            "{} lines were dropped",
            next.log_dropped_lines
        );
        last = next;
    }
    Ok(())
}

pub(super) fn unknown_fields_are_ignored(fixture: &Fixture) -> Verdict {
    let (mut bench, _) = Bench::of(fixture, Behaviour::RunsForever)?;
    cnova_ral::write_spec(bench.dir(), &bench.spec)?;
    let path = bench.dir().join(file::SPEC);
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
    for place in ["", "/limits", "/grants"] {
        if let Some(object) = spec.pointer_mut(place).and_then(serde_json::Value::as_object_mut) {
            object.insert("a_field_of_the_future".into(), serde_json::json!({ "deep": [1, 2] }));
        }
    }
    fs::write(&path, serde_json::to_vec(&spec)?)?;
    bench.start_as_it_is()?;
    bench.state()?;
    bench.ensure_healthy("a start with unknown fields in the spec")
}

pub(super) fn two_runtimes_never_share_a_folder(fixture: &Fixture) -> Verdict {
    let (mut bench, _) = Bench::of(fixture, Behaviour::RunsForever)?;
    let state = bench.start_and_wait()?;
    ensure!(
        cnova_ral::write_spec(bench.dir(), &bench.spec).is_err(),
        "the folder of a running workload could be prepared anew: `lock` is not held with flock"
    );
    let mut second = spawn(&fixture.exe, bench.dir())?;
    let status = wait_for("the end of the second runtime", || Ok(second.try_wait()?)).inspect_err(|_| {
        let _ = second.kill();
        let _ = second.wait();
    })?;
    ensure!(!status.success(), "the second runtime ended with {status}");
    ensure!(
        read_exit(bench.dir())?.is_none(),
        "the second runtime wrote an exit.json for the first"
    );
    ensure!(
        read_state(bench.dir())? == Some(state.clone()),
        "the second runtime changed state.json"
    );
    ensure!(is_alive(&state), "the first runtime ended");
    bench.ensure_healthy("a second start in the same folder")
}

pub(super) fn a_folder_is_used_again(fixture: &Fixture) -> Verdict {
    let (mut bench, _) = Bench::of(fixture, Behaviour::RunsForever)?;
    for attempt in 1..=3 {
        bench.spec.attempt = attempt;
        let state = bench.start_and_wait()?;
        check_state(&bench, &state)?;
        bench.client()?.stop(None)?;
        let exit: Exit = bench.exit()?;
        ensure!(
            exit.reason == cnova_ral::ExitReason::Stopped,
            "attempt {attempt} ended with {exit:?}"
        );
        ensure!(!is_held(bench.dir())?, "it ended, but `lock` is held");
    }
    Ok(())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
