//! Ending a workload from outside: gently, then by force.

use std::time::{Duration, Instant};

use cnova_ral::{CallError, Exit, ExitReason, Handle, Phase, file, is_alive, is_held};

use crate::bench::wait_for;
use crate::verdict::ensure;
use crate::{Behaviour, Bench, Fixture, Stop, Verdict};

const HOUR: Duration = Duration::from_secs(3600);
const SIGKILL: i32 = 9;

fn expect_stopped(exit: &Exit) -> Verdict {
    ensure!(exit.reason == ExitReason::Stopped, "it was stopped, and says {exit:?}");
    ensure!(!exit.oom, "it was stopped, and says that memory ran out");
    Ok(())
}

pub(super) fn a_stop_ends_it(fixture: &Fixture) -> Verdict {
    let (mut bench, _) = Bench::of(fixture, Behaviour::RunsForever)?;
    // It obeys a gentle request, so nobody ever waits for the hour.
    bench.spec.stop_grace_ms = 3_600_000;
    let state = bench.start_and_wait()?;
    let mut client = bench.client()?;
    client.stop(None)?;
    match client.health() {
        Ok(health) => ensure!(health.phase == Phase::Stopping, "after a stop it answers {health:?}"),
        // It may be gone already.
        Err(CallError::Connect { .. } | CallError::Broken { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let exit = bench.exit()?;
    expect_stopped(&exit)?;
    ensure!(
        exit.signal != Some(SIGKILL),
        "force was used before the grace time was over: {exit:?}"
    );
    ensure!(
        !is_alive(&state) && !is_held(bench.dir())?,
        "its process or its lock is still there"
    );
    match bench.client() {
        Err(Stop::Failed(_)) => Ok(()),
        _ => Err(Stop::Failed(format!(
            "somebody answers on {} after the end",
            file::SOCKET
        ))),
    }
}

pub(super) fn sigterm_is_a_stop(fixture: &Fixture) -> Verdict {
    let (mut bench, _) = Bench::of(fixture, Behaviour::RunsForever)?;
    bench.spec.stop_grace_ms = 3_600_000;
    let state = bench.start_and_wait()?;
    Handle::open(&state)?.terminate()?;
    expect_stopped(&bench.exit()?)
}

pub(super) fn force_follows_the_grace_time(fixture: &Fixture) -> Verdict {
    // By the time that the question names, then by that in the spec.
    for (in_spec, in_question) in [
        (HOUR, Some(Duration::from_millis(400))),
        (Duration::from_millis(400), None),
    ] {
        let (mut bench, _) = Bench::of(fixture, Behaviour::IgnoresStop)?;
        bench.spec.stop_grace_ms = u64::try_from(in_spec.as_millis()).unwrap_or(u64::MAX);
        bench.start_and_wait()?;
        wait_until_it_ignores(&bench)?;
        let asked = Instant::now();
        bench.client()?.stop(in_question)?;
        let exit = bench.exit()?;
        expect_stopped(&exit)?;
        ensure!(
            exit.signal == Some(SIGKILL),
            "it does not end by itself, so `signal` must be {SIGKILL}: {exit:?}"
        );
        let waited = asked.elapsed();
        ensure!(
            waited >= Duration::from_millis(400),
            "force was used after {waited:?} of 400 ms of grace"
        );
    }
    Ok(())
}

/// Between its first instruction and the one that makes it deaf to a stop it could still hear one.
fn wait_until_it_ignores(bench: &Bench) -> Verdict {
    wait_for("a line that says that it ignores stops from now on", || {
        bench.stimulate();
        Ok((!bench.log()?.is_empty()).then_some(()))
    })
}

pub(super) fn a_repeated_stop_never_lengthens_it(fixture: &Fixture) -> Verdict {
    let short = Duration::from_millis(300);
    for (first, second) in [(HOUR, short), (short, HOUR)] {
        let (mut bench, _) = Bench::of(fixture, Behaviour::IgnoresStop)?;
        bench.start_and_wait()?;
        wait_until_it_ignores(&bench)?;
        bench.client()?.stop(Some(first))?;
        bench.client()?.stop(Some(second))?;
        let exit = bench.exit()?;
        expect_stopped(&exit)?;
        ensure!(exit.signal == Some(SIGKILL), "`signal` is not {SIGKILL}: {exit:?}");
    }
    Ok(())
}

pub(super) fn a_stop_while_it_starts(fixture: &Fixture) -> Verdict {
    let (mut bench, _) = Bench::of(fixture, Behaviour::RunsForever)?;
    bench.spec.stop_grace_ms = 3_600_000;
    bench.start()?;
    // As soon as anybody answers, which may be long before it runs.
    wait_for("the socket", || match bench.client() {
        Ok(mut client) => Ok(client.stop(None).ok()),
        Err(_) => {
            ensure!(bench.runs()?, "it ended before it could be asked to");
            Ok(None)
        }
    })?;
    expect_stopped(&bench.exit()?)
}
