//! How a workload ends, and what the exit file says about it.

use cnova_ral::{Exit, ExitReason, read_exit};

use crate::bench::wait_for;
use crate::verdict::ensure;
use crate::{Behaviour, Bench, Fixture, Stop, Verdict};

fn expect(exit: &Exit, reason: ExitReason) -> Verdict {
    ensure!(
        exit.reason == reason,
        "the reason is `{}`, not `{reason}`: {exit:?}",
        exit.reason
    );
    ensure!(
        exit.oom == (reason == ExitReason::Memory),
        "`oom` is {} with reason `{reason}`",
        exit.oom
    );
    ensure!(exit.at_unix_ms > 0, "`at_unix_ms` is zero");
    Ok(())
}

pub(super) fn an_exit_code_is_reported(fixture: &Fixture) -> Verdict {
    let (mut bench, case) = Bench::of(fixture, Behaviour::ExitsWith)?;
    let exit = bench.run()?;
    expect(&exit, ExitReason::Finished)?;
    ensure!(case.code.is_some(), "the fixture does not say which code it exits with");
    ensure!(
        exit.code == case.code,
        "the code is {:?}, not {:?}",
        exit.code,
        case.code
    );
    ensure!(exit.signal.is_none(), "a signal is reported: {exit:?}");
    Ok(())
}

pub(super) fn a_fault_is_a_trap(fixture: &Fixture) -> Verdict {
    let (mut bench, case) = Bench::of(fixture, Behaviour::Fails)?;
    let exit = bench.run()?;
    expect(&exit, ExitReason::Trap)?;
    ensure!(exit.code.is_none(), "a trap has no code: {exit:?}");
    let detail = exit.detail.unwrap_or_default();
    let wanted = case.detail.unwrap_or_default();
    ensure!(
        !detail.is_empty() && detail.contains(&wanted),
        "`detail` does not say `{wanted}`: {detail:?}"
    );
    Ok(())
}

pub(super) fn a_fatal_signal_is_reported(fixture: &Fixture) -> Verdict {
    let (mut bench, case) = Bench::of(fixture, Behaviour::DiesBySignal)?;
    let exit = bench.run()?;
    expect(&exit, ExitReason::Trap)?;
    ensure!(
        case.signal.is_some(),
        "the fixture does not say which signal it dies by"
    );
    ensure!(
        exit.signal == case.signal,
        "the signal is {:?}, not {:?}",
        exit.signal,
        case.signal
    );
    ensure!(exit.code.is_none(), "a signal leaves no code: {exit:?}");
    Ok(())
}

pub(super) fn the_memory_limit_ends_it(fixture: &Fixture) -> Verdict {
    let (mut bench, _) = Bench::of(fixture, Behaviour::ExceedsMemory)?;
    let exit = bench.run()?;
    expect(&exit, ExitReason::Memory)?;
    ensure!(exit.code.is_none(), "what ran out of memory has no code: {exit:?}");
    Ok(())
}

pub(super) fn the_time_limit_ends_it(fixture: &Fixture) -> Verdict {
    let (mut bench, _) = Bench::of(fixture, Behaviour::RunsForever)?;
    bench.spec.limits.wall_seconds = Some(1);
    let exit = bench.run()?;
    expect(&exit, ExitReason::Budget)
}

pub(super) fn the_exit_file_is_whole_and_before_the_end(fixture: &Fixture) -> Verdict {
    let behaviour = match fixture.get(Behaviour::ExitsWith) {
        Err(Stop::NotApplicable(_)) => Behaviour::RunsForever,
        _ => Behaviour::ExitsWith,
    };
    for _ in 0..5 {
        let (mut bench, _) = Bench::of(fixture, behaviour)?;
        bench.start()?;
        if behaviour == Behaviour::RunsForever {
            bench.state()?;
            bench.client()?.stop(None)?;
        }
        // A file that is not whole is an error of `read_exit`.
        let dir = bench.dir().to_owned();
        let first = wait_for("exit.json", || {
            let ended = !bench.runs()?;
            let exit = read_exit(&dir)?;
            ensure!(
                exit.is_some() || !ended,
                "the process ended before its exit.json was there"
            );
            Ok(exit)
        })?;
        ensure!(bench.exit()? == first, "exit.json was written twice");
    }
    Ok(())
}
