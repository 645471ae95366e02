//! Measured launch against swtpm: the log on disk and the register always prove each other, whatever dies in between.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, thread};

use cnova_attestation::event_log::{self, Event, Launch, Log, Standing, replay};
use cnova_root_of_trust::measurer::{MeasureError, Measurer, Program, WAITING_MAX};
use cnova_root_of_trust::testing::Swtpm;
use cnova_root_of_trust::tpm::EkKind;
use cnova_root_of_trust::{RootError, RootOfTrust, Tpm, TpmConfig};
use cnova_shared::ids::Digest;

mod support;
use support::start;

const PCR: u8 = 14;

fn program(boot: &str) -> Program {
    Program {
        digest: Digest::of(b"agent"),
        version: "1.0".into(),
        boot: boot.into(),
    }
}

fn launch(name: &str) -> Launch {
    Launch {
        workload: format!("app/{name}"),
        artifact: Digest::of(name.as_bytes()),
        spec: Digest::of(b"spec"),
        runtime: Digest::of(b"runtime"),
    }
}

fn quick(swtpm: &Swtpm) -> TpmConfig {
    TpmConfig {
        answer_limit: Duration::from_secs(2),
        ..swtpm.config()
    }
}

struct Bench {
    swtpm: Swtpm,
    tpm: Arc<Tpm>,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Option<Self> {
        let swtpm = start(EkKind::P384)?;
        let tpm = Arc::new(Tpm::open(quick(&swtpm)).unwrap());
        let folder = tempfile::tempdir().unwrap();
        Some(Self { swtpm, tpm, folder })
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("launch.log")
    }

    fn open(&self, boot: &str) -> (Measurer, Option<MeasureError>) {
        Measurer::open(&self.path(), self.tpm.clone(), PCR, program(boot)).unwrap()
    }

    /// What the log on disk says, compared with the register.
    fn standing(&self) -> (u64, Standing) {
        let (log, torn) = Log::read(&fs::read(self.path()).unwrap());
        assert_eq!(torn, None);
        let register = self.tpm.read_pcrs(&[PCR]).unwrap()[&PCR];
        (log.count(), log.against(&register))
    }
}

fn events(path: &Path) -> usize {
    let (log, _) = Log::read(&fs::read(path).unwrap());
    usize::try_from(log.count()).unwrap()
}

#[test]
fn every_new_launch_is_logged_and_extended_once() {
    let Some(bench) = Bench::new() else { return };
    let (measurer, problem) = bench.open("boot-1");
    assert!(problem.is_none(), "{problem:?}");
    assert_eq!(bench.standing(), (1, Standing::Same), "the agent itself comes first");
    for name in ["a", "b", "a", "a"] {
        measurer.measure(launch(name)).unwrap();
    }
    assert_eq!(
        bench.standing(),
        (3, Standing::Same),
        "what was measured since boot costs nothing"
    );

    // The agent is restarted: the same log goes on, and it is in it again.
    drop(measurer);
    let (measurer, problem) = bench.open("boot-1");
    assert!(problem.is_none(), "{problem:?}");
    measurer.measure(launch("a")).unwrap();
    measurer.measure(launch("c")).unwrap();
    assert_eq!(bench.standing(), (5, Standing::Same));

    let (slice, register) = measurer
        .with_slice(None, |tpm| Ok(tpm.read_pcrs(&[PCR])?[&PCR]))
        .unwrap();
    assert_eq!((slice.total, slice.entries.len()), (5, 5));
    assert_eq!(
        replay(&Digest([0; 32]), &slice.entries),
        register,
        "whoever replays it gets the register"
    );
}

#[test]
fn another_boot_of_the_machine_begins_another_log() {
    let Some(mut bench) = Bench::new() else { return };
    let (measurer, _) = bench.open("boot-1");
    measurer.measure(launch("a")).unwrap();
    drop(measurer);
    bench.swtpm.reboot();
    let (measurer, problem) = bench.open("boot-2");
    assert!(problem.is_none(), "{problem:?}");
    assert_eq!(bench.standing(), (1, Standing::Same));
    measurer.measure(launch("a")).unwrap();
    assert_eq!(
        bench.standing(),
        (2, Standing::Same),
        "measured anew: the register knows nothing of before"
    );
}

#[test]
fn what_was_logged_and_not_extended_is_made_up_for() {
    let Some(bench) = Bench::new() else { return };
    let (measurer, _) = bench.open("boot-1");
    drop(measurer);
    // Killed between the sync and the extension: as the measurer does it, by hand.
    let (log, _) = Log::read(&fs::read(bench.path()).unwrap());
    let prepared = log.prepare(Event::Launch(launch("a"))).unwrap();
    let mut file = fs::read(bench.path()).unwrap();
    file.extend_from_slice(&prepared.record);
    fs::write(bench.path(), &file).unwrap();
    assert!(matches!(bench.standing(), (2, Standing::Pending(_))));

    let (measurer, problem) = bench.open("boot-1");
    assert!(problem.is_none(), "{problem:?}");
    measurer.measure(launch("a")).unwrap();
    assert_eq!(
        bench.standing(),
        (3, Standing::Same),
        "the agent's start, and nothing twice"
    );
}

#[test]
fn a_torn_end_is_cut_off() {
    let Some(bench) = Bench::new() else { return };
    let (measurer, _) = bench.open("boot-1");
    measurer.measure(launch("a")).unwrap();
    drop(measurer);
    let good = fs::read(bench.path()).unwrap();
    fs::write(bench.path(), [good.as_slice(), &[0, 0, 0, 90, 1, 2]].concat()).unwrap();
    let (measurer, problem) = bench.open("boot-1");
    assert!(problem.is_none(), "{problem:?}");
    measurer.measure(launch("b")).unwrap();
    assert_eq!(bench.standing(), (4, Standing::Same));
}

#[test]
fn a_log_or_a_register_that_was_tampered_with_is_said_and_stays_wrong() {
    let Some(bench) = Bench::new() else { return };
    let (measurer, _) = bench.open("boot-1");
    measurer.measure(launch("a")).unwrap();
    drop(measurer);
    // Somebody extends the register behind the log's back.
    bench.tpm.extend(PCR, &Digest::of(b"hidden")).unwrap();
    let (measurer, problem) = bench.open("boot-1");
    assert!(
        matches!(problem, Some(MeasureError::Differs { pcr: PCR })),
        "{problem:?}"
    );
    let refused = measurer.measure(launch("b"));
    assert!(matches!(refused, Err(MeasureError::Differs { .. })), "{refused:?}");
    assert_eq!(events(&bench.path()), 2, "nothing is added to what proves nothing");
    // Evidence can still be given: the verifier sees for itself.
    assert_eq!(measurer.with_slice(None, |_| Ok(())).unwrap().0.total, 2);
}

#[test]
fn while_the_tpm_does_not_answer_launches_wait_in_order_and_are_logged_later() {
    let Some(bench) = Bench::new() else { return };
    let (measurer, _) = bench.open("boot-1");
    bench.swtpm.stop_answering();
    let refused = measurer.measure(launch("a"));
    assert!(
        matches!(refused, Err(MeasureError::Tpm(RootError::NoAnswer { .. }))),
        "{refused:?}"
    );
    // It is not asked again for a while: a start must not cost seconds each.
    let refused = measurer.measure(launch("b"));
    assert!(matches!(refused, Err(MeasureError::Pausing)), "{refused:?}");
    bench.swtpm.resume();
    let mut done = measurer.measure(launch("c"));
    for _ in 0..200 {
        if done.is_ok() {
            break;
        }
        thread::sleep(Duration::from_millis(100));
        done = measurer.measure(launch("c"));
    }
    done.unwrap();
    assert_eq!(bench.standing(), (4, Standing::Same), "a, b and c, each once");
}

#[test]
fn a_tpm_that_is_dead_when_the_agent_starts_is_asked_later() {
    let Some(mut bench) = Bench::new() else { return };
    bench.swtpm.kill();
    let (measurer, problem) = bench.open("boot-1");
    assert!(matches!(problem, Some(MeasureError::Tpm(_))), "{problem:?}");
    assert!(measurer.measure(launch("a")).is_err());
    bench.swtpm.restart();
    for _ in 0..200 {
        if measurer.measure(launch("b")).is_ok() {
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(bench.standing(), (3, Standing::Same), "the agent, a and b");
}

/// What the log on disk says was launched and by which program, in its order.
fn told(path: &Path) -> Vec<String> {
    let bytes = fs::read(path).unwrap();
    let words = event_log::events(&bytes).map(|event| match event {
        Event::Boot(boot) => format!("boot by {}", boot.version),
        Event::Agent { version, .. } => format!("agent {version}"),
        Event::Launch(launch) => launch.workload,
        Event::Unknown => "unknown".into(),
    });
    words.collect()
}

fn another(version: &str) -> Program {
    Program {
        digest: Digest::of(version.as_bytes()),
        version: version.into(),
        ..program("boot-1")
    }
}

fn catch_up(measurer: &Measurer) {
    for _ in 0..200 {
        if measurer.catch_up().is_ok() {
            return;
        }
        thread::sleep(Duration::from_millis(100));
    }
    panic!("it is still behind");
}

#[test]
fn what_waits_for_a_silent_tpm_outlives_a_crash() {
    let Some(bench) = Bench::new() else { return };
    let (measurer, _) = bench.open("boot-1");
    bench.swtpm.stop_answering();
    assert!(measurer.measure(launch("a")).is_err());
    assert!(measurer.measure(launch("b")).is_err());
    assert!(measurer.is_behind());
    // The agent is killed, and again after it has launched something more.
    drop(measurer);
    for name in ["c", "d"] {
        let (measurer, problem) = bench.open("boot-1");
        assert!(problem.is_some() && measurer.is_behind());
        assert!(measurer.measure(launch(name)).is_err());
    }
    bench.swtpm.resume();
    let (measurer, _) = bench.open("boot-1");
    // Nothing is proven before all of it is in the log.
    catch_up(&measurer);
    assert!(!measurer.is_behind());
    assert_eq!(
        told(&bench.path()),
        ["boot by 1.0", "app/a", "app/b", "agent 1.0", "app/c", "app/d"]
    );
    assert_eq!(bench.standing(), (6, Standing::Same));
    // And only once.
    drop(measurer);
    let (measurer, problem) = bench.open("boot-1");
    assert!(problem.is_none(), "{problem:?}");
    for name in ["a", "b", "c", "d"] {
        measurer.measure(launch(name)).unwrap();
    }
    assert_eq!(bench.standing(), (7, Standing::Same), "the agent's start alone");
}

#[test]
fn a_program_that_never_saw_the_tpm_is_in_the_log_all_the_same() {
    let Some(mut bench) = Bench::new() else { return };
    bench.swtpm.kill();
    for (version, name) in [("1.1", "a"), ("1.2", "b")] {
        let (measurer, problem) = Measurer::open(&bench.path(), bench.tpm.clone(), PCR, another(version)).unwrap();
        assert!(problem.is_some());
        assert!(measurer.measure(launch(name)).is_err());
    }
    bench.swtpm.restart();
    let (measurer, _) = Measurer::open(&bench.path(), bench.tpm.clone(), PCR, another("1.3")).unwrap();
    catch_up(&measurer);
    assert_eq!(
        told(&bench.path()),
        ["boot by 1.1", "app/a", "agent 1.2", "app/b", "agent 1.3"]
    );
    assert_eq!(bench.standing(), (5, Standing::Same));
    // Of another boot nothing waits: it ended with it.
    drop(measurer);
    bench.swtpm.kill();
    let (measurer, _) = bench.open("boot-1");
    assert!(measurer.measure(launch("c")).is_err());
    drop(measurer);
    bench.swtpm.restart();
    let (measurer, _) = bench.open("boot-2");
    catch_up(&measurer);
    assert_eq!(told(&bench.path()), ["boot by 1.0"]);
}

#[test]
fn what_cannot_be_written_down_is_not_to_be_launched() {
    let Some(bench) = Bench::new() else { return };
    // A disk that takes no byte.
    std::os::unix::fs::symlink("/dev/full", bench.folder.path().join("launch.waiting")).unwrap();
    let (measurer, problem) = bench.open("boot-1");
    assert!(problem.is_none(), "{problem:?}");
    bench.swtpm.stop_answering();
    let first = measurer.measure(launch("a"));
    assert!(
        matches!(first, Err(MeasureError::Tpm(_))),
        "it is in the log itself: {first:?}"
    );
    let refused = measurer.measure(launch("b"));
    assert!(matches!(refused, Err(MeasureError::Unrecorded { .. })), "{refused:?}");
    let said = refused.unwrap_err().to_string();
    assert!(
        said.contains("launch.waiting") && said.contains("No space left"),
        "{said}"
    );
    bench.swtpm.resume();
    catch_up(&measurer);
    assert_eq!(told(&bench.path()), ["boot by 1.0", "app/a"]);
    measurer.measure(launch("b")).unwrap();
    assert_eq!(bench.standing(), (3, Standing::Same));
}

#[test]
fn more_than_can_wait_is_refused() {
    let Some(bench) = Bench::new() else { return };
    let (measurer, _) = bench.open("boot-1");
    bench.swtpm.stop_answering();
    // The first is in the log itself.
    for i in 0..=WAITING_MAX {
        let waits = measurer.measure(launch(&i.to_string()));
        assert!(
            !matches!(waits, Ok(()) | Err(MeasureError::Unrecorded { .. })),
            "{i}: {waits:?}"
        );
    }
    let refused = measurer.measure(launch("one too many"));
    assert!(matches!(refused, Err(MeasureError::Unrecorded { .. })), "{refused:?}");
    // What waits already may be launched again.
    assert!(!matches!(
        measurer.measure(launch("7")),
        Err(MeasureError::Unrecorded { .. })
    ));
    bench.swtpm.resume();
    catch_up(&measurer);
    assert_eq!(bench.standing(), (WAITING_MAX as u64 + 2, Standing::Same));
}
