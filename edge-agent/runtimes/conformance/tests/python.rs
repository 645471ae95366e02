//! The runtime in `examples/runtime-python` was written from `docs/RAL.md` by somebody who has only that. It passes the
//! suite; and where it is spoilt, the suite says so.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../examples/runtime-python")
}

fn has_python() -> bool {
    let found = Command::new("python3").arg("--version").output();
    let found = found.is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("skipped: NO python3 ON THIS MACHINE, so nobody has tried the runtime in examples/runtime-python");
    }
    found
}

fn order(runtime: &Path, only: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cnova-ral-conformance"));
    command.arg("--runtime").arg(runtime);
    command.arg("--fixtures").arg(example().join("fixtures"));
    for check in only {
        command.args(["--only", check]);
    }
    command
}

#[test]
fn a_runtime_by_somebody_else_passes() {
    if !has_python() {
        return;
    }
    let output = order(&example().join("cnova-runtime-python"), &[]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(text.lines().last().unwrap().contains(" 0 failed, "), "{text}");
    assert_eq!(
        text.lines().count(),
        cnova_ral_conformance::CHECKS.len() + 1,
        "a line for each check: {text}"
    );
}

/// The example with one piece of it replaced fails exactly the check that is there for it.
fn spoilt(piece: &str, by: &str, check: &str, says: &str) {
    if !has_python() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let runtime = dir.path().join("runtime");
    let text = fs::read_to_string(example().join("cnova-runtime-python")).unwrap();
    assert!(text.contains(piece), "the example does not contain `{piece}` any more");
    fs::write(&runtime, text.replace(piece, by)).unwrap();
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = order(&runtime, &[check]);
    if says == "waited" {
        command.args(["--patience", "8"]);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        output.status.code(),
        Some(1),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        text.contains(&format!("FAIL            {check}: ")) && text.contains(says),
        "{text}"
    );
}

macro_rules! spoilt {
    ($($name:ident: $piece:literal => $by:literal, $check:ident, $says:literal;)+) => {
        $(
            #[test]
            fn $name() {
                spoilt($piece, $by, stringify!($check), $says);
            }
        )+
    };
}

spoilt! {
    no_lock: "fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)" => "lock", starts_and_is_known, "nobody holds `lock`";
    a_pid_that_is_not_its_own: "\"pid\": os.getpid()" => "\"pid\": os.getppid()", starts_and_is_known, "state.json";
    an_open_socket: "os.chmod(\"ral.sock\", 0o600)" => "os.chmod(\"ral.sock\", 0o666)", starts_and_is_known, "mode 666";
    an_unchecked_digest: "check(found == spec[\"digest\"]" => "check(True", another_digest_is_refused, "not refused";
    any_version: "spec.get(\"ral\") == RAL" => "spec.get(\"ral\")", another_ral_is_refused, "not refused";
    any_setting: "check(not settings" => "check(True", an_unknown_setting_is_refused, "not refused";
    a_wrong_reason: "\"killed\" if sig == signal.SIGKILL else \"trap\"" => "\"killed\"", a_fatal_signal_is_reported, "not `trap`";
    a_fault_as_a_code: "elif report:" => "elif report and False:", a_fault_is_a_trap, "not `trap`";
    no_force: "if self.force_at and now >= self.force_at:" => "if False:", force_follows_the_grace_time, "waited";
    force_at_once: "grace = (self" => "grace = 0 * (self", force_follows_the_grace_time, "of 400 ms of grace";
    a_longer_grace: "min(self.force_at or force_at, force_at)" => "force_at", a_repeated_stop_never_lengthens_it, "waited";
    an_unbounded_log: "if self.size + len(entry) > self.half:" => "if False:", the_log_is_bounded_and_rotates, "bytes";
    a_log_that_begins_anew: "os.O_CREAT | os.O_APPEND" => "os.O_CREAT | os.O_TRUNC", the_log_goes_on_over_attempts, "2 times";
    a_log_of_another_form: "b\"%s %s %s %s\\n\"" => "b\"%s %s %s: %s\\n\"", what_it_prints_is_logged_in_order, "in order";
    unlimited_connections: "if len(self.clients) >= CONNECTIONS_MAX:" => "if False:", idle_connections_keep_nobody_out, "not closed";
    garbage_taken_for_a_question: "keep = keep and answer[\"ok\"]" => "pass", garbage_harms_nothing, "does not close";
    an_inherited_environment: "env=self.spec.get(\"env\", {})" => "env=dict(os.environ, **self.spec.get(\"env\", {}))", the_environment_is_only_the_spec_s, "PATH";
    an_inherited_lock: "pass_fds=(report, memfd)" => "pass_fds=(report, memfd, 5)", no_descriptor_is_inherited, "lock";
    an_exit_file_in_pieces: "fd = os.open(\".\" + name + \".tmp\"" => "os.path.exists(name) or open(name, \"w\").close(); time.sleep(.05); fd = os.open(\".\" + name + \".tmp\"", the_exit_file_is_whole_and_before_the_end, "exit.json";
    no_time_limit: "if wall is not None and now >=" => "if False and now >=", the_time_limit_ends_it, "waited";
    dying_with_the_agent: "os.umask(0o077)" => "__import__(\"ctypes\").CDLL(None).prctl(1, 9)", it_outlives_an_agent_killed_while_it_runs, "";
}
