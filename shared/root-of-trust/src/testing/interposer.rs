//! Between a program and swtpm: counts commands and cuts the power at a chosen one.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};

use super::{Ports, Swtpm, must};

/// Longest command or response that is passed on, in bytes.
const MESSAGE_BYTES_MAX: usize = 8192;

/// When swtpm is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Before it sees the command.
    Before,
    /// When it has done the command, before anybody sees the answer.
    After,
}

#[derive(Default)]
struct Plan {
    seen: AtomicU32,
    cut: Mutex<Option<(u32, Cut, Pid)>>,
    over: AtomicBool,
}

/// A second address of a [`Swtpm`]. It relies on libtss2 connecting anew for each command.
pub struct Interposer {
    ports: Ports,
    plan: Arc<Plan>,
}

impl Interposer {
    /// Starts to pass commands on.
    ///
    /// # Panics
    /// When no ports are free.
    #[must_use]
    pub fn before(swtpm: &Swtpm) -> Self {
        let ports = Ports::take();
        let plan = Arc::<Plan>::default();
        for (offset, counted) in [(0, true), (1, false)] {
            let listener = must(TcpListener::bind((Ipv4Addr::LOCALHOST, ports.data + offset)), "a port");
            let (plan, target) = (Arc::clone(&plan), swtpm.ports.data + offset);
            std::thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    if plan.over.load(Ordering::Relaxed) {
                        break;
                    }
                    // A broken connection is what the other side then sees.
                    let _ = pass_on(stream, target, counted.then_some(&plan));
                }
            });
        }
        Self { ports, plan }
    }

    /// How a TPM is reached through this.
    #[must_use]
    pub fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.ports.data)
    }

    /// Kills swtpm at the `nth` command from now (0 is the next one).
    ///
    /// # Panics
    /// When swtpm does not run.
    pub fn cut_at(&self, swtpm: &Swtpm, nth: u32, cut: Cut) {
        let pid = swtpm.pid().and_then(|p| i32::try_from(p).ok()).and_then(Pid::from_raw);
        let Some(pid) = pid else { panic!("swtpm does not run") };
        self.plan.seen.store(0, Ordering::SeqCst);
        if let Ok(mut plan) = self.plan.cut.lock() {
            *plan = Some((nth, cut, pid));
        }
    }

    /// Whether the cut was made; it is forgotten in any case.
    #[must_use]
    pub fn was_cut(&self) -> bool {
        self.plan.cut.lock().is_ok_and(|mut plan| plan.take().is_none())
    }
}

impl Drop for Interposer {
    fn drop(&mut self) {
        self.plan.over.store(true, Ordering::Relaxed);
        for offset in [0, 1] {
            // Wakes the thread that waits for a connection.
            let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.ports.data + offset));
        }
    }
}

fn pass_on(mut client: TcpStream, target: u16, plan: Option<&Arc<Plan>>) -> std::io::Result<()> {
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    loop {
        let length = client.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        let cut = plan.and_then(|p| due(p));
        if let Some((Cut::Before, pid)) = cut {
            let _ = kill_process(pid, Signal::KILL);
            return client.shutdown(Shutdown::Both);
        }
        let mut tpm = TcpStream::connect((Ipv4Addr::LOCALHOST, target))?;
        tpm.write_all(&buffer[..length])?;
        let length = tpm.read(&mut buffer)?;
        if let Some((Cut::After, pid)) = cut {
            let _ = kill_process(pid, Signal::KILL);
            return client.shutdown(Shutdown::Both);
        }
        client.write_all(&buffer[..length])?;
    }
}

fn due(plan: &Plan) -> Option<(Cut, Pid)> {
    let number = plan.seen.fetch_add(1, Ordering::SeqCst);
    let mut planned = plan.cut.lock().ok()?;
    let (nth, cut, pid) = (*planned)?;
    (nth == number).then(|| {
        *planned = None;
        (cut, pid)
    })
}
