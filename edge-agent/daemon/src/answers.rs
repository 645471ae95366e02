//! Answers to commands about one instance: the end of its log, its metrics.

use std::path::Path;

use cnova_ral::cgroup::Usage;
use cnova_shared::limits::LOG_REPLY_BYTES;
use cnova_shared::wire::v1::Operation;
use serde_json::{Map, Value, json};

use crate::instance::InstanceId;
use crate::supervisor::Supervisor;

/// Most lines of one answer, whatever was asked for.
const LINES_MAX: usize = 10_000;

/// The answer, or why there is none. Blocks on the disk or on the runtime.
pub(crate) fn answer(supervisor: &Supervisor, id: Option<&InstanceId>, op: &Operation) -> Result<String, String> {
    let known =
        |workload: &cnova_shared::ids::WorkloadId| id.ok_or_else(|| format!("{workload} is not known on this node"));
    match op {
        Operation::Logs { workload, lines } => logs(&supervisor.folder(known(workload)?), *lines as usize),
        Operation::Metrics { workload } => {
            let id = known(workload)?;
            let from_runtime = ask_metrics(&supervisor.folder(id));
            metrics(from_runtime, supervisor.usage(id), id.attempt)
        }
        // The core has answered it itself.
        Operation::Release { .. } | Operation::Unknown => {
            Err("this version of the agent does not know the command".into())
        }
    }
}

fn logs(dir: &Path, lines: usize) -> Result<String, String> {
    let all = cnova_ral::tail_log(dir, LOG_REPLY_BYTES as u64)
        .map_err(|e| format!("cannot read the log in {}: {e}", dir.display()))?;
    let mut newest = Vec::new();
    let mut bytes = 0;
    for line in all.iter().rev().take(lines.min(LINES_MAX)) {
        let stream = match line.stream {
            cnova_ral::Stream::Stdout => "stdout",
            cnova_ral::Stream::Stderr => "stderr",
        };
        let text = format!("{} {stream} {}", line.at, line.text);
        bytes += text.len() + 1;
        if bytes > LOG_REPLY_BYTES {
            break;
        }
        newest.push(text);
    }
    newest.reverse();
    Ok(newest.join("\n"))
}

fn ask_metrics(dir: &Path) -> Result<Value, String> {
    let mut client = cnova_ral::Client::connect(dir).map_err(|e| e.to_string())?;
    let metrics = client.metrics().map_err(|e| e.to_string())?;
    serde_json::to_value(&metrics).map_err(|e| e.to_string())
}

/// What the runtime says, with the figures of the control group in place of its own: those mean the same for every
/// runtime. The runtime's own stay below `runtime`. One that does not answer is accounted all the same.
fn metrics(from_runtime: Result<Value, String>, usage: Option<Usage>, attempt: u32) -> Result<String, String> {
    let mut all = match (&from_runtime, usage) {
        (Err(why), None) => return Err(why.clone()),
        (Ok(Value::Object(fields)), _) => fields.clone(),
        _ => Map::new(),
    };
    all.insert("restarts".into(), json!(attempt.saturating_sub(1)));
    if let Some(usage) = usage {
        let figures = [
            ("cpu_ms", usage.cpu_ms),
            ("memory_bytes", usage.memory_bytes),
            ("memory_peak_bytes", usage.memory_peak),
            ("oom_kills", usage.oom_kills),
            ("processes", Some(usage.processes)),
        ];
        for (name, figure) in figures {
            if let Some(figure) = figure {
                all.insert(name.into(), json!(figure));
            }
        }
    }
    match from_runtime {
        Ok(said) => all.insert("runtime".into(), said),
        Err(why) => all.insert("runtime_error".into(), json!(why)),
    };
    serde_json::to_string(&all).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_accounts_and_the_runtime_is_heard() {
        let said = json!({"cpu_ms": 5, "memory_bytes": 7, "uptime_ms": 9, "counters": {"events": 1.0}});
        let usage = Usage {
            cpu_ms: Some(50),
            memory_bytes: None,
            memory_peak: Some(90),
            oom_kills: Some(0),
            processes: 2,
        };
        let parse = |text: String| serde_json::from_str::<Value>(&text).unwrap();
        let all = parse(metrics(Ok(said.clone()), Some(usage), 3).unwrap());
        assert_eq!((&all["cpu_ms"], &all["memory_bytes"]), (&json!(50), &json!(7)));
        assert_eq!((&all["restarts"], &all["processes"]), (&json!(2), &json!(2)));
        assert_eq!(
            (&all["memory_peak_bytes"], &all["counters"]),
            (&json!(90), &json!({"events": 1.0}))
        );
        assert_eq!(all["runtime"], said);
        let without = parse(metrics(Ok(said), None, 1).unwrap());
        assert_eq!((&without["cpu_ms"], &without["restarts"]), (&json!(5), &json!(0)));
        let hangs = parse(metrics(Err("it hangs".into()), Some(usage), 1).unwrap());
        assert_eq!(
            (&hangs["cpu_ms"], &hangs["runtime_error"]),
            (&json!(50), &json!("it hangs"))
        );
        assert_eq!(metrics(Err("it hangs".into()), None, 1).unwrap_err(), "it hangs");
    }
}
