//! cnova-runtime-ebpf: runs one eBPF workload, as `docs/RAL.md` says.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use cnova_ral::{Description, RAL_VERSION};
use cnova_runtime_ebpf::{confine, helper, run, worker};

const USAGE: &str = "usage: cnova-runtime-ebpf describe | run --state DIR | --version";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["describe"] => print_line(&describe()),
        ["--version"] => print_line(concat!("cnova-runtime-ebpf ", env!("CARGO_PKG_VERSION"))),
        ["run", "--state", dir] => run::run(Path::new(dir)),
        [helper::INSPECT] => worker::inspector(),
        [helper::LOAD] => worker::loader(),
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn describe() -> String {
    let order = if cfg!(target_endian = "little") {
        "bpfel"
    } else {
        "bpfeb"
    };
    let description = Description {
        ral: RAL_VERSION,
        runtime: "ebpf".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        targets: vec![format!("{order}-unknown-none")],
        engine: String::new(),
        features: features(),
    };
    serde_json::json!(description).to_string()
}

/// What this runtime does as this user on this kernel.
fn features() -> Vec<String> {
    use confine::capability;
    let kernel = confine::kernel_version().unwrap_or((0, 0));
    let new_enough = confine::last_capability() >= capability::BPF;
    let may = |number: u32| confine::has(number) || confine::has(capability::SYS_ADMIN);
    let load = if new_enough {
        may(capability::BPF)
    } else {
        confine::has(capability::SYS_ADMIN)
    };
    let net = load && confine::has(capability::NET_ADMIN);
    let trace = load && confine::has(capability::SYS_ADMIN) && kernel >= (5, 15);
    [
        ("socket-filter", load && confine::has(capability::NET_RAW)),
        ("tc-ingress", net && kernel >= (6, 6)),
        ("xdp", net && kernel >= (5, 9)),
        ("cgroup-skb", net && kernel >= (5, 7)),
        ("tracepoint", trace),
        ("run-time", confine::has(capability::SYS_ADMIN) && kernel >= (5, 8)),
        (
            "load-without-root",
            load && new_enough && confine::has(capability::SETUID),
        ),
        ("load-as-root", load && !new_enough),
        ("seccomp", confine::SECCOMP_IS_SUPPORTED),
    ]
    .into_iter()
    .filter(|(_, there)| *there)
    .map(|(name, _)| name.to_owned())
    .collect()
}

fn print_line(line: &str) -> ExitCode {
    match writeln!(std::io::stdout(), "{line}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
