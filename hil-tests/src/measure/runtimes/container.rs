//! Containers: our runtime beside `runc run` and `crun run`, on the same unpacked layer, with the same namespaces, ids,
//! filter, mounts and limits.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use cnova_oci::testing::{BuiltImage, ImageBuilder, LayerBuilder};
use cnova_ral::cgroup::{Group, Parent};
use cnova_ral::{Spec, spawn_in, write_spec};
use serde_json::json;

use super::super::table::Table;
use super::super::wrong;
use super::bundle::Bundle;
use super::contest::{Lap, Laps, beside, median, rows};
use super::processes::{Held, held, program};
use super::{GROUPS, Options};
use crate::demo::DemoError;

/// Runs with nothing unpacked.
const COLD_ROUNDS: usize = 5;
/// Runs in which memory is read.
const MEMORY_ROUNDS: usize = 5;
/// How long a container may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a container is left alone before its memory is read.
const SETTLE: Duration = Duration::from_millis(500);
/// Prints the time and ends; with an argument it stays.
const STAMP: &str = r#"#include <stdio.h>
#include <time.h>
#include <unistd.h>
int main(int count, char **words) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    printf("%lld%09ld\n", (long long)now.tv_sec, now.tv_nsec);
    fflush(stdout);
    while (count > 1 && words[1]) pause();
    return 0;
}
"#;

/// The program of the measured container.
pub(super) const PROGRAM: &str = "/stamp";

/// Who makes the container.
enum Maker {
    /// An executable of ours.
    Ours(PathBuf),
    /// An OCI runtime.
    Oci(&'static str),
}

struct Bench<'a> {
    dir: PathBuf,
    spec: Spec,
    groups: &'a Parent,
    bundle: Bundle,
    laps: usize,
}

pub(super) fn measure(options: &Options, groups: &Parent, table: &mut Table) -> Result<(), DemoError> {
    let (makers, names) = makers(options);
    let ours = match makers.first() {
        Some(Maker::Ours(path)) if path.exists() => path.clone(),
        _ => return Err(wrong("there is no cnova-runtime-container in --bin")),
    };
    let dir = options.dir.join("containers");
    let image = image(&dir)?;
    let spec = spec(&dir, &image)?;
    cold(&dir, &ours, &spec, groups, table)?;
    let bundle = Bundle::make(&dir.join("bundle"), &ours, &spec)?;
    let mut bench = Bench {
        dir,
        spec,
        groups,
        bundle,
        laps: 0,
    };
    let (makers, names) = bench.able(makers, names, table);
    let mut all: Vec<Laps> = names.iter().map(|name| Laps::of(name)).collect();
    for _ in 0..options.rounds {
        for (maker, laps) in makers.iter().zip(&mut all) {
            laps.laps.push(bench.lap(maker)?);
        }
    }
    let rounds = options.rounds;
    let how = format!(
        "medians of {rounds} rounds in turns; layers unpacked; read-only root, user namespace, the same seccomp filter, \
         mounts and limits; the OCI runtimes find the overlay mounted, ours verifies the image and mounts it"
    );
    rows(table, "container", &all, &how);
    bench.memory(&makers, &names, table)
}

/// Ours first: every other one is compared with it.
fn makers(options: &Options) -> (Vec<Maker>, Vec<String>) {
    let mut makers = Vec::new();
    let mut names = Vec::new();
    let dynamic = options.bin.join("cnova-runtime-container");
    if let Some(path) = &options.container_static {
        makers.push(Maker::Ours(path.clone()));
        names.push("ours (static)".to_owned());
    }
    if dynamic.exists() {
        makers.push(Maker::Ours(dynamic));
        names.push("ours (dynamic)".to_owned());
    }
    for (command, word) in [("crun", "crun"), ("runc", "runc")] {
        if let Some(version) = version(command) {
            makers.push(Maker::Oci(word));
            names.push(format!("{command} {version}"));
        }
    }
    (makers, names)
}

fn version(command: &str) -> Option<String> {
    let out = Command::new(command).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    text.lines().next()?.split(' ').nth(2).map(str::to_owned)
}

/// Busybox and a program that prints the time.
pub(super) fn image_builder(dir: &Path) -> Result<ImageBuilder, DemoError> {
    fs::create_dir_all(dir).map_err(wrong)?;
    let (source, built) = (dir.join("stamp.c"), dir.join("stamp"));
    fs::write(&source, STAMP).map_err(wrong)?;
    let status = Command::new("cc")
        .args(["-static", "-O2", "-s", "-o"])
        .args([&built, &source])
        .status()
        .map_err(|e| wrong(format!("cc (Debian: gcc, libc6-dev): {e}")))?;
    if !status.success() {
        return Err(wrong(format!("cc -static ended with {status}")));
    }
    let layer = LayerBuilder::new()
        .busybox(&["sh", "sleep", "cat", "ls"])
        .map_err(|e| wrong(format!("busybox (Debian: busybox-static): {e}")))?
        .file(
            PROGRAM.trim_start_matches('/'),
            0o755,
            &fs::read(&built).map_err(wrong)?,
        );
    Ok(ImageBuilder::new()
        .layer(layer)
        .config(json!({"Entrypoint": [PROGRAM]})))
}

fn image(dir: &Path) -> Result<BuiltImage, DemoError> {
    let image = image_builder(dir)?.build();
    let blobs = dir.join("blobs");
    fs::create_dir_all(&blobs).map_err(wrong)?;
    image.write_blobs(&blobs).map_err(wrong)?;
    Ok(image)
}

fn spec(dir: &Path, image: &BuiltImage) -> Result<Spec, DemoError> {
    let path = |digest: &cnova_oci::Digest| dir.join("blobs").join(digest.hex());
    let parts: Vec<_> = image
        .parts
        .iter()
        .map(|digest| json!({"digest": digest.to_string(), "path": path(digest)}))
        .collect();
    serde_json::from_value(json!({
        "ral": 1, "workload": "measured", "artifact": path(&image.digest), "digest": image.digest.to_string(),
        "parts": parts, "cache": dir.join("cache"), "limits": {"memory_bytes": 64 << 20}, "stop_grace_ms": 100,
    }))
    .map_err(wrong)
}

/// With the layer still packed; it is left unpacked.
fn cold(dir: &Path, ours: &Path, spec: &Spec, groups: &Parent, table: &mut Table) -> Result<(), DemoError> {
    let mut first = Vec::new();
    for _ in 0..COLD_ROUNDS {
        match fs::remove_dir_all(dir.join("cache")) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(wrong(e)),
            _ => {}
        }
        let group = Group::create(groups, "cold").map_err(wrong)?;
        first.push(run_ours(&dir.join("state"), ours, spec, &group)?.first);
        group.remove().map_err(wrong)?;
    }
    table.add(
        "container: start -> first instruction, layer not unpacked yet",
        format!("{:.2} ms", median(&first)),
        &format!("ours only, median of {COLD_ROUNDS}; one gzipped layer of 2 MB: verified, unpacked, ids shifted"),
    );
    Ok(())
}

pub(super) fn now_ns() -> Result<u128, DemoError> {
    Ok(SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_err(wrong)?
        .as_nanos())
}

fn run_ours(state: &Path, exe: &Path, spec: &Spec, group: &Group) -> Result<Lap, DemoError> {
    let _ = fs::remove_dir_all(state);
    write_spec(state, spec).map_err(wrong)?;
    let begin = now_ns()?;
    let mut child = spawn_in(exe, state, Some(group)).map_err(wrong)?;
    let status = child.wait().map_err(wrong)?;
    let end = now_ns()?;
    if !status.success() {
        let exit = cnova_ral::read_exit(state).ok().flatten();
        return Err(wrong(format!("{} ended with {status}: {exit:?}", exe.display())));
    }
    lap(begin, end, stamp(&said(state)), group)
}

/// What a workload of ours has printed so far.
pub(super) fn said(state: &Path) -> String {
    let lines = cnova_ral::tail_log(state, 4096).unwrap_or_default();
    lines.into_iter().map(|line| line.text).collect::<Vec<_>>().join("\n")
}

pub(super) fn stamp(text: &str) -> Option<u128> {
    text.lines().next()?.trim().parse().ok()
}

/// A lap from its two ends and the program's own word.
pub(super) fn lap(begin: u128, end: u128, first: Option<u128>, group: &Group) -> Result<Lap, DemoError> {
    let first = first.ok_or_else(|| wrong("the program did not say when it began"))?;
    let usage = group.usage().map_err(wrong)?;
    let ms = |at: u128| at.saturating_sub(begin) as f64 / 1e6;
    Ok(Lap {
        first: ms(first),
        gone: ms(end),
        cpu: cpu_ms(group),
        group_peak: usage.memory_peak.unwrap_or(0) as f64 / 1024.0,
    })
}

/// CPU time of a group, finer than what the agent reports.
fn cpu_ms(group: &Group) -> f64 {
    let read = |path: PathBuf| fs::read_to_string(path).ok();
    let v1 = |dir: &Path| {
        read(dir.join("cpuacct.usage"))?
            .trim()
            .parse::<f64>()
            .ok()
            .map(|ns| ns / 1e6)
    };
    let v2 = |dir: &Path| {
        let text = read(dir.join("cpu.stat"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
        line.parse::<f64>().ok().map(|us| us / 1e3)
    };
    group
        .folders()
        .find_map(|dir| v1(dir).or_else(|| v2(dir)))
        .unwrap_or(f64::NAN)
}

impl Bench<'_> {
    fn group(&mut self) -> Result<(Group, String), DemoError> {
        self.laps += 1;
        let name = format!("lap-{}", self.laps);
        Ok((Group::create(self.groups, &name).map_err(wrong)?, name))
    }

    /// Those that make a container here, after one lap that is not counted; why not the others is a row.
    fn able(&mut self, makers: Vec<Maker>, names: Vec<String>, table: &mut Table) -> (Vec<Maker>, Vec<String>) {
        let mut able = (Vec::new(), Vec::new());
        for (maker, name) in makers.into_iter().zip(names) {
            match self.lap(&maker) {
                Ok(_) => {
                    able.0.push(maker);
                    able.1.push(name);
                }
                Err(error) => table.add(&format!("container by {name}"), "not compared", &error.to_string()),
            }
        }
        able
    }

    fn lap(&mut self, maker: &Maker) -> Result<Lap, DemoError> {
        let (group, name) = self.group()?;
        let lap = match maker {
            Maker::Ours(exe) => run_ours(&self.dir.join("state"), exe, &self.spec, &group)?,
            Maker::Oci(runtime) => {
                let (begin, mut child) = self.start_oci(runtime, &name, &group, &[PROGRAM])?;
                let status = child.wait().map_err(wrong)?;
                let end = now_ns()?;
                if !status.success() {
                    return Err(wrong(format!("{runtime} ended with {status}: {}", self.printed())));
                }
                lap(begin, end, stamp(&self.printed()), &group)?
            }
        };
        end(&group)?;
        Ok(lap)
    }

    fn start_oci(&self, runtime: &str, name: &str, group: &Group, words: &[&str]) -> Result<(u128, Child), DemoError> {
        self.bundle.tell(words, &format!("/{GROUPS}/{name}/container"))?;
        let printed = File::create(self.dir.join("printed")).map_err(wrong)?;
        let mut command = self.bundle.command(runtime, name);
        command.stdout(printed.try_clone().map_err(wrong)?).stderr(printed);
        group.enter_command(&mut command).map_err(wrong)?;
        let begin = now_ns()?;
        Ok((begin, command.spawn().map_err(wrong)?))
    }

    fn printed(&self) -> String {
        fs::read_to_string(self.dir.join("printed")).unwrap_or_default()
    }

    /// What the runtimes' own processes hold while their container runs.
    fn memory(&mut self, makers: &[Maker], names: &[String], table: &mut Table) -> Result<(), DemoError> {
        let mut all: Vec<Vec<Held>> = vec![Vec::new(); makers.len()];
        for _ in 0..MEMORY_ROUNDS {
            for (maker, held) in makers.iter().zip(&mut all) {
                held.push(self.hold(maker)?);
            }
        }
        let of = |value: fn(&Held) -> u64| -> Vec<(String, Vec<f64>)> {
            let values = |held: &Vec<Held>| held.iter().map(|held| value(held) as f64).collect();
            names.iter().cloned().zip(all.iter().map(values)).collect()
        };
        let how = format!(
            "median of {MEMORY_ROUNDS} containers that run on, half a second after they began; the runtime's own processes \
             (ours: two), not the container's"
        );
        table.add(
            "container: peak RSS of the largest process",
            beside(&of(|held| held.peak), "KiB"),
            &how,
        );
        table.add(
            "container: PSS while it runs, all processes",
            beside(&of(|held| held.pss), "KiB"),
            &how,
        );
        Ok(())
    }

    fn hold(&mut self, maker: &Maker) -> Result<Held, DemoError> {
        let (group, name) = self.group()?;
        let state = self.dir.join("state");
        let mut child = match maker {
            Maker::Ours(exe) => {
                let mut spec = self.spec.clone();
                spec.args = vec!["stay".into()];
                let _ = fs::remove_dir_all(&state);
                write_spec(&state, &spec).map_err(wrong)?;
                spawn_in(exe, &state, Some(&group)).map_err(wrong)?
            }
            Maker::Oci(runtime) => self.start_oci(runtime, &name, &group, &[PROGRAM, "stay"])?.1,
        };
        let ours = matches!(maker, Maker::Ours(_));
        let begin = Instant::now();
        let up = || stamp(&if ours { said(&state) } else { self.printed() }).is_some();
        while !up() && begin.elapsed() < PATIENCE {
            sleep(Duration::from_millis(2));
        }
        sleep(SETTLE);
        let mut pids = group.processes().map_err(wrong)?;
        let before = pids.len();
        pids.retain(|pid| program(*pid) != PROGRAM);
        let held = held(&pids);
        let alone = before == pids.len();
        group.kill().map_err(wrong)?;
        child.wait().map_err(wrong)?;
        if let Maker::Oci(runtime) = maker {
            self.bundle.forget(runtime, &name);
        }
        group.remove().map_err(wrong)?;
        if alone || pids.is_empty() {
            return Err(wrong("a container that was to stay was not found in its group"));
        }
        Ok(held)
    }
}

pub(super) fn end(group: &Group) -> Result<(), DemoError> {
    group.kill().map_err(wrong)?;
    group.remove().map_err(wrong)
}
