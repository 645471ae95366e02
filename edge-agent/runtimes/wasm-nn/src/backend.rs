//! The interface that each inference engine implements, and which of them takes a model.

use std::path::{Path, PathBuf};

use cnova_wasm_nn::{Code, Encoding, Failure, MODEL_BYTES_MAX, Slot, Target, Tensor};

use crate::hailo::Hailo;
use crate::onnx::Onnx;
use crate::openvino::Openvino;

/// A model, wherever it comes from.
pub(crate) enum Model<'a> {
    /// ONNX.
    Onnx(&'a [u8]),
    /// OpenVINO's IR: the XML and the weights.
    Ir(&'a [u8], &'a [u8]),
    /// Compiled for a Hailo.
    Hef(&'a [u8]),
}

/// An engine.
pub(crate) trait Backend {
    /// Takes a model.
    fn load(&mut self, model: &Model<'_>) -> Result<Box<dyn Graph>, Failure>;
}

/// A loaded model.
pub(crate) trait Graph {
    /// Inputs and outputs to compute it with.
    fn context(&self) -> Result<Box<dyn Context>, Failure>;
}

/// Inputs and outputs of one computation at a time.
pub(crate) trait Context {
    /// Sets an input; its shape fits its bytes, but perhaps not the model.
    fn set_input(&mut self, slot: &Slot, tensor: Tensor) -> Result<(), Failure>;
    /// Computes, and names the outputs.
    fn compute(&mut self) -> Result<Vec<String>, Failure>;
    /// One output of the last computation.
    fn output(&mut self, index: usize) -> Result<Tensor, Failure>;
}

/// What the workload leases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Accelerator {
    /// A device of OpenVINO, such as `NPU`.
    Openvino(String),
    /// A Hailo.
    Hailo,
}

/// The engines of this worker; that of the accelerator is opened when it is first needed.
pub(crate) struct Backends {
    onnx: Onnx,
    accelerator: Option<Accelerator>,
    library: Option<PathBuf>,
    opened: Option<Box<dyn Backend>>,
}

impl Backends {
    pub(crate) fn new(accelerator: Option<Accelerator>, library: Option<PathBuf>) -> Backends {
        Backends {
            onnx: Onnx,
            accelerator,
            library,
            opened: None,
        }
    }

    /// Fails if the accelerator cannot be used.
    pub(crate) fn open(&mut self) -> Result<(), Failure> {
        match self.accelerator {
            Some(_) => self.accelerated().map(|_| ()),
            None => Ok(()),
        }
    }

    fn accelerated(&mut self) -> Result<&mut dyn Backend, Failure> {
        let opened = match (self.opened.take(), &self.accelerator) {
            (Some(opened), _) => opened,
            (None, Some(Accelerator::Openvino(device))) => Box::new(Openvino::open(self.library.as_deref(), device)?),
            (None, Some(Accelerator::Hailo)) => Box::new(Hailo::open(self.library.as_deref())?),
            (None, None) => {
                return Err(Failure::new(
                    Code::UnsupportedOperation,
                    "there is no accelerator: the workload claims none, so it has only the target cpu",
                ));
            }
        };
        Ok(self.opened.insert(opened).as_mut())
    }

    /// Loads what the workload gave.
    pub(crate) fn load(
        &mut self,
        encoding: Encoding,
        target: Target,
        parts: &[&[u8]],
    ) -> Result<Box<dyn Graph>, Failure> {
        let model = recognise(encoding, parts)?;
        match (target, &model) {
            (Target::Cpu, Model::Onnx(_)) => self.onnx.load(&model),
            (Target::Cpu, _) => Err(Failure::new(
                Code::UnsupportedOperation,
                "on the processor only ONNX is computed: give it as ONNX, or choose the target tpu",
            )),
            (Target::Tpu, _) => self.accelerated()?.load(&model),
            (Target::Gpu, _) => Err(Failure::new(
                Code::UnsupportedOperation,
                "there is no target gpu, only cpu and tpu",
            )),
        }
    }

    /// Loads a file that the workload's settings name: on the accelerator if there is one for it.
    pub(crate) fn load_file(&mut self, path: &Path) -> Result<Box<dyn Graph>, Failure> {
        let extension = path
            .extension()
            .and_then(|extension| extension.to_str())
            .unwrap_or_default();
        let bytes = read(path)?;
        match extension.to_ascii_lowercase().as_str() {
            "onnx" if matches!(self.accelerator, Some(Accelerator::Openvino(_))) => {
                self.accelerated()?.load(&Model::Onnx(&bytes))
            }
            "onnx" => self.onnx.load(&Model::Onnx(&bytes)),
            "xml" => {
                let weights = read(&path.with_extension("bin"))?;
                self.accelerated()?.load(&Model::Ir(&bytes, &weights))
            }
            "hef" => self.accelerated()?.load(&Model::Hef(&bytes)),
            _ => Err(Failure::new(
                Code::InvalidEncoding,
                format!(
                    "{}: a model's name ends in .onnx, .xml (with a .bin beside it) or .hef",
                    path.display()
                ),
            )),
        }
    }
}

fn recognise<'a>(encoding: Encoding, parts: &[&'a [u8]]) -> Result<Model<'a>, Failure> {
    match (encoding, parts) {
        (Encoding::Onnx, [onnx]) => Ok(Model::Onnx(onnx)),
        (Encoding::Openvino | Encoding::Autodetect, [xml, weights]) => Ok(Model::Ir(xml, weights)),
        (Encoding::Autodetect, [hef]) if hef.starts_with(&[1, b'H', b'E', b'F']) => Ok(Model::Hef(hef)),
        (Encoding::Autodetect, [onnx]) => Ok(Model::Onnx(onnx)),
        _ => Err(Failure::invalid(format!(
            "{} parts: ONNX has one, OpenVINO's IR two (the XML and the weights)",
            parts.len()
        ))),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let error = |error: std::io::Error| Failure::new(Code::NotFound, format!("{}: {error}", path.display()));
    let length = std::fs::metadata(path).map_err(error)?.len();
    if length > MODEL_BYTES_MAX {
        let message = format!(
            "{}: {length} bytes, at most {MODEL_BYTES_MAX} are allowed",
            path.display()
        );
        return Err(Failure::new(Code::TooLarge, message));
    }
    std::fs::read(path).map_err(error)
}
