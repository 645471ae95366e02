//! What the runtime and the worker say to each other.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{BODY_BYTES_MAX, FRAME_BYTES, HEADER_BYTES_MAX, Kind};

/// Where a model is to be computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// On the processor.
    Cpu,
    /// On a graphics processor: there is none here.
    Gpu,
    /// On the accelerator that the workload leases.
    Tpu,
}

/// The format of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// ONNX, one part.
    Onnx,
    /// OpenVINO's IR, two parts: the XML and the weights.
    Openvino,
    /// By its first bytes.
    Autodetect,
}

/// Which input or output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Slot {
    /// By its place, from 0.
    Index(u32),
    /// By its name in the model.
    Name(String),
}

/// What the worker is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Load a model from a file that the runtime found in the workload's spec.
    LoadFile {
        /// The file; `.onnx`, `.xml` with a `.bin` beside it, or `.hef`.
        path: PathBuf,
    },
    /// Load a model from the body.
    Load {
        /// Its format.
        encoding: Encoding,
        /// Where to compute it.
        target: Target,
        /// Lengths of its parts, which follow each other in the body.
        parts: Vec<u64>,
    },
    /// Make an execution context of a loaded model.
    Context {
        /// The model.
        graph: u32,
    },
    /// Set an input from the body.
    SetInput {
        /// The execution context.
        context: u32,
        /// Which input.
        slot: Slot,
        /// Its shape.
        dimensions: Vec<u32>,
        /// The type of its elements.
        kind: Kind,
    },
    /// Compute, with the inputs set.
    Compute {
        /// The execution context.
        context: u32,
    },
    /// Give one output, after computing.
    Output {
        /// The execution context.
        context: u32,
        /// Which output.
        index: u32,
    },
    /// Forget a model; its execution contexts go on.
    DropGraph {
        /// The model.
        graph: u32,
    },
    /// Forget an execution context.
    DropContext {
        /// The execution context.
        context: u32,
    },
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// Done.
    Done,
    /// The new model or execution context.
    Handle {
        /// Its number.
        id: u32,
    },
    /// Computed.
    Outputs {
        /// Names of the outputs, in their order.
        names: Vec<String>,
    },
    /// A tensor, with its elements in the body.
    Tensor {
        /// Its shape.
        dimensions: Vec<u32>,
        /// The type of its elements.
        kind: Kind,
    },
    /// Not done.
    Failed(Failure),
}

/// Kinds of failure, as wasi-nn tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// A shape, a type, a number or a handle is wrong.
    InvalidArgument,
    /// A format that is not known here.
    InvalidEncoding,
    /// The engine failed, or what it was given is damaged.
    RuntimeError,
    /// Not possible here, such as computing where there is no accelerator.
    UnsupportedOperation,
    /// Beyond a limit.
    TooLarge,
    /// No model of that name.
    NotFound,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// For programs.
    pub code: Code,
    /// For people.
    pub message: String,
}

impl Failure {
    /// A failure with its message.
    pub fn new(code: Code, message: impl Into<String>) -> Failure {
        Failure {
            code,
            message: message.into(),
        }
    }

    /// Something is wrong with what the workload gave.
    pub fn invalid(message: impl Into<String>) -> Failure {
        Failure::new(Code::InvalidArgument, message)
    }

    /// The engine failed.
    pub fn runtime(message: impl Into<String>) -> Failure {
        Failure::new(Code::RuntimeError, message)
    }
}

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other side is gone.
    #[error("the connection is closed")]
    Closed,
    /// The system failed.
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    /// It says that it is larger than any frame is.
    #[error("a frame of {header} and {body} bytes, at most {HEADER_BYTES_MAX} and {BODY_BYTES_MAX} are allowed")]
    TooLarge {
        /// Length of its header.
        header: u64,
        /// Length of its body.
        body: u64,
    },
    /// Its header is not what was expected.
    #[error("header: {0}")]
    Header(#[from] serde_json::Error),
}

/// Writes a header and the parts of a body.
pub fn write_frame(to: &mut impl Write, header: &impl Serialize, body: &[&[u8]]) -> Result<(), FrameError> {
    let header = serde_json::to_vec(header)?;
    let body_bytes: u64 = body.iter().map(|part| part.len() as u64).sum();
    let too_large = || FrameError::TooLarge {
        header: header.len() as u64,
        body: body_bytes,
    };
    let header_length = u32::try_from(header.len()).map_err(|_| too_large())?;
    let body_length = u32::try_from(body_bytes).map_err(|_| too_large())?;
    if header_length > HEADER_BYTES_MAX || body_bytes > BODY_BYTES_MAX {
        return Err(too_large());
    }
    let mut start = Vec::with_capacity(FRAME_BYTES + header.len());
    start.extend_from_slice(&header_length.to_le_bytes());
    start.extend_from_slice(&body_length.to_le_bytes());
    start.extend_from_slice(&header);
    to.write_all(&start)?;
    for part in body {
        to.write_all(part)?;
    }
    to.flush()?;
    Ok(())
}

/// Reads a header and its body.
pub fn read_frame<T: DeserializeOwned>(from: &mut impl Read) -> Result<(T, Vec<u8>), FrameError> {
    let mut start = [0; FRAME_BYTES];
    match from.read_exact(&mut start) {
        Ok(()) => {}
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
    from.read_exact(&mut header_bytes)?;
    let mut body_bytes = vec![0; body as usize];
    from.read_exact(&mut body_bytes)?;
    Ok((serde_json::from_slice(&header_bytes)?, body_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_back_as_it_went() {
        let request = Request::Load {
            encoding: Encoding::Onnx,
            target: Target::Cpu,
            parts: vec![2, 1],
        };
        let mut bytes = Vec::new();
        write_frame(&mut bytes, &request, &[b"ab", b"c"]).unwrap();
        let (read, body): (Request, _) = read_frame(&mut bytes.as_slice()).unwrap();
        assert_eq!((read, body.as_slice()), (request, &b"abc"[..]));
        for length in 0..bytes.len() {
            assert!(read_frame::<Request>(&mut &bytes[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn a_frame_that_claims_too_much_is_refused_before_memory_is_taken() {
        let mut bytes = [0xff; FRAME_BYTES].to_vec();
        bytes.extend_from_slice(b"{}");
        let error = read_frame::<Request>(&mut bytes.as_slice()).unwrap_err();
        assert!(matches!(error, FrameError::TooLarge { .. }), "{error}");
    }
}
