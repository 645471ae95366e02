//! wasi-nn for components: `wasi:nn`. What a component piles up on the host's side is counted.

use cnova_wasm_nn::{Code, Encoding, Failure, Kind, NAME_BYTES_MAX, PORTS_MAX, Slot, Target, Tensor};
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};

use super::Nn;
use crate::guest::ComponentHost;

mod bindings {
    #![allow(missing_docs, unreachable_pub, reason = "generated from wit/nn.wit")]
    wasmtime::component::bindgen!({
        path: "wit/nn.wit",
        world: "ml",
        imports: { default: async | trappable },
        with: {
            "wasi:nn/tensor.tensor": cnova_wasm_nn::Tensor,
            "wasi:nn/graph.graph": super::GraphHandle,
            "wasi:nn/inference.graph-execution-context": super::ContextHandle,
            "wasi:nn/errors.error": cnova_wasm_nn::Failure,
        },
    });
}

use bindings::wasi::nn::errors::ErrorCode;
use bindings::wasi::nn::graph::{ExecutionTarget, GraphEncoding};
use bindings::wasi::nn::tensor::TensorType;
use bindings::wasi::nn::{errors, graph, inference, tensor};

/// A model, by its number.
#[allow(unreachable_pub, reason = "the generated code re-exports it")]
pub struct GraphHandle(u32);
/// An execution context, by its number.
#[allow(unreachable_pub, reason = "the generated code re-exports it")]
pub struct ContextHandle(u32);

/// Tensors and errors that a component holds at once.
const OBJECTS_MAX: usize = 1024;
/// Bytes of the tensors that it holds at once.
const TENSORS_BYTES_MAX: usize = 128 << 20;

/// What a component has made and not dropped. It cannot be told of an excess where it makes a tensor, so it traps.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    count: usize,
    bytes: usize,
}

impl Objects {
    fn add(&mut self, bytes: usize) -> wasmtime::Result<()> {
        (self.count, self.bytes) = (self.count + 1, self.bytes.saturating_add(bytes));
        if self.count > OBJECTS_MAX || self.bytes > TENSORS_BYTES_MAX {
            wasmtime::bail!(
                "wasi-nn: {} tensors and errors of {} bytes were not dropped, at most {OBJECTS_MAX} of \
                 {TENSORS_BYTES_MAX} are allowed",
                self.count,
                self.bytes
            );
        }
        Ok(())
    }

    fn remove(&mut self, bytes: usize) {
        (self.count, self.bytes) = (self.count.saturating_sub(1), self.bytes.saturating_sub(bytes));
    }
}

/// Offers it to a component.
pub(crate) fn add_to_component_linker(linker: &mut Linker<ComponentHost>) -> wasmtime::Result<()> {
    fn view(host: &mut ComponentHost) -> View<'_> {
        View {
            nn: host.nn.as_mut(),
            table: &mut host.table,
        }
    }
    tensor::add_to_linker::<_, HasView>(linker, view)?;
    graph::add_to_linker::<_, HasView>(linker, view)?;
    inference::add_to_linker::<_, HasView>(linker, view)?;
    errors::add_to_linker::<_, HasView>(linker, view)?;
    Ok(())
}

struct HasView;

impl HasData for HasView {
    type Data<'a> = View<'a>;
}

struct View<'a> {
    nn: Option<&'a mut Nn>,
    table: &'a mut ResourceTable,
}

/// What the interface returns: a value, or an error that is an object itself.
type Answer<T> = wasmtime::Result<Result<T, Resource<Failure>>>;

impl View<'_> {
    fn nn(&mut self) -> wasmtime::Result<&mut Nn> {
        match &mut self.nn {
            Some(nn) => Ok(nn),
            None => wasmtime::bail!("wasi-nn is not granted"),
        }
    }

    fn fail<T>(&mut self, failure: Failure) -> Answer<T> {
        let nn = self.nn()?;
        nn.note(&failure);
        nn.objects.add(0)?;
        Ok(Err(self.table.push(failure)?))
    }

    fn push_tensor(&mut self, tensor: Tensor) -> wasmtime::Result<Resource<Tensor>> {
        self.nn()?.objects.add(tensor.data.len())?;
        Ok(self.table.push(tensor)?)
    }

    fn delete_tensor(&mut self, tensor: Resource<Tensor>) -> wasmtime::Result<Tensor> {
        let tensor = self.table.delete(tensor)?;
        self.nn()?.objects.remove(tensor.data.len());
        Ok(tensor)
    }

    async fn run(&mut self, context: u32, inputs: Vec<(String, Tensor)>) -> Result<Vec<(String, Tensor)>, Failure> {
        let missing = || Failure::new(Code::UnsupportedOperation, "wasi-nn is not granted");
        let nn = self.nn.as_mut().ok_or_else(missing)?;
        for (name, tensor) in inputs {
            nn.set_input(context, Slot::Name(name), &tensor).await?;
        }
        let names = nn.compute(context).await?;
        let mut outputs = Vec::new();
        for (index, name) in (0..).zip(names) {
            outputs.push((name, nn.output(context, index).await?));
        }
        Ok(outputs)
    }
}

impl tensor::Host for View<'_> {}

impl tensor::HostTensor for View<'_> {
    async fn new(&mut self, dimensions: Vec<u32>, ty: TensorType, data: Vec<u8>) -> wasmtime::Result<Resource<Tensor>> {
        let kind = match ty {
            TensorType::Fp16 => Kind::F16,
            TensorType::Fp32 => Kind::F32,
            TensorType::Fp64 => Kind::F64,
            TensorType::Bf16 => Kind::Bf16,
            TensorType::U8 => Kind::U8,
            TensorType::I32 => Kind::I32,
            TensorType::I64 => Kind::I64,
        };
        // Whether they fit each other is said where it can be said: when it is used.
        self.push_tensor(Tensor { dimensions, kind, data })
    }

    async fn dimensions(&mut self, tensor: Resource<Tensor>) -> wasmtime::Result<Vec<u32>> {
        Ok(self.table.get(&tensor)?.dimensions.clone())
    }

    async fn ty(&mut self, tensor: Resource<Tensor>) -> wasmtime::Result<TensorType> {
        Ok(match self.table.get(&tensor)?.kind {
            Kind::F16 => TensorType::Fp16,
            Kind::F32 => TensorType::Fp32,
            Kind::F64 => TensorType::Fp64,
            Kind::Bf16 => TensorType::Bf16,
            Kind::U8 => TensorType::U8,
            Kind::I32 => TensorType::I32,
            Kind::I64 => TensorType::I64,
        })
    }

    async fn data(&mut self, tensor: Resource<Tensor>) -> wasmtime::Result<Vec<u8>> {
        Ok(self.table.get(&tensor)?.data.clone())
    }

    async fn drop(&mut self, tensor: Resource<Tensor>) -> wasmtime::Result<()> {
        self.delete_tensor(tensor).map(|_| ())
    }
}

impl graph::Host for View<'_> {
    async fn load(
        &mut self,
        builder: Vec<Vec<u8>>,
        encoding: GraphEncoding,
        target: ExecutionTarget,
    ) -> Answer<Resource<GraphHandle>> {
        let target = match target {
            ExecutionTarget::Cpu => Target::Cpu,
            ExecutionTarget::Gpu => Target::Gpu,
            ExecutionTarget::Tpu => Target::Tpu,
        };
        let encoding = match encoding {
            GraphEncoding::Onnx => Encoding::Onnx,
            GraphEncoding::Openvino => Encoding::Openvino,
            GraphEncoding::Autodetect => Encoding::Autodetect,
            other => return self.fail(Failure::new(Code::InvalidEncoding, format!("{other:?} is not offered"))),
        };
        let parts: Vec<&[u8]> = builder.iter().map(Vec::as_slice).collect();
        match self.nn()?.load(encoding, target, &parts).await {
            Ok(graph) => Ok(Ok(self.table.push(GraphHandle(graph))?)),
            Err(failure) => self.fail(failure),
        }
    }

    async fn load_by_name(&mut self, name: String) -> Answer<Resource<GraphHandle>> {
        match self.nn()?.named(&name) {
            Ok(graph) => {
                // Handles of one model are cheap, but not free.
                self.nn()?.objects.add(0)?;
                Ok(Ok(self.table.push(GraphHandle(graph))?))
            }
            Err(failure) => self.fail(failure),
        }
    }
}

impl graph::HostGraph for View<'_> {
    async fn init_execution_context(&mut self, graph: Resource<GraphHandle>) -> Answer<Resource<ContextHandle>> {
        let graph = self.table.get(&graph)?.0;
        match self.nn()?.context(graph).await {
            Ok(context) => Ok(Ok(self.table.push(ContextHandle(context))?)),
            Err(failure) => self.fail(failure),
        }
    }

    async fn drop(&mut self, graph: Resource<GraphHandle>) -> wasmtime::Result<()> {
        let graph = self.table.delete(graph)?.0;
        let nn = self.nn()?;
        if nn.models.values().any(|named| *named == graph) {
            nn.objects.remove(0);
        }
        nn.drop_graph(graph).await;
        Ok(())
    }
}

impl inference::Host for View<'_> {}

impl inference::HostGraphExecutionContext for View<'_> {
    async fn compute(
        &mut self,
        context: Resource<ContextHandle>,
        inputs: Vec<(String, Resource<Tensor>)>,
    ) -> Answer<Vec<(String, Resource<Tensor>)>> {
        let context = self.table.get(&context)?.0;
        let mut tensors = Vec::new();
        for (name, tensor) in inputs {
            tensors.push((name, self.delete_tensor(tensor)?));
        }
        if tensors.len() > PORTS_MAX || tensors.iter().any(|(name, _)| name.len() > NAME_BYTES_MAX) {
            return self.fail(Failure::invalid("more inputs, or longer names, than a model has"));
        }
        match self.run(context, tensors).await {
            Ok(outputs) => {
                let mut named = Vec::new();
                for (name, tensor) in outputs {
                    named.push((name, self.push_tensor(tensor)?));
                }
                Ok(Ok(named))
            }
            Err(failure) => self.fail(failure),
        }
    }

    async fn drop(&mut self, context: Resource<ContextHandle>) -> wasmtime::Result<()> {
        let context = self.table.delete(context)?.0;
        self.nn()?.drop_context(context).await;
        Ok(())
    }
}

impl errors::Host for View<'_> {}

impl errors::HostError for View<'_> {
    async fn code(&mut self, error: Resource<Failure>) -> wasmtime::Result<ErrorCode> {
        Ok(match self.table.get(&error)?.code {
            Code::InvalidArgument => ErrorCode::InvalidArgument,
            Code::InvalidEncoding => ErrorCode::InvalidEncoding,
            Code::RuntimeError => ErrorCode::RuntimeError,
            Code::UnsupportedOperation => ErrorCode::UnsupportedOperation,
            Code::TooLarge => ErrorCode::TooLarge,
            Code::NotFound => ErrorCode::NotFound,
        })
    }

    async fn data(&mut self, error: Resource<Failure>) -> wasmtime::Result<String> {
        Ok(self.table.get(&error)?.message.clone())
    }

    async fn drop(&mut self, error: Resource<Failure>) -> wasmtime::Result<()> {
        self.table.delete(error)?;
        self.nn()?.objects.remove(0);
        Ok(())
    }
}
