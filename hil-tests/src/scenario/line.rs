//! From a new board to one that works alone.

use super::application::Application;
use super::inference::seconds;
use super::{Clock, Done, Run, Trouble};

const MIB: u64 = 1 << 20;

/// The whole line, once.
pub(super) fn line(run: &mut Run<'_>) -> Done {
    run.spoil();
    run.target.flash()?;
    let begin = run.target.now();
    run.target.switch_on(Clock::Right)?;
    run.target.wait_booted()?;
    let booted = run.target.now();
    run.measure(
        "first boot: power on to where it can be asked",
        seconds(booted.saturating_sub(begin)),
    );
    run.prepare_from_boot()?;
    let deployed = run.target.now();
    run.measure(
        "from there to enrolled, attested and all three runtimes at work",
        seconds(deployed.saturating_sub(booted)),
    );
    let workloads = Application::line(0).workloads();
    run.until("the hub shows that all run", |run| {
        let shown = run.target.at_hub()?;
        Ok({ &workloads }
            .iter()
            .all(|id| shown.iter().any(|w| w.id == *id && w.state == "running")))
    })?;
    run.if_possible("the boot is found good", |run| {
        run.until("the boot loader counts no more", |run| run.target.is_blessed())
    })?;
    within_budget(run, "all three runtimes at work")?;
    let cnova = run.if_possible("cnova on the board itself", |run| run.target.cnova_on_board())?;
    if let Some(version) = cnova {
        run.measure("cnova on the board itself: its bundle shown, the hub asked", version);
    }

    run.target.cut_network()?;
    let begin = run.target.now();
    run.target.restart()?;
    let off = run.target.now();
    run.target.wait_booted()?;
    run.until_running(&workloads)?;
    run.measure(
        "orderly restart, offline: command to off",
        seconds(off.saturating_sub(begin)),
    );
    run.measure(
        "orderly restart, offline: power on to all three runtimes at work",
        seconds(run.target.now().saturating_sub(off)),
    );
    within_budget(run, "after the restart, offline")?;
    alone(run)?;
    run.target.cut_power()?;
    let begin = run.target.now();
    run.target.switch_on(Clock::Right)?;
    run.target.wait_booted()?;
    run.until_running(&workloads)?;
    run.measure(
        "power cut, offline: power on to all three runtimes at work",
        seconds(run.target.now().saturating_sub(begin)),
    );
    run.target.heal_network()?;
    run.until("the hub hears of the board again", |run| {
        Ok(run.target.is_connected()? && run.target.trust()?.as_deref() == Some("affirming"))
    })
}

/// It works with nobody above it.
fn alone(run: &mut Run<'_>) -> Done {
    let status = run.status()?;
    match status.connected {
        true => Err(Trouble::failed(
            "the agent says that it is connected, and there is nobody above it",
        )),
        false => Ok(()),
    }
}

/// What the agent and all that it starts take of their budget.
pub(super) fn within_budget(run: &mut Run<'_>, when: &str) -> Done {
    let Some(memory) = run.if_possible("memory", |run| run.target.memory())? else {
        return Ok(());
    };
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / MIB as f64);
    run.measure(
        &format!("memory, {when}"),
        format!(
            "{} MiB now (with page cache), peak {} MiB, of {} MiB; processes {} MiB PSS",
            mib(memory.now),
            mib(memory.peak),
            memory.budget / MIB,
            mib(memory.pss)
        ),
    );
    if memory.kills > 0 {
        return Err(Trouble::Failed(format!(
            "{} processes were killed for lack of memory",
            memory.kills
        )));
    }
    // The limit is the kernel's: what must be seen is that there is one.
    match memory.budget {
        0 | u64::MAX => Err(Trouble::failed(
            "nothing limits the memory of the agent and its runtimes",
        )),
        _ => Ok(()),
    }
}
