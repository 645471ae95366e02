//! Answers to commands about one instance: the end of its log, its metrics.

use std::path::Path;

use cnova_shared::limits::LOG_REPLY_BYTES;
use cnova_shared::wire::v1::Operation;

/// Most lines of one answer, whatever was asked for.
const LINES_MAX: usize = 10_000;

/// The answer, or why there is none. Blocks on the disk or on the runtime.
pub(crate) fn answer(dir: Option<&Path>, op: &Operation) -> Result<String, String> {
    match op {
        Operation::Logs { workload, lines } => {
            let dir = dir.ok_or_else(|| format!("{workload} is not known on this node"))?;
            logs(dir, *lines as usize)
        }
        Operation::Metrics { workload } => {
            let dir = dir.ok_or_else(|| format!("{workload} is not known on this node"))?;
            metrics(dir)
        }
        Operation::Unknown => Err("this version of the agent does not know the command".into()),
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

fn metrics(dir: &Path) -> Result<String, String> {
    let mut client = cnova_ral::Client::connect(dir).map_err(|e| e.to_string())?;
    let metrics = client.metrics().map_err(|e| e.to_string())?;
    serde_json::to_string(&metrics).map_err(|e| e.to_string())
}
