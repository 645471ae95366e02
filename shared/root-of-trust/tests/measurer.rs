//! Measured launch against swtpm: the log on disk and the register always prove each other, whatever dies in between.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, thread};

use cnova_attestation::event_log::{Event, Launch, Log, Standing, replay};
use cnova_root_of_trust::measurer::{MeasureError, Measurer, Program};
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
