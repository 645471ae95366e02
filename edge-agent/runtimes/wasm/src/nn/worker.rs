//! The process that computes, and the line to it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cnova_ral::{Device, Limits};
use cnova_wasm_nn::{Answer, BODY_BYTES_MAX, FRAME_BYTES, Failure, FrameError, HEADER_BYTES_MAX, Request, write_frame};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::control::Shared;

/// The worker's executable, beside this one.
const EXECUTABLE: &str = "cnova-wasm-nn";
/// Memory that an engine takes for itself, in bytes; what the workload may use is added.
const ENGINE_BYTES: u64 = 256 << 20;
/// The same where a vendor's library with its threads is loaded.
const VENDOR_BYTES: u64 = 2 << 30;
/// How often the supervisor is told to look at the CPU time while the worker computes, which its timer cannot see.
const LOOK: Duration = Duration::from_millis(5);
/// Where a node says that the libraries lie, if it is not where the system looks.
const LIBRARY_VARIABLES: [(&str, Accelerator); 2] = [
    ("CNOVA_OPENVINO_LIB", Accelerator::IntelNpu),
    ("CNOVA_HAILORT_LIB", Accelerator::Hailo),
];

/// What the workload leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accelerator {
    None,
    IntelNpu,
    Hailo,
}

impl Accelerator {
    /// The first device of a kind that is known here.
    pub(crate) fn of(devices: &[Device]) -> Accelerator {
        let known = |device: &Device| match device.kind.as_str() {
            "intel-npu" => Some(Accelerator::IntelNpu),
            "hailo-8" | "hailo-8l" | "hailo-10h" => Some(Accelerator::Hailo),
            _ => None,
        };
        devices.iter().find_map(known).unwrap_or(Accelerator::None)
    }

    fn argument(self) -> &'static str {
        match self {
            Accelerator::None => "none",
            Accelerator::IntelNpu => "openvino:NPU",
            Accelerator::Hailo => "hailo",
        }
    }
}

/// Why there is no worker.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("cannot start {path}: {source}; it is installed beside the runtime on nodes that offer wasi-nn")]
    Spawn { path: PathBuf, source: io::Error },
    #[error("{accelerator}: {source}; the workload claims this accelerator, so it does not run without it")]
    Accelerator { accelerator: &'static str, source: Failure },
    #[error("{0}")]
    Worker(Failure),
}

fn executable() -> io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(EXECUTABLE))
}

/// Whether this node offers wasi-nn.
pub(crate) fn is_installed() -> bool {
    executable().is_ok_and(|path| path.is_file())
}

/// The line to a living worker. It is killed when this is dropped.
pub(crate) struct Worker {
    child: Child,
    stream: UnixStream,
    shared: Arc<Shared>,
    /// What ended it; no call is made after that.
    broken: Option<Failure>,
}

impl Worker {
    pub(crate) async fn start(
        accelerator: Accelerator,
        limits: &Limits,
        shared: &Arc<Shared>,
    ) -> Result<Worker, StartError> {
        let path = executable().map_err(|source| StartError::Spawn {
            path: EXECUTABLE.into(),
            source,
        })?;
        let (child, stream) = spawn(&path, accelerator, limits).map_err(|source| StartError::Spawn { path, source })?;
        shared.nn_pid.store(child.id(), Ordering::Release);
        let mut worker = Worker {
            child,
            stream,
            shared: shared.clone(),
            broken: None,
        };
        // It says first whether the accelerator can be used.
        match worker
            .receive()
            .await
            .map_err(|error| StartError::Worker(worker.gone(&error)))?
        {
            (Answer::Done, _) => Ok(worker),
            (Answer::Failed(source), _) => Err(StartError::Accelerator {
                accelerator: accelerator.argument(),
                source,
            }),
            _ => Err(StartError::Worker(super::odd())),
        }
    }

    /// Asks and waits. Giving up on the wait leaves the line unusable: then the whole workload ends.
    pub(crate) async fn call(&mut self, request: &Request, body: &[&[u8]]) -> Result<(Answer, Vec<u8>), Failure> {
        if let Some(broken) = &self.broken {
            return Err(broken.clone());
        }
        match self.exchange(request, body).await {
            Ok((Answer::Failed(failure), _)) => Err(failure),
            Ok(answered) => Ok(answered),
            Err(error) => {
                let failure = self.gone(&error);
                self.broken = Some(failure.clone());
                Err(failure)
            }
        }
    }

    async fn exchange(&mut self, request: &Request, body: &[&[u8]]) -> Result<(Answer, Vec<u8>), FrameError> {
        let mut frame = Vec::new();
        write_frame(&mut frame, request, body)?;
        self.stream.write_all(&frame).await?;
        drop(frame);
        let receive = self.receive();
        tokio::pin!(receive);
        loop {
            tokio::select! {
                biased;
                answered = &mut receive => return answered,
                () = tokio::time::sleep(LOOK) => {
                    let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::PROF);
                }
            }
        }
    }

    async fn receive(&mut self) -> Result<(Answer, Vec<u8>), FrameError> {
        let mut start = [0; FRAME_BYTES];
        match self.stream.read_exact(&mut start).await {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(FrameError::Closed),
            Err(error) => return Err(error.into()),
        }
        let [a, b, c, d, e, f, g, h] = start;
        let (header, body) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
        if header > HEADER_BYTES_MAX || u64::from(body) > BODY_BYTES_MAX {
            return Err(FrameError::TooLarge {
                header: header.into(),
                body: body.into(),
            });
        }
        let mut header_bytes = vec![0; header as usize];
        self.stream.read_exact(&mut header_bytes).await?;
        let mut body_bytes = vec![0; body as usize];
        self.stream.read_exact(&mut body_bytes).await?;
        Ok((serde_json::from_slice(&header_bytes)?, body_bytes))
    }

    /// What to say of a worker that does not answer any more.
    fn gone(&mut self, error: &FrameError) -> Failure {
        let _ = self.child.kill();
        let how = match self.child.wait() {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        self.shared.nn_pid.store(0, Ordering::Release);
        let memory = "perhaps the model needs more memory than the workload may use";
        Failure::runtime(format!(
            "the process that computes has ended ({error}; {how}): {memory}"
        ))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.nn_pid.store(0, Ordering::Release);
        // It holds nothing that must be saved.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(path: &Path, accelerator: Accelerator, limits: &Limits) -> io::Result<(Child, UnixStream)> {
    let (ours, theirs) = StdStream::pair()?;
    ours.set_nonblocking(true)?;
    let engine = match accelerator {
        Accelerator::None => ENGINE_BYTES,
        _ => VENDOR_BYTES,
    };
    let memory = engine.saturating_add(limits.memory_bytes);
    let mut command = Command::new(path);
    command
        .arg(memory.to_string())
        .arg(accelerator.argument())
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::inherit());
    let library = LIBRARY_VARIABLES.iter().find(|(_, of)| *of == accelerator);
    if let Some(library) = library.and_then(|(variable, _)| std::env::var_os(variable)) {
        command.arg(library);
    }
    let child = command.spawn()?;
    Ok((child, UnixStream::from_std(ours)?))
}
