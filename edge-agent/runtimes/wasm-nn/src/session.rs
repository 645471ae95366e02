//! One workload's models and execution contexts, and the requests about them.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use cnova_wasm_nn::{
    Answer, CONTEXTS_MAX, Code, Encoding, Failure, FrameError, GRAPHS_MAX, MODEL_PARTS_MAX, Request, Target, Tensor,
    check_shape, read_frame, write_frame,
};

use crate::backend::{Backends, Context, Graph};

/// What is kept between requests.
pub(crate) struct Session {
    backends: Backends,
    graphs: Numbered<Box<dyn Graph>>,
    contexts: Numbered<Box<dyn Context>>,
}

/// Things by number; numbers are not used again.
struct Numbered<T> {
    entries: BTreeMap<u32, T>,
    next: u32,
    max: usize,
    what: &'static str,
}

impl<T> Numbered<T> {
    fn new(what: &'static str, max: usize) -> Numbered<T> {
        Numbered {
            entries: BTreeMap::new(),
            next: 0,
            max,
            what,
        }
    }

    fn check_room(&self) -> Result<(), Failure> {
        if self.entries.len() < self.max {
            return Ok(());
        }
        let message = format!("{} {} are there already, no more are allowed", self.max, self.what);
        Err(Failure::new(Code::TooLarge, message))
    }

    fn insert(&mut self, value: T) -> Answer {
        let id = self.next;
        self.next += 1;
        self.entries.insert(id, value);
        Answer::Handle { id }
    }

    fn get(&mut self, id: u32) -> Result<&mut T, Failure> {
        let what = self.what;
        self.entries
            .get_mut(&id)
            .ok_or_else(|| Failure::invalid(format!("there is no {id} among the {what}")))
    }
}

type Reply = (Answer, Vec<u8>);

impl Session {
    pub(crate) fn new(backends: Backends) -> Session {
        Session {
            backends,
            graphs: Numbered::new("models", GRAPHS_MAX),
            contexts: Numbered::new("execution contexts", CONTEXTS_MAX),
        }
    }

    /// Says whether the accelerator can be used, then answers until the runtime is gone.
    pub(crate) fn serve(mut self, mut socket: UnixStream) -> ExitCode {
        let opened = guarded(|| self.backends.open());
        let hello = opened.map_or_else(Answer::Failed, |()| Answer::Done);
        if write_frame(&mut socket, &hello, &[]).is_err() {
            return ExitCode::FAILURE;
        }
        loop {
            let (request, body) = match read_frame(&mut socket) {
                Ok(frame) => frame,
                Err(FrameError::Closed) => return ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("{error}");
                    return ExitCode::FAILURE;
                }
            };
            let (answer, body) = self.answer(request, body);
            if let Err(error) = write_frame(&mut socket, &answer, &[&body]) {
                eprintln!("{error}");
                return ExitCode::FAILURE;
            }
        }
    }

    fn answer(&mut self, request: Request, body: Vec<u8>) -> Reply {
        match guarded(|| self.act(request, body)) {
            Ok(reply) => reply,
            Err(failure) => (Answer::Failed(failure), Vec::new()),
        }
    }

    fn act(&mut self, request: Request, body: Vec<u8>) -> Result<Reply, Failure> {
        let answer = match request {
            Request::LoadFile { path } => {
                self.graphs.check_room()?;
                let graph = self.backends.load_file(&path)?;
                self.graphs.insert(graph)
            }
            Request::Load {
                encoding,
                target,
                parts,
            } => self.load(encoding, target, &parts, &body)?,
            Request::Context { graph } => {
                self.contexts.check_room()?;
                let context = self.graphs.get(graph)?.context()?;
                self.contexts.insert(context)
            }
            Request::SetInput {
                context,
                slot,
                dimensions,
                kind,
            } => {
                check_shape(&dimensions, kind, body.len() as u64)?;
                let data = body;
                let tensor = Tensor { dimensions, kind, data };
                self.contexts.get(context)?.set_input(&slot, tensor)?;
                Answer::Done
            }
            Request::Compute { context } => Answer::Outputs {
                names: self.contexts.get(context)?.compute()?,
            },
            Request::Output { context, index } => {
                let tensor = self.contexts.get(context)?.output(index as usize)?;
                check_shape(&tensor.dimensions, tensor.kind, tensor.data.len() as u64)?;
                let (dimensions, kind) = (tensor.dimensions, tensor.kind);
                return Ok((Answer::Tensor { dimensions, kind }, tensor.data));
            }
            Request::DropGraph { graph } => {
                self.graphs.entries.remove(&graph);
                Answer::Done
            }
            Request::DropContext { context } => {
                self.contexts.entries.remove(&context);
                Answer::Done
            }
        };
        Ok((answer, Vec::new()))
    }

    fn load(&mut self, encoding: Encoding, target: Target, lengths: &[u64], body: &[u8]) -> Result<Answer, Failure> {
        self.graphs.check_room()?;
        if lengths.len() > MODEL_PARTS_MAX {
            return Err(Failure::invalid(format!(
                "{} parts, at most {MODEL_PARTS_MAX} are allowed",
                lengths.len()
            )));
        }
        let mut rest = body;
        let mut parts = Vec::new();
        for length in lengths {
            let split = usize::try_from(*length)
                .ok()
                .and_then(|length| rest.split_at_checked(length));
            let (part, after) = split.ok_or_else(|| Failure::invalid("the parts are longer than the model"))?;
            parts.push(part);
            rest = after;
        }
        let graph = self.backends.load(encoding, target, &parts)?;
        Ok(self.graphs.insert(graph))
    }
}

/// An engine that panics has failed; where panics abort, the worker is gone and the runtime says so.
fn guarded<T>(act: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(Failure::runtime(format!("the engine panicked: {said}")))
    })
}
