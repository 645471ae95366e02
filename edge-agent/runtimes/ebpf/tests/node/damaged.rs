//! Damaged objects: the parser panics on some of them, and nobody else notices.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use cnova_ral::{ExitReason, read_exit, read_state};
use cnova_runtime_ebpf::inspect::Verdict;
use cnova_runtime_ebpf::wire::{self, Answer};

use crate::objects::fieldbus_watch;
use crate::support::{RUNTIME, Workload, is_root, one, wait_for};

const MUTANTS: u64 = 10_000;
const THREADS: u64 = 4;
/// Of those that are refused and of those that are accepted, how many the whole runtime is given.
const WHOLE: usize = 60;
/// Only a hang takes longer; the inspector ends itself before.
const PATIENCE: Duration = Duration::from_secs(60);

/// The object with some of its bytes changed, always the same for the same number.
fn mutant(object: &[u8], number: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(number);
    let mut bytes = object.to_vec();
    match number % 8 {
        0 => bytes.truncate(random.usize(..bytes.len())),
        1 => {
            let (from, to) = (random.usize(..bytes.len()), random.usize(..bytes.len()));
            let length = random.usize(1..64).min(bytes.len() - from.max(to));
            bytes.copy_within(from..from + length, to);
        }
        2 => {
            // A word of a header or table becomes extreme.
            let at = random.usize(..bytes.len() - 8) & !3;
            let word = random.choice([0u32, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX]).unwrap();
            bytes[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        }
        _ => {
            for _ in 0..random.usize(1..=8) {
                let at = random.usize(..bytes.len());
                bytes[at] = random.u8(..);
            }
        }
    }
    bytes
}

/// What the real inspector process says.
fn inspect(object: &[u8]) -> Result<Verdict, String> {
    let (mut stream, theirs) = UnixStream::pair().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut child = Command::new(RUNTIME)
        .arg("helper-inspect")
        .env_clear()
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let asked = wire::ask(&mut stream, &(), object);
    let answer = wire::receive::<Verdict>(&mut stream);
    // It has ended, or the next read would say that it hangs.
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    let status = child.wait().unwrap();
    match answer {
        Ok((Answer::Done(verdict), fds)) => {
            assert!(
                asked.is_ok() && status.success() && fds.is_empty(),
                "{asked:?} {status}"
            );
            Ok(verdict)
        }
        Ok((Answer::Refused(why), _)) => Err(why),
        Err(_) => Err(format!("died: {status}")),
    }
}

#[test]
fn ten_thousand_damaged_objects_harm_nobody() {
    let Some(object) = fieldbus_watch() else { return };
    assert_eq!(inspect(&object).unwrap().programs[0].name, "fieldbus_watch");
    let (accepted, gave_up, died) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for first in 0..THREADS {
            let (object, accepted, gave_up, died) = (&object, &accepted, &gave_up, &died);
            scope.spawn(move || {
                for number in (first..MUTANTS).step_by(usize::try_from(THREADS).unwrap()) {
                    let counter = match inspect(&mutant(object, number)) {
                        Ok(_) => accepted,
                        Err(why) if why.starts_with("died") => died,
                        Err(why) if why.contains("its parser gave up") => gave_up,
                        Err(_) => continue,
                    };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let [accepted, gave_up, died] = [accepted, gave_up, died].map(AtomicUsize::into_inner);
    eprintln!("of {MUTANTS}: {accepted} accepted, the parser gave up on {gave_up}, killed it {died} times");
    // Damage in what is not read is no damage; damage in what is read is seen.
    assert!(accepted > 100 && accepted < 9000);
}

#[test]
fn the_whole_runtime_refuses_damaged_objects_or_runs_them() {
    let Some(object) = fieldbus_watch() else { return };
    if !is_root() {
        return;
    }
    let (mut refused, mut accepted) = (Vec::new(), Vec::new());
    for number in MUTANTS.. {
        let bytes = mutant(&object, number);
        let list = if inspect(&bytes).is_ok() {
            &mut accepted
        } else {
            &mut refused
        };
        if list.len() < WHOLE {
            list.push(bytes);
        }
        if refused.len() == WHOLE && accepted.len() == WHOLE {
            break;
        }
    }
    for (bytes, may_run) in refused
        .iter()
        .map(|b| (b, false))
        .chain(accepted.iter().map(|b| (b, true)))
    {
        let mut workload = Workload::new(bytes, one("fieldbus_watch", "socket-filter", "lo"));
        workload.start();
        let dir = workload.dir();
        let runs = wait_for("an end or a start", || {
            let state = read_state(&dir).unwrap().map(|_| true);
            read_exit(&dir).unwrap().map(|_| false).or(state)
        });
        assert!(may_run || !runs);
        let exit = if runs {
            workload.stop()
        } else {
            workload.end().1.unwrap()
        };
        let expected = if runs { ExitReason::Stopped } else { ExitReason::Refused };
        assert_eq!(exit.reason, expected, "{exit:?}");
        assert!(runs || exit.detail.is_some());
    }
}
