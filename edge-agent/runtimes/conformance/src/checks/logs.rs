//! What a workload prints.

use std::fs;
use std::path::Path;

use cnova_ral::{ExitReason, LogLine, Stream, file};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use crate::bench::wait_for;
use crate::verdict::ensure;
use crate::{Behaviour, Bench, Case, Fixture, Stop, Verdict};

/// The disk that gets full: less than what the case prints, and more than the other files of the folder.
const SMALL_DISK: &str = "size=256k,mode=700";
/// More than the disk holds.
const LARGE_LOG_BYTES: u64 = 64 << 20;

/// The raw lines of both files must all have the form of the log; `tail_log` would just leave others out.
fn ensure_form(dir: &Path) -> Verdict {
    for name in [file::LOG_OLD, file::LOG] {
        let bytes = fs::read(dir.join(name)).unwrap_or_default();
        ensure!(
            bytes.is_empty() || bytes.last() == Some(&b'\n'),
            "{name} does not end with a whole line"
        );
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let text = String::from_utf8_lossy(line);
            let mut fields = text.splitn(4, ' ');
            let at = fields.next().unwrap_or_default();
            let digits = |range: std::ops::Range<usize>| at.get(range).is_some_and(|d| d.parse::<u16>().is_ok());
            let is_time =
                at.len() == 24 && at.ends_with('Z') && at.get(10..11) == Some("T") && digits(0..4) && digits(20..23);
            let stream = matches!(fields.next(), Some("stdout" | "stderr"));
            let mark = matches!(fields.next(), Some("F" | "P"));
            ensure!(
                is_time && stream && mark && fields.next().is_some(),
                "{name}: `{text}` is not `2026-11-21T05:31:34.760Z stdout F text`"
            );
        }
    }
    Ok(())
}

fn texts(log: &[LogLine], stream: Stream) -> Vec<&str> {
    let of_stream = log.iter().filter(|line| line.stream == stream);
    of_stream.map(|line| line.text.as_str()).collect()
}

/// How often the lines of a stream appear in the log one after the other, other lines between them left out.
fn occurrences(log: &[LogLine], case: &Case, stream: Stream) -> Option<usize> {
    let wanted: Vec<&str> = case
        .lines
        .iter()
        .filter(|(s, _)| *s == stream)
        .map(|(_, t)| t.as_str())
        .collect();
    if wanted.is_empty() {
        return None;
    }
    let (mut at, mut count) = (0, 0);
    for text in texts(log, stream) {
        if text == wanted[at] {
            at += 1;
        }
        if at == wanted.len() {
            (at, count) = (0, count + 1);
        }
    }
    Some(count)
}

fn logged(bench: &Bench, case: &Case, times: usize) -> Verdict<bool> {
    let log = bench.log()?;
    let enough = |stream| occurrences(&log, case, stream).is_none_or(|count| count >= times);
    Ok(enough(Stream::Stdout) && enough(Stream::Stderr))
}

fn print_once(bench: &mut Bench, case: &Case, times: usize) -> Verdict {
    ensure!(!case.lines.is_empty(), "the fixture does not say what `prints` prints");
    bench.start()?;
    let waited = wait_for("the lines in the log", || {
        bench.stimulate();
        Ok((logged(bench, case, times)? || !bench.runs()?).then_some(()))
    });
    // On a connection: what is gathered must be written then at the latest.
    if bench.runs()? && case.code.is_none() {
        let _ = bench.client().and_then(|mut client| Ok(client.stop(None)?));
    }
    bench.exit()?;
    let log = bench.log()?;
    ensure!(
        logged(bench, case, times)?,
        "the log holds {:?}, expected {times} times and in order: {:?}",
        log.iter()
            .map(|line| (line.stream, line.text.as_str()))
            .collect::<Vec<_>>(),
        case.lines
    );
    waited
}

pub(super) fn what_it_prints_is_logged_in_order(fixture: &Fixture) -> Verdict {
    let (mut bench, case) = Bench::of(fixture, Behaviour::Prints)?;
    print_once(&mut bench, &case, 1)?;
    ensure_form(bench.dir())
}

pub(super) fn the_log_goes_on_over_attempts(fixture: &Fixture) -> Verdict {
    let (mut bench, case) = Bench::of(fixture, Behaviour::Prints)?;
    print_once(&mut bench, &case, 1)?;
    bench.spec.attempt = 2;
    print_once(&mut bench, &case, 2)?;
    ensure_form(bench.dir())
}

pub(super) fn the_log_is_bounded_and_rotates(fixture: &Fixture) -> Verdict {
    let (mut bench, case) = Bench::of(fixture, Behaviour::PrintsALot)?;
    let limit = 64 << 10;
    bench.spec.limits.log_bytes = limit;
    bench.start()?;
    wait_for("the end, or a log that was turned over", || {
        bench.stimulate();
        // Between the two looks a full file may become the old one, so each is judged by itself.
        let (new, old) = bench.log_size();
        ensure!(
            new <= limit / 2 && old <= limit / 2,
            "the log has {new} and {old} bytes, allowed are {limit} together"
        );
        Ok((!bench.runs()? || (case.code.is_none() && old > 0)).then_some(()))
    })?;
    if case.code.is_none() {
        bench.client()?.stop(None)?;
    }
    let exit = bench.exit()?;
    ensure!(exit.code == case.code, "it was to end with {:?}: {exit:?}", case.code);
    let (new, old) = bench.log_size();
    ensure!(
        old > 0 && new + old <= limit,
        "the log has {new} and {old} bytes, allowed are {limit} together"
    );
    ensure_form(bench.dir())?;
    if let (Some((stream, last)), Some(_)) = (case.lines.last(), case.code) {
        let log = bench.log()?;
        let found = texts(&log, *stream).last().copied();
        ensure!(found == Some(last), "the last line is {found:?}, not {last:?}");
    }
    Ok(())
}

pub(super) fn a_full_disk_costs_lines_and_nothing_else(fixture: &Fixture) -> Verdict {
    let case = fixture.get(Behaviour::PrintsALot)?;
    if !rustix::process::geteuid().is_root() {
        return Err(Stop::Skipped("only root can mount a small disk".into()));
    }
    // In a mount namespace of this thread and its children: nothing is left of it, however this ends.
    std::thread::scope(|scope| {
        let on_small_disk = scope.spawn(|| fill_a_disk(fixture, &case));
        on_small_disk
            .join()
            .unwrap_or_else(|_| Err(Stop::Failed("the check itself failed".into())))
    })
}

fn fill_a_disk(fixture: &Fixture, case: &Case) -> Verdict {
    let home = tempfile::tempdir()?;
    let disk = home.path().join("disk");
    fs::create_dir(&disk)?;
    // SAFETY: only this thread's view of the mounts changes; its file descriptors stay as they are.
    if let Err(errno) = unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) } {
        return Err(Stop::Skipped(format!("no mount namespace here: {errno}")));
    }
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    let mounted = rustix::mount::mount_change("/", private).and_then(|()| {
        let options = std::ffi::CString::new(SMALL_DISK).map_err(|_| rustix::io::Errno::INVAL)?;
        rustix::mount::mount(
            "cnova-conformance",
            &disk,
            "tmpfs",
            MountFlags::empty(),
            options.as_c_str(),
        )
    });
    if let Err(errno) = mounted {
        return Err(Stop::Skipped(format!("a small disk cannot be mounted here: {errno}")));
    }
    let result = run_on_full_disk(fixture, case, home, &disk.join("state"));
    let _ = rustix::mount::unmount(&disk, UnmountFlags::DETACH);
    result
}

fn run_on_full_disk(fixture: &Fixture, case: &Case, home: tempfile::TempDir, dir: &Path) -> Verdict {
    let mut bench = Bench::in_folder(fixture, case, home, dir.to_owned())?;
    bench.spec.limits.log_bytes = LARGE_LOG_BYTES;
    let state = bench.start_and_wait()?;
    if case.code.is_some() {
        let exit = bench.exit()?;
        ensure!(
            exit.reason == ExitReason::Finished && exit.code == case.code,
            "the disk was full, and it ended with {exit:?}"
        );
        return Ok(());
    }
    wait_for("dropped lines", || {
        bench.stimulate();
        ensure!(cnova_ral::is_alive(&state), "the disk was full, and it ended");
        Ok((bench.client()?.metrics()?.log_dropped_lines > 0).then_some(()))
    })?;
    bench.ensure_healthy("the disk was full")?;
    bench.client()?.stop(None)?;
    let exit = bench.exit()?;
    ensure!(
        exit.reason == ExitReason::Stopped,
        "the disk was full, and it ended with {exit:?}"
    );
    Ok(())
}
