//! How long a node's operations take in a TPM, and how much memory the process needs.
//!
//! `cargo run -p cnova-root-of-trust --example tpm-latency -- device:/dev/tpmrm0` measures that TPM (it makes the keys and
//! counts the counter up); without an argument, a software TPM of its own.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::time::{Duration, Instant};

use cnova_root_of_trust::testing::Swtpm;
use cnova_root_of_trust::tpm::EkKind;
use cnova_root_of_trust::{BootApproval, RootOfTrust, Tpm, TpmConfig};
use cnova_shared::ids::Digest;
use cnova_shared::keys::{Signer, SoftKey};

const ROUNDS: usize = 200;

fn main() {
    let argument = std::env::args().nth(1);
    let (swtpm, config) = match argument {
        Some(tcti) => (None, TpmConfig::new(tcti)),
        None => {
            let Some(swtpm) = Swtpm::start(EkKind::P384) else {
                return;
            };
            let config = swtpm.config();
            (Some(swtpm), config)
        }
    };
    memory("before opening");
    let begun = Instant::now();
    let tpm = Tpm::open(config.clone()).unwrap();
    println!("open                 {:>9.2?}", begun.elapsed());
    let begun = Instant::now();
    drop(Tpm::open(config).unwrap());
    println!("open, keys are there {:>9.2?}", begun.elapsed());

    let (key, d) = (tpm.device_key(), Digest::of(b"d"));
    let approver = rcgen::KeyPair::generate().unwrap();
    let approver = SoftKey::from_pkcs8(&approver.serialize_der()).unwrap();
    let pcrs = [0, 1, 2, 3, 4, 5, 6, 7, 11, 14];
    measure("sign", || drop(key.sign(b"m").unwrap()));
    measure("quote, 10 registers", || drop(tpm.quote(&d, &pcrs).unwrap()));
    measure("read 10 registers", || drop(tpm.read_pcrs(&pcrs).unwrap()));
    measure("extend", || tpm.extend(14, &d).unwrap());
    measure("nv_increment, read", || assert!(tpm.count_up().unwrap() > 0));
    measure("counter", || assert!(tpm.counter().unwrap() > Some(0)));
    measure("seal", || {
        drop(
            tpm.seal(b"0123456789abcdef0123456789abcdef", approver.public_key())
                .unwrap(),
        )
    });
    let sealed = tpm
        .seal(b"0123456789abcdef0123456789abcdef", approver.public_key())
        .unwrap();
    let approval = BootApproval::sign(&tpm.read_pcrs(&pcrs).unwrap(), &approver).unwrap();
    measure("unseal", || {
        drop(tpm.unseal(&sealed, approver.public_key(), &approval).unwrap())
    });
    measure("enrolment", || drop(tpm.enrolment(b"q").unwrap()));

    memory("at the end");
    drop(swtpm);
}

/// What the process holds of its own (not shared with other programs), and the most it ever had resident.
fn memory(when: &str) {
    let read = |file: &str, name: &str| {
        let text = std::fs::read_to_string(file).unwrap();
        let line = text.lines().find_map(|l| l.strip_prefix(name).map(str::trim));
        line.unwrap_or("?").to_owned()
    };
    println!(
        "memory {when}: {} PSS, {} private, {} resident at most",
        read("/proc/self/smaps_rollup", "Pss:"),
        read("/proc/self/smaps_rollup", "Private_Dirty:"),
        read("/proc/self/status", "VmHWM:")
    );
}

fn measure(what: &str, mut operation: impl FnMut()) {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let begun = Instant::now();
            operation();
            begun.elapsed()
        })
        .collect();
    times.sort_unstable();
    println!(
        "{what:<20} {:>9.2?} median, {:>9.2?} p95",
        times[ROUNDS / 2],
        times[ROUNDS * 95 / 100]
    );
}
