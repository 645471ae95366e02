//! What a workload gets from those who start it, and what is left of it.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use cnova_ral::{Handle, cgroup::Group};

use crate::bench::wait_for;
use crate::proc::{descriptors, run_state, tree};
use crate::verdict::ensure;
use crate::{Behaviour, Bench, Fixture, Verdict};

/// The number of `/dev/null`.
const NULL_DEVICE: (u32, u32) = (1, 3);

pub(super) fn the_environment_is_only_the_spec_s(fixture: &Fixture) -> Verdict {
    let (mut bench, case) = Bench::of(fixture, Behaviour::PrintsEnvironment)?;
    bench.spec.env.insert("CONFORMANCE".into(), "two words".into());
    let spec_env = bench.spec.env.clone();
    bench.run()?;
    let log = bench.log()?;
    let printed: BTreeSet<&str> = log.iter().map(|line| line.text.as_str()).collect();
    let wanted: BTreeSet<String> = spec_env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    for line in &wanted {
        ensure!(
            printed.contains(line.as_str()),
            "`{line}` is missing in its environment: {printed:?}"
        );
    }
    let allowed = |line: &str| wanted.contains(line) || case.lines.iter().any(|(_, l)| l == line);
    let extra: Vec<&&str> = printed.iter().filter(|line| !allowed(line)).collect();
    ensure!(extra.is_empty(), "neither the spec nor the fixture names {extra:?}");
    Ok(())
}

pub(super) fn standard_input_is_empty(fixture: &Fixture) -> Verdict {
    let (mut bench, _) = Bench::of(fixture, Behaviour::RunsForever)?;
    let state = bench.start_and_wait()?;
    for pid in tree(state.pid) {
        let path = format!("/proc/{pid}/fd/0");
        // Not there is as good.
        let Ok(meta) = fs::metadata(&path) else { continue };
        let device = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        ensure!(
            meta.file_type().is_char_device() && device == NULL_DEVICE,
            "standard input of process {pid} is {:?}",
            fs::read_link(&path)
        );
    }
    Ok(())
}

pub(super) fn no_descriptor_is_inherited(fixture: &Fixture) -> Verdict {
    let (mut bench, _) = Bench::of(fixture, Behaviour::RunsForever)?;
    let mut secret = tempfile::NamedTempFile::new()?;
    secret.write_all(b"the agent's")?;
    // Like a library that knows nothing of close-on-exec.
    rustix::io::fcntl_setfd(secret.as_file(), rustix::io::FdFlags::empty())?;
    let state = bench.start_and_wait()?;
    for pid in tree(state.pid) {
        for (number, to) in descriptors(pid) {
            ensure!(
                to != secret.path(),
                "process {pid} has descriptor {number} of the agent's {} ({})",
                to.display(),
                secret.as_file().as_raw_fd()
            );
        }
    }
    // What a runtime has for itself is not for its workload.
    for pid in tree(state.pid).into_iter().skip(1) {
        for (number, to) in descriptors(pid) {
            let own = [cnova_ral::file::LOCK, cnova_ral::file::SOCKET].map(|name| bench.dir().join(name));
            ensure!(
                !own.contains(&to),
                "process {pid} has descriptor {number} of {}",
                to.display()
            );
        }
    }
    Ok(())
}

pub(super) fn no_zombie_is_left(fixture: &Fixture) -> Verdict {
    let (mut bench, _) = Bench::of(fixture, Behaviour::RunsForever)?;
    let state = bench.start_and_wait()?;
    let mut client = bench.client()?;
    for _ in 0..20 {
        client.health()?;
        client.metrics()?;
    }
    // A probe that is a process of its own may just have ended, and is reaped soon.
    wait_for("the reaping of all ended processes below the runtime", || {
        let zombie = tree(state.pid).into_iter().any(|pid| run_state(pid) == Some('Z'));
        Ok((!zombie).then_some(()))
    })
}

pub(super) fn everything_is_in_the_control_group(fixture: &Fixture) -> Verdict {
    let (mut bench, _) = Bench::of(fixture, Behaviour::RunsForever)?;
    bench.group()?;
    let state = bench.start_and_wait()?;
    // By name alone, as an agent does after its restart.
    let group = bench.group_found_again()?;
    ensure_all_inside(&group, state.pid)?;
    let first = group.usage()?;
    ensure!(first.processes > 0, "its control group counts no process");
    ensure!(
        first.memory_bytes.is_none_or(|bytes| bytes > 0),
        "its control group counts no memory"
    );
    let grown = |next: &cnova_ral::cgroup::Usage| next.cpu_ms.is_none_or(|cpu| cpu > first.cpu_ms.unwrap_or(0));
    wait_for("CPU time in the control group", || {
        bench.client()?.metrics()?;
        Ok(grown(&group.usage()?).then_some(()))
    })?;
    bench.client()?.stop(None)?;
    bench.exit()?;
    let last = group.usage()?;
    ensure!(
        last.cpu_ms >= first.cpu_ms,
        "CPU time went back from {:?} to {:?}",
        first.cpu_ms,
        last.cpu_ms
    );
    ensure!(
        group.processes()?.is_empty(),
        "it ended, and processes {:?} are left",
        group.processes()?
    );
    Ok(())
}

fn ensure_all_inside(group: &Group, pid: u32) -> Verdict {
    let (before, inside) = (tree(pid), group.processes()?);
    // Those that ended meanwhile are in neither.
    let after = tree(pid);
    let outside: Vec<&u32> = before
        .iter()
        .filter(|p| after.contains(p) && !inside.contains(p))
        .collect();
    ensure!(
        outside.is_empty(),
        "processes {outside:?} are not in the workload's control group"
    );
    Ok(())
}

pub(super) fn nothing_survives_the_group_s_end(fixture: &Fixture) -> Verdict {
    // If the runtime itself is killed, what it started may live on; the agent then ends the group.
    let ignores = matches!(fixture.cases.get(&Behaviour::IgnoresStop), Some(Ok(_)));
    let behaviour = if ignores {
        Behaviour::IgnoresStop
    } else {
        Behaviour::RunsForever
    };
    let (mut bench, _) = Bench::of(fixture, behaviour)?;
    bench.group()?;
    let state = bench.start_and_wait()?;
    let all = tree(state.pid);
    Handle::open(&state)?.kill()?;
    bench.end()?;
    let group = bench.group_found_again()?;
    group.kill()?;
    ensure!(
        group.processes()?.is_empty(),
        "processes {:?} outlive their group's end",
        group.processes()?
    );
    let alive = |pid: &u32| run_state(*pid).is_some_and(|s| !matches!(s, 'Z' | 'X'));
    let left: Vec<&u32> = all.iter().filter(|pid| alive(pid)).collect();
    ensure!(left.is_empty(), "processes {left:?} outlive their group's end");
    group.remove()?;
    ensure!(group.folders().all(|dir| !dir.exists()), "the group cannot be removed");
    Ok(())
}
