//! The operating system of a board, changed by its twin: written, started, found good; left again when it is not; an older
//! one; and the power cut on the way.

use std::time::Duration;

use cnova_agent_core::Status;

use super::application::Application;
use super::inference::seconds;
use super::{Clock, Done, Run, Trouble};

/// Most cuts of one update: each may take one of the tries of the new slot.
const CUTS_MAX: usize = 8;
/// Within so long after a cut the next one comes: from the firmware's first instruction to the middle of the restart into the new
/// system.
const CUT_WITHIN: Duration = Duration::from_secs(90);

/// Another system for the board.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct System {
    /// Its version.
    pub version: &'static str,
    /// Whether it has what the board's workloads need.
    pub is_good: bool,
    /// Starts that the loader gives it.
    pub tries: u8,
    /// Whether it may be older than what runs.
    pub is_downgrade: bool,
}

impl System {
    const fn good(version: &'static str, tries: u8) -> Self {
        Self {
            version,
            is_good: true,
            tries,
            is_downgrade: false,
        }
    }
}

/// What the hub knows of the system of a board.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SystemAtHub {
    /// Whether the board was asked for it.
    pub is_asked: bool,
    /// As `cnova get systems` says it.
    pub state: String,
    /// Why, for a person.
    pub reason: String,
    /// Hundredths that are written.
    pub percent: u64,
}

/// Version and slot that run.
fn runs(status: &Status) -> (String, String) {
    (status.system.version.clone(), status.system.slot.clone())
}

/// One that is good is kept, one that is not is left.
pub(super) fn os_update(run: &mut Run<'_>) -> Done {
    let good = System::good("2.0.0", 3);
    let bad = System {
        is_good: false,
        ..System::good("3.0.0", 1)
    };
    run.target.build_system(&good)?;
    run.target.build_system(&bad)?;
    run.prepare()?;
    run.spoil();
    let (_, first) = runs(&run.status()?);
    let said = run.target.offer_damaged(&good)?;
    run.note(format!("a flipped byte: {said}"));

    run.target.offer(&good)?;
    let held = run.target.system_at_hub()?;
    if held.is_asked || !held.reason.contains("no reference values are published") {
        return Err(Trouble::Failed(format!(
            "the board is asked for what nobody approved: {held:?}"
        )));
    }
    let begin = run.target.now();
    run.target.approve_system(&good)?;
    reaches(run, &good, "confirmed")?;
    run.measure(
        "approved to confirmed: fetched, written, restarted, found good",
        seconds(run.target.now().saturating_sub(begin)),
    );
    run.target.wait_booted()?;
    let second = is_at_work(run, &good)?;
    if second == first {
        return Err(Trouble::Failed(format!(
            "it runs in slot {second}, as the one before did"
        )));
    }

    run.target.offer(&bad)?;
    run.target.approve_system(&bad)?;
    let left = reaches(run, &bad, "rolled-back")?;
    run.note(format!("the hub says of the bad one: {}", left.reason));
    let names_both = left.reason.contains("line/") && left.reason.contains(good.version);
    if !names_both {
        return Err(Trouble::Failed(format!(
            "it does not say why it was left: {}",
            left.reason
        )));
    }
    run.target.wait_booted()?;
    if is_at_work(run, &good)? != second {
        return Err(Trouble::failed(
            "the board went back to another slot than the one before",
        ));
    }
    downgrade(run, &first)
}

/// An older one, which the loader would not choose by itself: it stays when the machine is started again.
fn downgrade(run: &mut Run<'_>, slot: &str) -> Done {
    let older = System {
        is_downgrade: true,
        ..System::good("1.5.0", 3)
    };
    run.target.approve_system(&older)?;
    run.target.offer(&older)?;
    reaches(run, &older, "confirmed")?;
    run.target.wait_booted()?;
    is_at_work(run, &older)?;
    run.target.restart()?;
    run.target.wait_booted()?;
    match is_at_work(run, &older)? == slot {
        true => Ok(()),
        false => Err(Trouble::failed(
            "the older system does not run in the slot that it was written to",
        )),
    }
}

/// Between two systems, the power cut in the middle of writing and then at any moment.
pub(super) fn update_power_cut(run: &mut Run<'_>) -> Done {
    let system = System::good("4.0.0", 10);
    run.target.build_system(&system)?;
    run.prepare()?;
    run.spoil();
    let before = runs(&run.status()?);
    run.target.approve_system(&system)?;
    run.target.offer(&system)?;
    run.until("a part of it is written", |run| {
        let now = run.target.system_at_hub()?;
        Ok(now.percent >= 20 || now.state == "confirmed")
    })?;
    let cuts = run.options.cuts.clamp(1, CUTS_MAX);
    for cut in 1..=cuts {
        run.target.cut_power()?;
        run.target.switch_on(Clock::Right)?;
        let now = runs(&what_runs(run)?);
        run.note(format!("after cut {cut}: {} in slot {}", now.0, now.1));
        let is_new = now.0 == system.version && now.1 != before.1;
        if now != before && !is_new {
            return Err(Trouble::Failed(format!(
                "after cut {cut} neither of the two runs: {now:?}"
            )));
        }
        if cut < cuts {
            let until = run.target.now() + CUT_WITHIN.mul_f64(run.random.f64());
            run.until("the next cut", |run| {
                run.target.follow()?;
                Ok(run.target.now() >= until)
            })?;
        }
    }
    reaches(run, &system, "confirmed")?;
    run.target.wait_booted()?;
    is_at_work(run, &system)?;
    run.measure("power cuts", format!("{cuts} (seed {})", run.options.seed));
    Ok(())
}

/// Waits until the hub has heard this of the system, while the board starts itself anew as often as it likes.
fn reaches(run: &mut Run<'_>, system: &System, state: &str) -> Done<SystemAtHub> {
    let mut last = SystemAtHub::default();
    let waited = run.until(&format!("system {} is {state}", system.version), |run| {
        run.target.follow()?;
        last = run.target.system_at_hub()?;
        Ok(last.state == state)
    });
    match waited {
        Ok(()) => Ok(last),
        Err(Trouble::Failed(why)) => Err(Trouble::Failed(format!("{why}; the hub says: {last:?}"))),
        Err(other) => Err(other),
    }
}

/// What the agent says of itself, on a board that may start itself anew while it is asked.
fn what_runs(run: &mut Run<'_>) -> Done<Status> {
    let mut found = None;
    run.until("the board says what runs", |run| {
        if run.target.follow()? {
            found = match run.target.status() {
                Err(Trouble::Failed(_)) => None,
                other => other?,
            };
        }
        Ok(found.as_ref().is_some_and(|s| !s.system.version.is_empty()))
    })?;
    found.ok_or_else(|| Trouble::failed("the agent does not answer"))
}

/// This system runs, is attested, found good by the loader, and its workloads run; its slot.
fn is_at_work(run: &mut Run<'_>, system: &System) -> Done<String> {
    let (version, slot) = runs(&run.status()?);
    if version != system.version {
        return Err(Trouble::Failed(format!(
            "version {version} runs, not {}",
            system.version
        )));
    }
    run.until_running(&Application::line(0).workloads())?;
    run.until("the board is attested", |run| {
        Ok(run.target.trust()?.as_deref() == Some("affirming"))
    })?;
    run.if_possible("the boot is found good", |run| {
        run.until("the boot loader counts no more", |run| run.target.is_blessed())
    })?;
    Ok(slot)
}
