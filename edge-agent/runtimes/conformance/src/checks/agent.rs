//! The agent is killed, restarted and updated, and the workload runs on.

use std::path::Path;
use std::process::Child;

use cnova_ral::{
    Client, Exit, ExitReason, Handle, State, file, is_alive, is_held, process_start_time, read_exit, read_state,
};

use crate::bench::wait_for;
use crate::verdict::ensure;
use crate::{Behaviour, Bench, Fixture, Stop, Verdict, patience};

/// What an agent finds in a folder after its restart, in the order of `docs/RAL.md`.
enum Found {
    Ended(Exit),
    Running(State, Handle),
    Starting,
    Gone,
}

fn find(dir: &Path) -> Verdict<Found> {
    if let Some(exit) = read_exit(dir)? {
        return Ok(Found::Ended(exit));
    }
    if let Some(state) = read_state(dir)?
        && let Ok(handle) = Handle::open(&state)
    {
        return Ok(Found::Running(state, handle));
    }
    if is_held(dir)? {
        return Ok(Found::Starting);
    }
    // It may have ended between the first look and the last.
    Ok(match read_exit(dir)? {
        Some(exit) => Found::Ended(exit),
        None => Found::Gone,
    })
}

fn kill_agent(mut agent: Child) -> Verdict {
    agent.kill()?;
    agent.wait()?;
    Ok(())
}

/// What a new agent does with a workload that it did not start: adopt it, ask it, end it.
fn adopt_and_stop(bench: &Bench) -> Verdict {
    let (state, handle) = wait_for("a workload that can be adopted", || match find(bench.dir())? {
        Found::Running(state, handle) => Ok(Some((state, handle))),
        Found::Ended(exit) => Err(Stop::Failed(format!("it ended with its agent: {exit:?}"))),
        // Not even the lock may be there yet: the process has just been made.
        Found::Starting | Found::Gone => Ok(None),
    })?;
    ensure!(state.generation == bench.spec.generation, "another state: {state:?}");
    bench.ensure_healthy("the death of its agent")?;
    ensure!(!handle.wait(std::time::Duration::ZERO)?, "it ended with its agent");
    Client::connect(bench.dir())?.stop(None)?;
    expect_end(bench, &handle)
}

fn expect_end(bench: &Bench, handle: &Handle) -> Verdict {
    ensure!(
        handle.wait(patience())?,
        "it does not end after a stop by the new agent"
    );
    match find(bench.dir())? {
        Found::Ended(exit) if exit.reason == ExitReason::Stopped => Ok(()),
        Found::Ended(exit) => Err(Stop::Failed(format!("it was stopped, and says {exit:?}"))),
        _ => Err(Stop::Failed("it was stopped and left no exit.json".into())),
    }
}

pub(super) fn it_outlives_an_agent_killed_before_it_runs(fixture: &Fixture) -> Verdict {
    let (mut bench, _) = Bench::of(fixture, Behaviour::RunsForever)?;
    let agent = bench.start_below_agent()?;
    kill_agent(agent)?;
    adopt_and_stop(&bench)
}

pub(super) fn it_outlives_an_agent_killed_while_it_runs(fixture: &Fixture) -> Verdict {
    let (mut bench, _) = Bench::of(fixture, Behaviour::RunsForever)?;
    let agent = bench.start_below_agent()?;
    let state = bench.state();
    kill_agent(agent)?;
    let state = state?;
    ensure!(is_alive(&state), "it ended with its agent");
    adopt_and_stop(&bench)
}

pub(super) fn it_outlives_an_agent_killed_while_it_stops(fixture: &Fixture) -> Verdict {
    // One that takes its time to stop, where there is such a thing.
    let slow = matches!(fixture.cases.get(&Behaviour::IgnoresStop), Some(Ok(_)));
    let behaviour = if slow {
        Behaviour::IgnoresStop
    } else {
        Behaviour::RunsForever
    };
    let (mut bench, _) = Bench::of(fixture, behaviour)?;
    let agent = bench.start_below_agent()?;
    let handle = bench.state().and_then(|state| Ok(Handle::open(&state)?));
    let asked = bench
        .client()
        .and_then(|mut client| Ok(client.stop(Some(std::time::Duration::from_millis(500)))?));
    kill_agent(agent)?;
    asked?;
    expect_end(&bench, &handle?)
}

pub(super) fn a_reused_pid_is_not_adopted(fixture: &Fixture) -> Verdict {
    let (mut bench, _) = Bench::of(fixture, Behaviour::RunsForever)?;
    let state = bench.start_and_wait()?;
    let this = std::process::id();
    let mut others = [state.clone(), state.clone(), state.clone()];
    others[0].start_time -= 1;
    others[1].boot_id = "00000000-0000-0000-0000-000000000000".to_owned();
    // A living process, with the start time of the one that had its pid before.
    (others[2].pid, others[2].start_time) = (this, process_start_time(this)? + 1);
    for other in &others {
        ensure!(
            !is_alive(other) && Handle::open(other).is_err(),
            "{other:?} is taken for the workload, which is {state:?}"
        );
    }
    // A stale state file in a folder where nobody lives.
    Handle::open(&state)?.kill()?;
    bench.end()?;
    cnova_ral::write_state(bench.dir(), &others[2])?;
    match find(bench.dir())? {
        Found::Gone => Ok(()),
        _ => Err(Stop::Failed(format!("{} of a reused pid is believed", file::STATE))),
    }
}

pub(super) fn a_killed_runtime_is_known_as_such(fixture: &Fixture) -> Verdict {
    let (mut bench, _) = Bench::of(fixture, Behaviour::RunsForever)?;
    let state = bench.start_and_wait()?;
    let handle = Handle::open(&state)?;
    handle.kill()?;
    ensure!(handle.wait(patience())?, "a killed runtime does not end");
    // Not even while it is a zombie: nobody has reaped it yet.
    ensure!(!is_alive(&state), "a killed runtime counts as alive");
    let (_, exit) = bench.end()?;
    ensure!(
        exit.is_none(),
        "somebody wrote an exit.json for a killed runtime: {exit:?}"
    );
    let dir = bench.dir().to_owned();
    wait_for(
        "the release of `lock`, which a child of the runtime must not keep",
        || Ok((!is_held(&dir)?).then_some(())),
    )?;
    if let Ok(group) = bench.group() {
        group.kill()?;
    }
    // What the dead one left does not stand in the way.
    bench.start_and_wait()?;
    bench.ensure_healthy("a start in the folder of a killed runtime")
}
