//! The signal that asks a container to end, and whether its first process would notice.

use std::fs;

/// Whether a process catches a signal, or waits for it with the signal blocked.
pub(crate) fn hears(pid: libc::pid_t, signal: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let set = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
            .unwrap_or(0)
    };
    (set("SigCgt:") | set("SigBlk:")) & (1 << (signal - 1)) != 0
}

/// The image's word for the signal that asks it to stop; SIGTERM if it has none that is understood.
pub(crate) fn stop_signal(text: &str) -> i32 {
    match text.strip_prefix("SIG").unwrap_or(text) {
        "QUIT" => libc::SIGQUIT,
        "INT" => libc::SIGINT,
        "HUP" => libc::SIGHUP,
        "USR1" => libc::SIGUSR1,
        "USR2" => libc::SIGUSR2,
        "WINCH" => libc::SIGWINCH,
        number => match number.parse() {
            Ok(number @ 1..=31) => number,
            _ => libc::SIGTERM,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_name_their_signal_in_several_ways() {
        for (text, signal) in [
            ("", 15),
            ("SIGQUIT", 3),
            ("INT", 2),
            ("28", 28),
            ("SIGKILLER", 15),
            ("99", 15),
        ] {
            assert_eq!(stop_signal(text), signal, "{text}");
        }
    }
}
