//! What must never be run.

use std::fs;

use cnova_ral::{Exit, ExitReason, file, prepare_folder, read_state, write_spec};

use crate::bench::wait_for;
use crate::verdict::ensure;
use crate::{Behaviour, Bench, Fixture, Stop, Verdict};

/// A digest of nothing that exists.
fn another_digest() -> String {
    format!("sha256:{}", "0123456789abcdef".repeat(4))
}

/// Waits for the end of what must end at once; one that comes to run is not waited for.
fn ended(bench: &mut Bench) -> Verdict<Exit> {
    wait_for("the end of what is to be refused", || {
        let ended = !bench.runs()?;
        ensure!(
            ended || read_state(bench.dir())?.is_none(),
            "it was not refused: it runs"
        );
        Ok(ended.then_some(()))
    })?;
    bench.exit()
}

fn expect_refused(bench: &Bench, exit: &Exit, says: &str) -> Verdict {
    ensure!(exit.reason == ExitReason::Refused, "it was not refused: {exit:?}");
    ensure!(
        exit.code.is_none() && exit.signal.is_none(),
        "what never ran has neither code nor signal: {exit:?}"
    );
    let detail = exit.detail.as_deref().unwrap_or_default();
    ensure!(
        !detail.is_empty() && detail.contains(says),
        "`detail` does not say `{says}`: {detail:?}"
    );
    ensure!(
        read_state(bench.dir())?.is_none(),
        "it was refused and has a state.json"
    );
    ensure!(bench.log()?.is_empty(), "it was refused and has printed something");
    Ok(())
}

pub(super) fn a_bad_artifact_is_refused(fixture: &Fixture) -> Verdict {
    let (mut bench, case) = Bench::of(fixture, Behaviour::Refused)?;
    bench.start()?;
    let exit = ended(&mut bench)?;
    expect_refused(&bench, &exit, &case.detail.unwrap_or_default())
}

pub(super) fn another_digest_is_refused(fixture: &Fixture) -> Verdict {
    let (mut bench, _) = Bench::of(fixture, Behaviour::RunsForever)?;
    bench.spec.digest = another_digest();
    bench.start()?;
    let exit = ended(&mut bench)?;
    expect_refused(&bench, &exit, &another_digest())
}

pub(super) fn another_part_is_refused(fixture: &Fixture) -> Verdict {
    let (mut bench, _) = Bench::of(fixture, Behaviour::RunsForever)?;
    let Some(part) = bench.spec.parts.first_mut() else {
        return Err(Stop::NotApplicable("the case of `runs_forever` has no parts".into()));
    };
    // Right name, wrong bytes: as if somebody had changed them on the disk.
    let changed = fixture.folder().join("changed-part");
    let mut bytes = fs::read(&part.path)?;
    match bytes.last_mut() {
        Some(byte) => *byte ^= 1,
        None => bytes.push(0),
    }
    fs::write(&changed, bytes)?;
    part.path = changed;
    let digest = part.digest.clone();
    bench.start()?;
    let exit = ended(&mut bench)?;
    expect_refused(&bench, &exit, &digest)
}

pub(super) fn a_missing_artifact_is_refused(fixture: &Fixture) -> Verdict {
    let (mut bench, _) = Bench::of(fixture, Behaviour::RunsForever)?;
    bench.spec.artifact = fixture.folder().join("nowhere");
    bench.start()?;
    let exit = ended(&mut bench)?;
    expect_refused(&bench, &exit, "nowhere")
}

pub(super) fn another_ral_is_refused(fixture: &Fixture) -> Verdict {
    let (mut bench, _) = Bench::of(fixture, Behaviour::RunsForever)?;
    write_spec(bench.dir(), &bench.spec)?;
    let path = bench.dir().join(file::SPEC);
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
    spec["ral"] = 4711.into();
    fs::write(&path, serde_json::to_vec(&spec)?)?;
    bench.start_as_it_is()?;
    let exit = ended(&mut bench)?;
    expect_refused(&bench, &exit, "4711")
}

pub(super) fn an_unknown_setting_is_refused(fixture: &Fixture) -> Verdict {
    let (mut bench, _) = Bench::of(fixture, Behaviour::RunsForever)?;
    if !bench.spec.settings.is_object() {
        bench.spec.settings = serde_json::json!({});
    }
    bench.spec.settings["noSuchSetting"] = true.into();
    bench.start()?;
    let exit = ended(&mut bench)?;
    expect_refused(&bench, &exit, "noSuchSetting")
}

pub(super) fn a_missing_spec_is_refused(fixture: &Fixture) -> Verdict {
    let (mut bench, _) = Bench::of(fixture, Behaviour::RunsForever)?;
    prepare_folder(bench.dir())?;
    bench.start_as_it_is()?;
    let exit = ended(&mut bench)?;
    expect_refused(&bench, &exit, file::SPEC)
}

pub(super) fn a_torn_spec_is_refused(fixture: &Fixture) -> Verdict {
    let (mut bench, _) = Bench::of(fixture, Behaviour::RunsForever)?;
    write_spec(bench.dir(), &bench.spec)?;
    let path = bench.dir().join(file::SPEC);
    let text = fs::read(&path)?;
    fs::write(&path, &text[..text.len() / 2])?;
    bench.start_as_it_is()?;
    let exit = ended(&mut bench)?;
    expect_refused(&bench, &exit, file::SPEC)
}
