//! The worker alone, asked as the runtime asks it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

#[path = "support/onnx.rs"]
mod onnx;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use cnova_wasm_nn::{Answer, Code, Encoding, FrameError, Kind, Request, Slot, Target, read_frame, write_frame};

struct Worker {
    child: Child,
    socket: UnixStream,
}

impl Worker {
    fn start(accelerator: &str, library: Option<&Path>) -> Worker {
        let (socket, theirs) = UnixStream::pair().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_cnova-wasm-nn"));
        command.arg((2_u64 << 30).to_string()).arg(accelerator).args(library);
        let child = command.stdin(Stdio::from(OwnedFd::from(theirs))).spawn().unwrap();
        Worker { child, socket }
    }

    fn hello(&mut self) -> Answer {
        read_frame(&mut self.socket).unwrap().0
    }

    fn ask(&mut self, request: &Request, body: &[u8]) -> (Answer, Vec<u8>) {
        write_frame(&mut self.socket, request, &[body]).unwrap();
        read_frame(&mut self.socket).unwrap()
    }

    fn handle(&mut self, request: &Request, body: &[u8]) -> u32 {
        match self.ask(request, body) {
            (Answer::Handle { id }, _) => id,
            other => panic!("{other:?}"),
        }
    }

    fn failure(&mut self, request: &Request, body: &[u8]) -> (Code, String) {
        match self.ask(request, body) {
            (Answer::Failed(failure), _) => (failure.code, failure.message),
            other => panic!("{other:?}"),
        }
    }

    fn load(&mut self, target: Target) -> u32 {
        let model = onnx::small();
        let request = Request::Load {
            encoding: Encoding::Onnx,
            target,
            parts: vec![model.len() as u64],
        };
        self.handle(&request, &model)
    }

    /// Computes x = (1, 2, 3).
    fn compute(&mut self, graph: u32) -> Vec<f32> {
        let context = self.handle(&Request::Context { graph }, b"");
        let x: Vec<u8> = [1.0_f32, 2.0, 3.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let set = |dimensions: &[u32]| Request::SetInput {
            context,
            slot: Slot::Name("x".into()),
            dimensions: dimensions.to_vec(),
            kind: Kind::F32,
        };
        assert_eq!(self.failure(&set(&[1, 4]), &x).0, Code::InvalidArgument);
        assert_eq!(self.failure(&set(&[3, 1]), &x).0, Code::InvalidArgument);
        assert_eq!(self.ask(&set(&[1, 3]), &x).0, Answer::Done);
        let (computed, _) = self.ask(&Request::Compute { context }, b"");
        assert_eq!(
            computed,
            Answer::Outputs {
                names: vec!["y".into()]
            }
        );
        assert_eq!(
            self.failure(&Request::Output { context, index: 1 }, b"").0,
            Code::InvalidArgument
        );
        let (answer, data) = self.ask(&Request::Output { context, index: 0 }, b"");
        let dimensions = vec![1, 2];
        assert_eq!(
            answer,
            Answer::Tensor {
                dimensions,
                kind: Kind::F32
            }
        );
        data.chunks_exact(4)
            .map(|y| f32::from_le_bytes(y.try_into().unwrap()))
            .collect()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_model_is_computed_on_the_processor() {
    let mut worker = Worker::start("none", None);
    assert_eq!(worker.hello(), Answer::Done);
    let graph = worker.load(Target::Cpu);
    assert_eq!(worker.compute(graph), [7.0, 0.0]);
}

#[test]
fn parts_that_are_longer_than_the_body_are_an_error() {
    let mut worker = Worker::start("none", None);
    worker.hello();
    for parts in [vec![u64::MAX], vec![1, 1], vec![0; 5], vec![]] {
        let request = Request::Load {
            encoding: Encoding::Onnx,
            target: Target::Cpu,
            parts,
        };
        assert_eq!(worker.failure(&request, b"x").0, Code::InvalidArgument);
    }
}

#[test]
fn garbage_ends_the_worker_and_the_end_of_the_line_too() {
    let mut worker = Worker::start("none", None);
    worker.hello();
    write_frame(&mut worker.socket, &"no request", &[]).unwrap();
    assert!(matches!(
        read_frame::<Answer>(&mut worker.socket),
        Err(FrameError::Closed)
    ));
    assert!(!worker.child.wait().unwrap().success());

    let mut worker = Worker::start("none", None);
    worker.hello();
    worker.socket.shutdown(std::net::Shutdown::Both).unwrap();
    assert!(worker.child.wait().unwrap().success());
}

/// The real library, on the device CPU, since no NPU was at hand: `pip download openvino`, unpack it, and name its
/// `libopenvino_c.so.*` in CNOVA_OPENVINO_LIB (LD_LIBRARY_PATH holds its folder).
#[test]
fn openvino_computes_the_same() {
    let Some(library) = std::env::var_os("CNOVA_OPENVINO_LIB") else {
        eprintln!("skipped: CNOVA_OPENVINO_LIB does not name a libopenvino_c.so");
        return;
    };
    let mut worker = Worker::start("openvino:CPU", Some(Path::new(&library)));
    assert_eq!(worker.hello(), Answer::Done);
    let graph = worker.load(Target::Tpu);
    assert_eq!(worker.compute(graph), [7.0, 0.0]);
    for garbage in [&b""[..], b"garbage", b"<net/>"] {
        let request = Request::Load {
            encoding: Encoding::Autodetect,
            target: Target::Tpu,
            parts: vec![garbage.len() as u64, 0],
        };
        assert_eq!(worker.failure(&request, garbage).0, Code::RuntimeError);
    }
    // Weights that are not as long as the XML says are the library's to refuse, and the worker lives on.
    let graph = worker.load(Target::Cpu);
    assert_eq!(worker.compute(graph), [7.0, 0.0]);
    // A device that is not there is an error too.
    let mut worker = Worker::start("openvino:NPU", Some(Path::new(&library)));
    assert_eq!(worker.hello(), Answer::Done);
    let model = onnx::small();
    let request = Request::Load {
        encoding: Encoding::Onnx,
        target: Target::Tpu,
        parts: vec![model.len() as u64],
    };
    assert_eq!(worker.failure(&request, &model).0, Code::RuntimeError);
}
