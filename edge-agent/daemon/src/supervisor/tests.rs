//! The order of attempts, without processes: no runtime is installed, so that a start ends at once with a reason.

use cnova_shared::twin::Version;
use cnova_shared::wire::v1::{self, Artifact, Grants, Restart, RestartPolicy, Workload};
use cnova_store::Artifacts;

use super::*;
use crate::catalog::Catalog;
use crate::folders::Folders;
use crate::groups::Groups;
use crate::hardware::Hardware;

fn workload() -> Workload {
    let digest = Digest::of(b"w");
    Workload {
        id: "app/w".parse().unwrap(),
        app_generation: 1,
        runtime: "absent".into(),
        source: digest,
        artifact: Artifact { digest, size: 1 },
        files: Vec::new(),
        args: Vec::new(),
        env: BTreeMap::new(),
        memory_bytes: 1,
        cpu_millis: 1,
        log_bytes: 1,
        wall_seconds: None,
        grants: Grants::default(),
        restart: Restart {
            policy: RestartPolicy::Always,
            backoff_min_ms: 1,
            backoff_max_ms: 1,
            crash_loop_after: 1,
        },
        stop_grace_ms: 1,
        priority: 1,
        settings: String::new(),
        parts: Vec::new(),
        volumes: Vec::new(),
        needs: Vec::new(),
        accelerators: Vec::new(),
        devices: Vec::new(),
        schedule: None,
        power: v1::PowerLevel::default(),
        health: v1::Health::default(),
        on_bad_update: v1::OnBadUpdate::default(),
        trust: v1::TrustRequirement::default(),
        provenance: Vec::new(),
        attestation: None,
        secrets: Vec::new(),
    }
}

fn supervisor(dir: &Path) -> (Supervisor, mpsc::Receiver<Said>) {
    let (said, events) = mpsc::channel(8);
    let ground = Ground {
        run_dir: dir.join("run"),
        folders: Folders {
            cache: dir.join("cache"),
            volumes: dir.join("volumes"),
        },
        catalog: Catalog::default(),
        artifacts: Arc::new(Artifacts::open(&dir.join("artifacts"), 1 << 20).unwrap()),
        groups: Groups::find(dir, Some("../none")).0,
        hardware: Hardware::new(dir.to_owned(), Vec::new()).0,
        witness: None,
        chest: Arc::default(),
    };
    let times = Times {
        start: Duration::from_secs(1),
        prepare: Duration::from_secs(1),
    };
    (Supervisor::new(ground, times, None, said), events)
}

fn id(attempt: u32) -> InstanceId {
    InstanceId {
        workload: "app/w".parse().unwrap(),
        attempt,
    }
}

fn start(supervisor: &Supervisor, attempt: u32) {
    supervisor.start(Box::new(Launch {
        secrets: Vec::new(),
        workload: workload(),
        version: Version::default(),
        attempt,
        spec: Digest::of(b"w"),
        accelerators: Vec::new(),
    }));
}

/// The attempt that ended, and how.
async fn ended(events: &mut mpsc::Receiver<Said>) -> (u32, String) {
    match timeout(KILL_MAX, events.recv()).await {
        Ok(Some(Said::Event {
            id,
            event: RuntimeEvent::Exited { detail, .. },
        })) => (id.attempt, detail),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_attempt_starts_only_when_the_older_ones_have_ended() {
    let dir = tempfile::tempdir().unwrap();
    let (supervisor, mut events) = supervisor(dir.path());
    for older in [1, 2] {
        assert!(supervisor.inner.track(&id(older), true).is_some());
    }
    start(&supervisor, 3);
    for older in [1, 2] {
        assert!(timeout(Duration::from_millis(50), events.recv()).await.is_err());
        supervisor.inner.over(id(older), true, "gone".into(), None).await;
        assert_eq!(ended(&mut events).await, (older, "gone".into()));
    }
    assert_eq!(
        ended(&mut events).await,
        (3, "runtime absent is not installed here".into())
    );
}

#[tokio::test]
async fn an_attempt_that_waits_can_be_stopped_and_does_not_wait_for_newer_ones() {
    let dir = tempfile::tempdir().unwrap();
    let (supervisor, mut events) = supervisor(dir.path());
    assert!(supervisor.inner.track(&id(1), true).is_some());
    start(&supervisor, 2);
    tokio::task::yield_now().await;
    supervisor.stop(id(2), 0);
    let stopped = (2, "it was stopped before it was started".to_owned());
    assert_eq!(ended(&mut events).await, stopped);
    // Told before it had a chance to begin.
    start(&supervisor, 0);
    supervisor.stop(id(0), 0);
    assert_eq!(ended(&mut events).await, (0, stopped.1));
    start(&supervisor, 0);
    assert_eq!(
        ended(&mut events).await,
        (0, "runtime absent is not installed here".into())
    );
}
