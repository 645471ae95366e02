//! ONNX on the processor, by tract: nothing has to be installed.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use cnova_wasm_nn::{Code, Failure, Kind, PORTS_MAX, Slot, Tensor};
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto};
use tract_onnx::prelude::{
    DatumType, Framework, InferenceFact, InferenceModel, InferenceModelExt, IntoRunnable, TValue, TVec,
    Tensor as TractTensor, TractResult, TypedRunnableModel,
};

use tract_onnx::tract_hir::infer::Factoid;

use crate::backend::{Backend, Context, Graph, Model};

/// Graphs within graphs.
const NESTING_MAX: usize = 16;

/// The engine.
pub(crate) struct Onnx;

impl Backend for Onnx {
    fn load(&mut self, model: &Model<'_>) -> Result<Box<dyn Graph>, Failure> {
        let Model::Onnx(bytes) = model else {
            return Err(Failure::new(Code::InvalidEncoding, "the processor computes ONNX only"));
        };
        let onnx = tract_onnx::onnx();
        let proto = onnx.proto_model_for_read(&mut &bytes[..]).map_err(|e| damaged(&e))?;
        check_self_contained(&proto)?;
        let model = onnx.model_for_proto_model(&proto).map_err(|e| damaged(&e))?;
        let names = |outlets: &[tract_onnx::prelude::OutletId]| -> Vec<String> {
            let label = |outlet| model.outlet_label(outlet).unwrap_or_default().to_owned();
            let node = |outlet: tract_onnx::prelude::OutletId| model.nodes[outlet.node].name.clone();
            let name = |outlet| match label(outlet) {
                label if label.is_empty() => node(outlet),
                label => label,
            };
            outlets.iter().map(|outlet| name(*outlet)).collect()
        };
        let inputs = names(model.input_outlets().map_err(|e| damaged(&e))?);
        let outputs = names(model.output_outlets().map_err(|e| damaged(&e))?);
        if inputs.len() > PORTS_MAX || outputs.len() > PORTS_MAX {
            let message = format!("more than {PORTS_MAX} inputs or outputs");
            return Err(Failure::new(Code::TooLarge, message));
        }
        Ok(Box::new(OnnxGraph(Rc::new(Parsed {
            model,
            inputs,
            outputs,
            plan: RefCell::new(None),
        }))))
    }
}

/// The same for OpenVINO, which would look for the files that a model refers to.
pub(crate) fn check_is_self_contained(bytes: &[u8]) -> Result<(), Failure> {
    let proto = tract_onnx::onnx().proto_model_for_read(&mut &bytes[..]);
    check_self_contained(&proto.map_err(|e| damaged(&e))?)
}

fn damaged(error: &impl std::fmt::Debug) -> Failure {
    Failure::runtime(format!("not an ONNX model that can be computed here: {error:?}"))
}

/// A model from a stranger must not name files of this machine to be read as its weights.
fn check_self_contained(model: &ModelProto) -> Result<(), Failure> {
    let graphs = model.graph.iter().map(|graph| refers_outside(graph, 0));
    let functions = model
        .functions
        .iter()
        .map(|function| nodes_refer_outside(&function.node, 0));
    let training = model.training_info.iter().map(|_| true);
    if graphs.chain(functions).chain(training).any(|outside| outside) {
        let message =
            "the model refers to other files, holds training data or is nested too deeply: give one that is whole";
        return Err(Failure::new(Code::UnsupportedOperation, message));
    }
    Ok(())
}

fn refers_outside(graph: &GraphProto, depth: usize) -> bool {
    depth > NESTING_MAX
        || graph.initializer.iter().any(is_outside)
        || graph.sparse_initializer.iter().any(is_sparse_outside)
        || nodes_refer_outside(&graph.node, depth)
}

fn nodes_refer_outside(nodes: &[NodeProto], depth: usize) -> bool {
    nodes.iter().flat_map(|node| &node.attribute).any(|attribute| {
        attribute.t.iter().chain(&attribute.tensors).any(is_outside)
            || attribute
                .sparse_tensor
                .iter()
                .chain(&attribute.sparse_tensors)
                .any(is_sparse_outside)
            || attribute
                .g
                .iter()
                .chain(&attribute.graphs)
                .any(|graph| refers_outside(graph, depth + 1))
    })
}

fn is_sparse_outside(tensor: &SparseTensorProto) -> bool {
    tensor.values.iter().chain(&tensor.indices).any(is_outside)
}

fn is_outside(tensor: &TensorProto) -> bool {
    // 0 is "in this file", which is also the default.
    tensor.data_location.unwrap_or(0) != 0 || !tensor.external_data.is_empty()
}

type Runnable = Arc<TypedRunnableModel>;
/// Type and shape of each input.
type Shapes = Vec<(DatumType, Vec<usize>)>;

struct Parsed {
    model: InferenceModel,
    inputs: Vec<String>,
    outputs: Vec<String>,
    /// Made for the shapes that were used last: many models leave some dimension open.
    plan: RefCell<Option<(Shapes, Runnable)>>,
}

impl Parsed {
    fn plan(&self, shapes: &Shapes) -> Result<Runnable, Failure> {
        if let Some((made_for, plan)) = &*self.plan.borrow()
            && made_for == shapes
        {
            return Ok(plan.clone());
        }
        let make = || -> TractResult<Runnable> {
            let mut model = self.model.clone();
            for (index, (datum_type, shape)) in shapes.iter().enumerate() {
                model.set_input_fact(index, InferenceFact::dt_shape(*datum_type, shape.as_slice()))?;
            }
            model.into_optimized()?.into_runnable()
        };
        let plan = make().map_err(|e| Failure::runtime(format!("the model cannot be computed: {e:?}")))?;
        *self.plan.borrow_mut() = Some((shapes.clone(), plan.clone()));
        Ok(plan)
    }
}

struct OnnxGraph(Rc<Parsed>);

impl Graph for OnnxGraph {
    fn context(&self) -> Result<Box<dyn Context>, Failure> {
        Ok(Box::new(OnnxContext {
            inputs: vec![None; self.0.inputs.len()],
            outputs: Vec::new(),
            parsed: self.0.clone(),
        }))
    }
}

struct OnnxContext {
    parsed: Rc<Parsed>,
    inputs: Vec<Option<TractTensor>>,
    outputs: Vec<TValue>,
}

impl Context for OnnxContext {
    fn set_input(&mut self, slot: &Slot, tensor: Tensor) -> Result<(), Failure> {
        let names = &self.parsed.inputs;
        let index = find(slot, names)
            .ok_or_else(|| Failure::invalid(format!("the model has no input {slot:?}, only {}", names.join(", "))))?;
        let fact = self.parsed.model.input_fact(index).map_err(|e| damaged(&e))?;
        let datum_type = datum_type(tensor.kind)?;
        let shape: Vec<usize> = tensor.dimensions.iter().map(|dimension| *dimension as usize).collect();
        let given = InferenceFact::dt_shape(datum_type, shape.as_slice());
        if given.unify(fact).is_err() {
            return Err(Failure::invalid(format!(
                "input `{}` is {fact:?}, {given:?} was given",
                names[index]
            )));
        }
        // SAFETY: any bytes are a valid value of these number types; tract checks their count against the shape.
        let tensor = unsafe { TractTensor::from_raw_dt(datum_type, &shape, &tensor.data) };
        self.inputs[index] = Some(tensor.map_err(|e| Failure::invalid(format!("{e:?}")))?);
        Ok(())
    }

    fn compute(&mut self) -> Result<Vec<String>, Failure> {
        self.outputs.clear();
        let mut inputs: TVec<TValue> = TVec::new();
        let mut shapes = Shapes::new();
        for (input, name) in self.inputs.iter().zip(&self.parsed.inputs) {
            let input = input.clone();
            let input = input.ok_or_else(|| Failure::invalid(format!("input `{name}` is not set")))?;
            shapes.push((input.datum_type(), input.shape().to_vec()));
            inputs.push(input.into());
        }
        let plan = self.parsed.plan(&shapes)?;
        let outputs = plan
            .run(inputs)
            .map_err(|e| Failure::runtime(format!("computing failed: {e:?}")))?;
        self.outputs = outputs.into_vec();
        Ok(self.parsed.outputs.clone())
    }

    fn output(&mut self, index: usize) -> Result<Tensor, Failure> {
        let missing = || {
            Failure::invalid(format!(
                "there is no output {index}: compute first, then ask for 0 to n - 1"
            ))
        };
        let output = self.outputs.get(index).ok_or_else(missing)?;
        let dimensions: Result<Vec<u32>, _> = output
            .shape()
            .iter()
            .map(|dimension| u32::try_from(*dimension))
            .collect();
        Ok(Tensor {
            dimensions: dimensions.map_err(|_| Failure::new(Code::TooLarge, format!("output {index} is too large")))?,
            kind: kind(output.datum_type())?,
            data: output.as_bytes().to_vec(),
        })
    }
}

pub(crate) fn find(slot: &Slot, names: &[String]) -> Option<usize> {
    match slot {
        Slot::Index(index) => usize::try_from(*index).ok().filter(|index| *index < names.len()),
        Slot::Name(name) => names.iter().position(|known| known == name),
    }
}

fn datum_type(kind: Kind) -> Result<DatumType, Failure> {
    Ok(match kind {
        Kind::F16 => DatumType::F16,
        Kind::F32 => DatumType::F32,
        Kind::F64 => DatumType::F64,
        Kind::U8 => DatumType::U8,
        Kind::I32 => DatumType::I32,
        Kind::I64 => DatumType::I64,
        Kind::Bf16 => {
            return Err(Failure::new(
                Code::UnsupportedOperation,
                "bf16 is not computed on the processor",
            ));
        }
    })
}

fn kind(datum_type: DatumType) -> Result<Kind, Failure> {
    match datum_type {
        DatumType::F16 => Ok(Kind::F16),
        DatumType::F32 => Ok(Kind::F32),
        DatumType::F64 => Ok(Kind::F64),
        DatumType::U8 => Ok(Kind::U8),
        DatumType::I32 => Ok(Kind::I32),
        DatumType::I64 => Ok(Kind::I64),
        other => {
            let message = format!("an output of type {other:?}, which wasi-nn does not have");
            Err(Failure::new(Code::UnsupportedOperation, message))
        }
    }
}
