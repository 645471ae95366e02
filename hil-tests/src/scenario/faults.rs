//! What breaks on a real board: power, disk, clock, and bytes of the root.

use std::time::Duration;

use super::application::Application;
use super::inference::seconds;
use super::{Clock, Done, Run, Trouble};

/// Time of build of anything here is later: 1 January 2000.
const CENTURY_S: u64 = 946_684_800;
/// Of the padding of a large twin: two thirds of what one may have.
const LARGE: usize = 20;
/// How often the power fails before it stays.
const BROWN_OUTS: usize = 6;

/// One byte of the root is changed, and nothing of it is used.
pub(super) fn changed_byte(run: &mut Run<'_>) -> Done {
    run.prepare()?;
    run.spoil();
    run.target.damage_root()?;
    let said = run.target.wait_refused()?;
    let line = said
        .lines()
        .rev()
        .find(|line| line.contains("verity"))
        .unwrap_or_default();
    run.note(format!("it said: {}", line.trim()));
    run.target.cut_power()?;
    let mended = run.if_possible("the byte put right again, and the board starts", |run| {
        run.target.mend_root()?;
        run.target.switch_on(Clock::Right)?;
        run.target.wait_booted()?;
        run.until_running(&Application::line(0).workloads())
    })?;
    if mended.is_some() {
        run.is_as_prepared();
    }
    Ok(())
}

/// The power is cut at any moment of boots and deploys.
pub(super) fn power_cuts(run: &mut Run<'_>) -> Done {
    run.prepare()?;
    let workloads = Application::line(0).workloads();
    let begin = run.target.now();
    run.target.cut_power()?;
    run.target.switch_on(Clock::Right)?;
    run.target.wait_booted()?;
    run.until_running(&workloads)?;
    // Between the firmware's first instruction and some deploys.
    let longest = run.target.now().saturating_sub(begin).mul_f64(1.5);
    let mut floor = run.target.reported()?;
    for cut in 1..=run.options.cuts {
        let application = run.next_version();
        run.target.deploy(&application)?;
        let wait = longest.mul_f64(run.random.f64());
        run.target.pass(wait)?;
        floor = floor.max(run.target.reported()?);
        if run.random.bool() {
            // In the middle of a deploy.
            let application = run.next_version();
            run.target.deploy(&application)?;
            let wait = Duration::from_millis(run.random.u64(..500));
            run.target.pass(wait)?;
        }
        floor = floor.max(run.target.reported()?);
        run.target.cut_power()?;
        run.target.switch_on(Clock::Right)?;
        // Booting to the end every time would leave out what happens before.
        if cut % 5 == 0 || cut == run.options.cuts {
            nothing_is_lost(run, cut, floor)?;
        }
    }
    let application = Application::line(0);
    run.until("the board has the newest version, and the hub hears of it", |run| {
        if !run.target.has_newest()? {
            return Ok(false);
        }
        let shown = run.target.at_hub()?;
        let all = application.workloads();
        Ok({ &all }
            .iter()
            .all(|id| shown.iter().any(|w| w.id == *id && w.state == "running")))
    })?;
    run.measure(
        "power cuts",
        format!("{} (seed {})", run.options.cuts, run.options.seed),
    );
    super::line::within_budget(run, "after the cuts")
}

/// All workloads run, the ledger is whole and not older than what the hub heard of.
fn nothing_is_lost(run: &mut Run<'_>, cut: usize, floor: (u64, u64)) -> Done {
    run.target.wait_booted()?;
    run.until_running(&Application::line(0).workloads())?;
    let status = run.status()?;
    if (status.epoch, status.generation) < floor {
        return Err(Trouble::Failed(format!(
            "after {cut} cuts the board is at twin {}.{}, and had reported {}.{}",
            status.epoch, status.generation, floor.0, floor.1
        )));
    }
    match run.target.lost_its_ledger()? {
        true => Err(Trouble::Failed(format!("after {cut} cuts the ledger was damaged"))),
        false => Ok(()),
    }
}

/// The state partition is full for a while.
pub(super) fn full_disk(run: &mut Run<'_>) -> Done {
    run.prepare()?;
    let workloads = Application::line(0).workloads();
    let before = run.status()?;
    run.target.fill_disk()?;
    // A large twin, so that it does not fit into what the ledger's log takes on the disk already.
    let large = Application {
        padding: LARGE,
        ..run.next_version()
    };
    run.target.deploy(&large)?;
    run.until("the agent says that it cannot write", |run| {
        let at_hub = run.target.alarms_at_hub()?;
        let here = run.target.status()?.map(|s| s.alarms.join("; ")).unwrap_or_default();
        Ok(at_hub.contains("store") || here.contains("store"))
    })?;
    let said = run.target.alarms_at_hub()?;
    run.note(format!("the hub shows: {said}"));
    run.target.workloads_alive(&before)?;
    let begin = run.target.now();
    run.target.free_disk()?;
    let application = run.next_version();
    run.target.deploy(&application)?;
    let floor = (before.epoch, before.generation);
    run.until("the newest twin is taken", |run| {
        let now = run.target.status()?.map(|s| (s.epoch, s.generation));
        Ok(now.is_some_and(|now| now > floor))
    })?;
    run.until_running(&workloads)?;
    run.measure(
        "room again to the newest version at work",
        seconds(run.target.now().saturating_sub(begin)),
    );
    match run.target.lost_its_ledger()? {
        true => Err(Trouble::failed("the ledger was set aside")),
        false => Ok(()),
    }
}

/// Switched on in 1970, with nobody to ask for the time.
pub(super) fn lost_clock(run: &mut Run<'_>) -> Done {
    run.prepare()?;
    let workloads = Application::line(0).workloads();
    run.target.cut_network()?;
    run.target.cut_power()?;
    let switched_on = run.if_possible("the clock of 1970 at power on", |run| {
        run.target.switch_on(Clock::Lost)?;
        run.target.wait_booted()?;
        run.until_running(&workloads)?;
        let time = run.target.board_time()?;
        run.measure("time that the board took at power on in 1970", year(time));
        Ok(())
    })?;
    if switched_on.is_none() {
        run.target.switch_on(Clock::Right)?;
        run.target.wait_booted()?;
        run.until_running(&workloads)?;
    }
    // systemd does not go back before the day on which it was built: so once more, under it.
    run.if_possible("the clock set to 1970 under a running system", |run| {
        run.target.lose_clock()?;
        let time = run.target.board_time()?;
        run.measure("time that the board has then", year(time));
        match time < CENTURY_S {
            true => run.until_running(&workloads),
            false => Err(Trouble::Failed(format!(
                "the clock could not be set: it is {}",
                year(time)
            ))),
        }
    })?;
    run.target.heal_network()?;
    run.target.cut_power()?;
    run.target.switch_on(Clock::Right)?;
    run.target.wait_booted()?;
    let application = run.next_version();
    let before = run.target.reported()?;
    run.target.deploy(&application)?;
    run.until("with the right clock it takes what is new", |run| {
        Ok(run.target.reported()? > before)
    })?;
    run.until_running(&workloads)
}

fn year(seconds: u64) -> String {
    format!("{} ({seconds} s after 1970 began)", 1970 + seconds / 31_556_952)
}

/// The power fails again and again, always some seconds after it came.
pub(super) fn brown_out(run: &mut Run<'_>) -> Done {
    run.prepare()?;
    let workloads = Application::line(0).workloads();
    run.if_possible("the boot is found good", |run| {
        run.until("the boot loader counts no more", |run| run.target.is_blessed())
    })?;
    let begin = run.target.now();
    run.target.cut_power()?;
    run.target.switch_on(Clock::Right)?;
    run.target.wait_booted()?;
    let boot = run.target.now().saturating_sub(begin);
    for n in 1..=BROWN_OUTS {
        run.target.cut_power()?;
        run.target.switch_on(Clock::Right)?;
        // Later and later, and never long enough.
        let wait = boot.mul_f64(n as f64 / (BROWN_OUTS + 1) as f64);
        run.target.pass(wait)?;
    }
    run.target.cut_power()?;
    let begin = run.target.now();
    run.target.switch_on(Clock::Right)?;
    run.target.wait_booted()?;
    run.until_running(&workloads)?;
    run.measure("failures of the power in a row", BROWN_OUTS.to_string());
    run.measure(
        "then power on to all three runtimes at work",
        seconds(run.target.now().saturating_sub(begin)),
    );
    run.if_possible("the slot is still a good one", |run| match run.target.is_blessed()? {
        true => Ok(()),
        false => Err(Trouble::failed(
            "the boot loader counts the tries of a slot again that was found good",
        )),
    })?;
    match run.target.lost_its_ledger()? {
        true => Err(Trouble::failed("the ledger was damaged")),
        false => Ok(()),
    }
}
