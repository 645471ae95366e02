//! What a container cannot do.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use cnova_ral::{Device, ExitReason, Mount};
use serde_json::json;

use crate::support::{Workload, find_process, missing};

#[test]
fn root_inside_is_nobody_outside() {
    if missing(&[]) {
        return;
    }
    let mut workload = Workload::shell("id -u; cat /proc/self/uid_map; echo up; exec sleep 1000");
    workload.start_and_wait();
    workload.says("up");
    let log = workload.log();
    assert_eq!(log[0], "0");
    assert_eq!(log[1].split_whitespace().collect::<Vec<_>>(), ["0", "1000000", "65536"]);
    let pid = find_process(&workload, "sleep");
    assert_eq!(fs::metadata(format!("/proc/{pid}")).unwrap().uid(), 1_000_000);
}

#[test]
fn it_has_no_rights_and_gains_none() {
    if missing(&[]) {
        return;
    }
    let script = "grep -E '^(Cap|NoNewPrivs|Seccomp:|SigBlk|SigIgn)' /proc/self/status";
    let log = Workload::shell(script).output();
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "SigBlk"] {
        assert!(log.contains(&format!("{name}:\t0000000000000000")), "{name} {log:?}");
    }
    let ignored = log.iter().find_map(|line| line.strip_prefix("SigIgn:\t")).unwrap();
    // SIGPIPE, which programs in Rust ignore.
    assert_eq!(u64::from_str_radix(ignored, 16).unwrap() & 0x1000, 0, "{log:?}");
    assert!(
        log.contains(&"NoNewPrivs:\t1".to_owned()) && log.contains(&"Seccomp:\t2".to_owned()),
        "{log:?}"
    );
    let named = json!({"capabilities": ["NET_BIND_SERVICE"], "user": "app"});
    let log = Workload::shell(script).settings(named).output();
    for name in ["CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(log.contains(&format!("{name}:\t0000000000000400")), "{name} {log:?}");
    }
}

#[test]
fn system_calls_beyond_the_profile_fail() {
    if missing(&[]) {
        return;
    }
    let script = "mount -t tmpfs x /tmp 2>&1; unshare -U true 2>&1; mknod /tmp/n c 1 3 2>&1; hostname other 2>&1; true";
    let settings = json!({"tmpfs": [{"path": "/tmp"}], "capabilities": ["SYS_ADMIN", "MKNOD"]});
    let log = Workload::shell(script).settings(settings).output();
    let refusals = log
        .iter()
        .filter(|line| line.contains("not permitted") || line.contains("permission denied"))
        .count();
    assert_eq!(refusals, 4, "{log:?}");
    // The same with a grant: the kernel lets the root of a user namespace mount.
    let granted = json!({
        "tmpfs": [{"path": "/tmp"}], "capabilities": ["SYS_ADMIN"], "seccomp": {"allow": ["mount", "umount2"]},
    });
    let log = Workload::shell("mount -t tmpfs x /tmp && echo mounted")
        .settings(granted)
        .output();
    assert_eq!(log, ["mounted"]);
}

#[test]
fn its_root_is_read_only() {
    if missing(&[]) {
        return;
    }
    let script = "touch /x /bin/x /etc/passwd 2>&1; echo $?; stat -c %a /; cat /etc/hostname; pwd";
    let log = Workload::shell(script).settings(json!({"workdir": "/etc"})).output();
    assert_eq!(
        log.iter().filter(|line| line.contains("Read-only")).count(),
        3,
        "{log:?}"
    );
    assert_eq!(log[3..], ["1", "755", "test", "/etc"]);
}

#[test]
fn what_of_the_kernel_is_hidden_stays_hidden() {
    if missing(&[]) {
        return;
    }
    let script = "wc -c < /proc/kcore; wc -c < /proc/timer_list; ls /sys/firmware | wc -l; ls /sys/fs/cgroup | wc -l; \
        echo 1 > /proc/sys/kernel/domainname; echo h > /proc/sysrq-trigger; ls / ; ls /run 2>/dev/null | wc -l";
    let log = Workload::shell(script).output();
    // This kernel may have neither the one nor the other file; then it cannot be written either.
    let failed = ["Read-only", "denied", "nonexistent"];
    assert_eq!(
        log.iter()
            .filter(|line| failed.iter().any(|word| line.contains(word)))
            .count(),
        2,
        "{log:?}"
    );
    let numbers: Vec<&String> = log.iter().filter(|line| line.parse::<u32>().is_ok()).collect();
    assert!(numbers.iter().all(|line| *line == "0"), "{log:?}");
}

#[test]
fn it_sees_its_own_processes_only() {
    if missing(&[]) {
        return;
    }
    let log = Workload::shell("echo $$; ls /proc | grep -cE '^[0-9]+$'; env").output();
    assert_eq!(log[0], "1");
    assert!(log[1].parse::<u32>().unwrap() < 6, "{log:?}");
    let names: Vec<&str> = log[2..].iter().filter_map(|line| line.split('=').next()).collect();
    for name in &names {
        assert!(
            ["PATH", "HOSTNAME", "HOME", "FROM_IMAGE", "PWD", "SHLVL", "_"].contains(name),
            "{names:?}"
        );
    }
}

#[test]
fn nothing_of_the_shim_is_open_in_it() {
    if missing(&[]) {
        return;
    }
    // Three streams; the folder that `ls` itself reads is closed when it looks.
    let log = Workload::shell("ls -l /proc/self/fd 2>/dev/null | grep -c -e '->'").output();
    assert_eq!(log, ["3"]);
}

#[test]
fn processes_are_counted() {
    if missing(&[]) {
        return;
    }
    let script = "i=0; while [ $i -lt 40 ]; do sleep 5 & i=$((i+1)); done 2>&1; echo made all";
    let mut workload = Workload::shell(script).settings(json!({"pids": 16}));
    workload.run();
    let log = workload.log();
    assert!(log.iter().any(|line| line.contains("fork")), "{log:?}");
    assert!(!log.contains(&"made all".to_owned()), "{log:?}");
}

#[test]
fn a_volume_keeps_what_is_written_and_the_rest_is_not_writable() {
    if missing(&[]) {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let secret = data.path().join("secret");
    fs::write(&secret, "s3cret").unwrap();
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let volume = data.path().join("volume");
    fs::create_dir(&volume).unwrap();
    let mount = |guest: &str, host: PathBuf, writable| Mount {
        guest: guest.into(),
        host,
        writable,
    };
    let mounts = vec![
        mount("/data", volume.clone(), true),
        mount("/etc/secret", secret, false),
    ];
    let script = "cat /etc/secret; echo; echo one >> /data/log; wc -l < /data/log; echo x > /etc/secret; id -u";
    for (attempt, user) in [(1, "app"), (2, "app"), (3, "root")] {
        let settings = json!({"user": user});
        let mut workload = Workload::shell(script)
            .settings(settings)
            .with(|spec| spec.mounts = mounts.clone());
        let log = workload.output();
        // Only root reads what only root may read; without the capability it does not write what is another's.
        assert_eq!(log.contains(&"s3cret".to_owned()), user == "root", "{log:?}");
        assert!(log.contains(&attempt.min(2).to_string()), "{log:?}");
        assert!(
            log.iter()
                .any(|line| line.contains("Read-only") || line.contains("denied")),
            "{log:?}"
        );
    }
    assert_eq!(fs::read_to_string(volume.join("log")).unwrap(), "one\none\n");
    // The ids on the disk are the container's own, so that they stay right when its range changes.
    assert_eq!(fs::metadata(volume.join("log")).unwrap().uid(), 1000);
}

#[test]
fn folders_in_memory_are_bounded() {
    if missing(&[]) {
        return;
    }
    let script = "dd if=/dev/zero of=/scratch/a bs=64k count=64 2>&1 | grep -c 'No space'; id -u > /scratch/b 2>/dev/null; stat -c %u /scratch";
    let settings = json!({"tmpfs": [{"path": "/scratch", "bytes": 1 << 20}], "user": "1000"});
    let log = Workload::shell(script).settings(settings).output();
    assert_eq!(log, ["1", "1000"]);
}

#[test]
fn only_leased_devices_are_there() {
    if missing(&[]) {
        return;
    }
    // A node like /dev/full under a name of its own, such as a driver's would be.
    let node = PathBuf::from(format!("/dev/cnova-test-{}", std::process::id()));
    let number = rustix::fs::makedev(1, 7);
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &node,
        rustix::fs::FileType::CharacterDevice,
        mode,
        number,
    )
    .unwrap();
    let script = format!("ls /dev; test -c {0} && echo there; echo x > {0}", node.display());
    let lease = Device {
        name: "full0".into(),
        kind: String::new(),
        nodes: vec![node.clone()],
    };
    // Of the user, who alone may use it.
    let mut with = Workload::shell(&script)
        .settings(json!({"user": "app"}))
        .with(|spec| spec.devices = vec![lease]);
    let mut without = Workload::shell(&script);
    let codes = [with.run().code, without.run().code];
    fs::remove_file(&node).unwrap();
    assert!(with.log().contains(&"there".to_owned()), "{:?}", with.log());
    assert!(
        with.log().iter().any(|line| line.contains("No space left")),
        "{:?} {codes:?}",
        with.log()
    );
    let log = without.log();
    assert!(
        !log.contains(&"there".to_owned()) && log.contains(&"null".to_owned()),
        "{log:?}"
    );
    for hidden in ["kmsg", "mem", "sda", "vda"] {
        assert!(!log.contains(&hidden.to_owned()), "{log:?}");
    }
    let wrong = Device {
        name: "npu".into(),
        kind: String::new(),
        nodes: vec!["/etc/passwd".into()],
    };
    let exit = Workload::shell("true").with(|spec| spec.devices = vec![wrong]).run();
    assert_eq!(exit.reason, ExitReason::Refused);
    assert!(exit.detail.unwrap().contains("npu"));
}

#[test]
fn a_share_of_the_cpu_is_enforced() {
    if missing(&[]) {
        return;
    }
    let mut workload = Workload::shell("echo up; while :; do :; done").with(|spec| spec.limits.cpu_millis = 100);
    workload.start_and_wait();
    workload.says("up");
    crate::support::wait_for(|| (workload.metrics().counters["throttled_periods"] > 0.0).then_some(()));
}
