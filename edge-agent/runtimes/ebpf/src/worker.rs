//! The helper processes, from the inside.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::PanicHookInfo;
use std::process::ExitCode;

use cnova_ral::settings::Ebpf;
use serde::Serialize;

use crate::wire::Answer;
use crate::{confine, inspect, load, wire};

/// Status of a helper whose parser panicked, after it has said so.
const STATUS_PANIC: i32 = 101;

/// How long inspecting may take, waiting for the object included.
const INSPECT_SECONDS: u32 = 30;
/// How long loading may take, waiting for the verdict included: the kernel's verifier can be slow on a large program.
const LOAD_SECONDS: u32 = 120;

/// Parses an object and says what is in it, without any rights.
#[must_use]
pub fn inspector() -> ExitCode {
    serve(|stream| {
        confine::end_after(INSPECT_SECONDS);
        confine::become_nobody(0).map_err(cannot("become nobody"))?;
        confine::die_with_parent().map_err(cannot("follow the runtime"))?;
        let ((), object) = wire::hear(stream).map_err(cannot("read the object"))?;
        confine::limit_inspector().map_err(cannot("limit itself"))?;
        confine::filter_inspector().map_err(cannot("filter its system calls"))?;
        inspect::inspect(&object).map(|verdict| (verdict, Vec::new()))
    })
}

/// Loads and attaches what the settings say, and hands over the descriptors.
#[must_use]
pub fn loader() -> ExitCode {
    serve(|stream| {
        confine::end_after(LOAD_SECONDS);
        confine::die_with_parent().map_err(cannot("follow the runtime"))?;
        let (settings, object): (Ebpf, _) = wire::hear(stream).map_err(cannot("read the object"))?;
        load::load(&settings, &object)
    })
}

fn cannot(what: &'static str) -> impl Fn(io::Error) -> String {
    move |error| format!("a helper cannot {what}: {error}")
}

/// Answers the one question. A panic is answered too, and then ends the process.
fn serve<T: Serialize>(work: impl FnOnce(&mut UnixStream) -> Result<(T, Vec<OwnedFd>), String>) -> ExitCode {
    let Ok(own) = io::stdin().as_fd().try_clone_to_owned() else {
        return ExitCode::FAILURE;
    };
    let mut stream = UnixStream::from(own);
    let Ok(for_panic) = stream.try_clone() else {
        return ExitCode::FAILURE;
    };
    std::panic::set_hook(Box::new(move |info| report_panic(&for_panic, info)));
    let sent = match work(&mut stream) {
        Ok((done, fds)) => {
            let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            wire::answer(&stream, &Answer::Done(done), &borrowed)
        }
        Err(why) => wire::answer(&stream, &Answer::<()>::Refused(why), &[]),
    };
    match sent {
        Ok(()) => ExitCode::SUCCESS,
        // Nobody is there who would want to know.
        Err(_) => ExitCode::FAILURE,
    }
}

fn report_panic(stream: &UnixStream, info: &PanicHookInfo<'_>) {
    let why = format!("the object is damaged: its parser gave up ({info})");
    let _ = wire::answer(stream, &Answer::<()>::Refused(why), &[]);
    // SAFETY: ends the process at once; nothing of it is used afterwards.
    unsafe { libc::_exit(STATUS_PANIC) }
}
