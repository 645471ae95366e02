//! OpenVINO by its C interface, loaded at run time: for an Intel NPU.
//!
//! Everything that crosses the interface is checked on this side first, for the library trusts its caller.

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;
use std::rc::Rc;

use cnova_wasm_nn::{Code, Failure, Kind, PORTS_MAX, RANK_MAX, Slot, TENSOR_BYTES_MAX, Tensor};
use libloading::Library;

use crate::backend::{Backend, Context, Graph, Model};
use crate::onnx::{check_is_self_contained, find};

/// Where the library is looked for if the node does not say.
const LIBRARY: &str = "libopenvino_c.so";
/// `ov_status_e::OK`.
const OK: i32 = 0;

/// A thing of the library.
type Object = *mut c_void;

#[repr(C)]
#[derive(Clone, Copy)]
struct Shape {
    rank: i64,
    dims: *mut i64,
}

/// Declares the functions that are used and looks them all up at once.
macro_rules! interface {
    ($name:ident { $($function:ident: fn($($argument:ty),* $(; $variadic:tt)?) $(-> $result:ty)?;)* }) => {
        #[derive(Clone, Copy)]
        struct $name {
            $($function: unsafe extern "C" fn($($argument),* $(, $variadic)?) $(-> $result)?,)*
        }

        impl $name {
            /// # Safety
            /// The library must be the one whose header declares these functions so.
            unsafe fn find(library: &Library) -> Result<$name, libloading::Error> {
                Ok($name {
                    $($function: *unsafe { library.get(concat!(stringify!($function), "\0").as_bytes()) }?,)*
                })
            }
        }
    };
}
pub(crate) use interface;

interface!(Api {
    ov_get_error_info: fn(i32) -> *const c_char;
    ov_free: fn(*const c_char);
    ov_core_create: fn(*mut Object) -> i32;
    ov_core_free: fn(Object);
    ov_core_read_model_from_memory_buffer: fn(Object, *const c_char, usize, Object, *mut Object) -> i32;
    ov_core_compile_model: fn(Object, Object, *const c_char, usize, *mut Object; ...) -> i32;
    ov_model_free: fn(Object);
    ov_compiled_model_free: fn(Object);
    ov_compiled_model_inputs_size: fn(Object, *mut usize) -> i32;
    ov_compiled_model_outputs_size: fn(Object, *mut usize) -> i32;
    ov_compiled_model_input_by_index: fn(Object, usize, *mut Object) -> i32;
    ov_compiled_model_output_by_index: fn(Object, usize, *mut Object) -> i32;
    ov_compiled_model_create_infer_request: fn(Object, *mut Object) -> i32;
    ov_port_get_any_name: fn(Object, *mut *mut c_char) -> i32;
    ov_output_const_port_free: fn(Object);
    ov_tensor_create: fn(u32, Shape, *mut Object) -> i32;
    ov_tensor_data: fn(Object, *mut *mut c_void) -> i32;
    ov_tensor_get_byte_size: fn(Object, *mut usize) -> i32;
    ov_tensor_get_element_type: fn(Object, *mut u32) -> i32;
    ov_tensor_get_shape: fn(Object, *mut Shape) -> i32;
    ov_tensor_free: fn(Object);
    ov_shape_free: fn(*mut Shape) -> i32;
    ov_infer_request_set_input_tensor_by_index: fn(Object, usize, Object) -> i32;
    ov_infer_request_get_output_tensor_by_index: fn(Object, usize, *mut Object) -> i32;
    ov_infer_request_infer: fn(Object) -> i32;
    ov_infer_request_free: fn(Object);
});

/// The loaded library with its core; kept by all that comes from it.
struct Runtime {
    api: Api,
    core: Object,
    device: CString,
    _library: Library,
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // SAFETY: the core was made by this library and nothing uses it any more.
        unsafe { (self.api.ov_core_free)(self.core) }
    }
}

/// An object of the library, freed by the function that belongs to it.
struct Owned {
    runtime: Rc<Runtime>,
    object: Object,
    free: unsafe extern "C" fn(Object),
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: `free` is the library's own for this kind of object, which nobody uses any more.
        unsafe { (self.free)(self.object) }
    }
}

/// The engine.
pub(crate) struct Openvino(Rc<Runtime>);

impl Openvino {
    pub(crate) fn open(library: Option<&Path>, device: &str) -> Result<Openvino, Failure> {
        let path = library.unwrap_or(Path::new(LIBRARY));
        let missing = |error: libloading::Error| {
            let message = format!(
                "cannot load {}: {error}; install OpenVINO's runtime on the node",
                path.display()
            );
            Failure::new(Code::UnsupportedOperation, message)
        };
        // SAFETY: the node's own library, whose initialisers are trusted as the node's software is.
        let library = unsafe { Library::new(path) }.map_err(missing)?;
        // SAFETY: the signatures are those of OpenVINO's C headers (2025.0 and later).
        let api = unsafe { Api::find(&library) }.map_err(missing)?;
        let device = CString::new(device).map_err(|_| Failure::invalid("the device's name holds a zero byte"))?;
        let mut core = std::ptr::null_mut();
        // SAFETY: `core` is writable.
        let status = unsafe { (api.ov_core_create)(&raw mut core) };
        if status != OK {
            return Err(Failure::runtime(format!("ov_core_create: status {status}")));
        }
        let runtime = Runtime {
            api,
            core,
            device,
            _library: library,
        };
        runtime.check_numbering()?;
        Ok(Openvino(Rc::new(runtime)))
    }
}

impl Runtime {
    fn check(&self, what: &str, status: i32) -> Result<(), Failure> {
        if status == OK {
            return Ok(());
        }
        // SAFETY: the library returns a string constant.
        let text = unsafe { CStr::from_ptr((self.api.ov_get_error_info)(status)) };
        Err(Failure::runtime(format!(
            "OpenVINO: {what}: {}",
            text.to_string_lossy()
        )))
    }

    /// The numbers of the types moved in 2025. Their sizes tell whether they are where this code expects them.
    fn check_numbering(&self) -> Result<(), Failure> {
        for kind in [Kind::F16, Kind::F64, Kind::U8] {
            let (tensor, size) = self.new_tensor(element(kind), &mut [1])?;
            // SAFETY: the tensor was just made, and nobody else has it.
            unsafe { (self.api.ov_tensor_free)(tensor) };
            if size as u64 != kind.bytes() {
                let message = "this version of OpenVINO numbers its types in another way: install 2025.0 or newer";
                return Err(Failure::new(Code::UnsupportedOperation, message));
            }
        }
        Ok(())
    }

    /// The tensor and its size in bytes.
    fn new_tensor(&self, element: u32, dims: &mut [i64]) -> Result<(Object, usize), Failure> {
        let shape = Shape {
            rank: i64::try_from(dims.len()).unwrap_or(0),
            dims: dims.as_mut_ptr(),
        };
        let (mut tensor, mut size) = (std::ptr::null_mut(), 0);
        // SAFETY: the shape points to `rank` dimensions, which the library copies.
        self.check("tensor", unsafe {
            (self.api.ov_tensor_create)(element, shape, &raw mut tensor)
        })?;
        // SAFETY: the tensor was just made.
        self.check("tensor", unsafe {
            (self.api.ov_tensor_get_byte_size)(tensor, &raw mut size)
        })?;
        Ok((tensor, size))
    }
}

/// The library's number of a type: `ov_element_type_e` since 2025.
fn element(kind: Kind) -> u32 {
    match kind {
        Kind::Bf16 => 2,
        Kind::F16 => 3,
        Kind::F32 => 4,
        Kind::F64 => 5,
        Kind::I32 => 9,
        Kind::I64 => 10,
        Kind::U8 => 16,
    }
}

fn kind(number: u32) -> Result<Kind, Failure> {
    let kinds = [
        Kind::Bf16,
        Kind::F16,
        Kind::F32,
        Kind::F64,
        Kind::I32,
        Kind::I64,
        Kind::U8,
    ];
    let found = kinds.into_iter().find(|kind| element(*kind) == number);
    found.ok_or_else(|| {
        let message = format!("OpenVINO's type {number}, which wasi-nn does not have");
        Failure::new(Code::UnsupportedOperation, message)
    })
}

impl Backend for Openvino {
    fn load(&mut self, model: &Model<'_>) -> Result<Box<dyn Graph>, Failure> {
        let runtime = &self.0;
        let (text, weights) = match model {
            Model::Onnx(onnx) => {
                check_is_self_contained(onnx)?;
                (*onnx, &[][..])
            }
            Model::Ir(xml, weights) => (*xml, *weights),
            Model::Hef(_) => {
                return Err(Failure::new(
                    Code::InvalidEncoding,
                    "a .hef is for a Hailo, the workload leases an NPU",
                ));
            }
        };
        let weights = match weights {
            [] => None,
            weights => Some(bytes_tensor(runtime, weights)?),
        };
        let weights = weights.as_ref().map_or(std::ptr::null_mut(), |weights| weights.object);
        let api = runtime.api;
        let mut object = std::ptr::null_mut();
        // SAFETY: the text has this length, the weights live longer than the call.
        let status = unsafe {
            let text_start = text.as_ptr().cast();
            (api.ov_core_read_model_from_memory_buffer)(runtime.core, text_start, text.len(), weights, &raw mut object)
        };
        runtime.check("read the model", status)?;
        let model = owned(runtime, object, api.ov_model_free);
        let mut object = std::ptr::null_mut();
        // SAFETY: model, core and name are alive; no properties follow.
        let status = unsafe {
            (api.ov_core_compile_model)(runtime.core, model.object, runtime.device.as_ptr(), 0, &raw mut object)
        };
        let device = runtime.device.to_string_lossy();
        runtime.check(&format!("compile the model for {device}"), status)?;
        let compiled = owned(runtime, object, api.ov_compiled_model_free);
        let inputs = ports(
            &compiled,
            api.ov_compiled_model_inputs_size,
            api.ov_compiled_model_input_by_index,
        )?;
        let outputs = ports(
            &compiled,
            api.ov_compiled_model_outputs_size,
            api.ov_compiled_model_output_by_index,
        )?;
        Ok(Box::new(OpenvinoGraph(Rc::new(Compiled {
            compiled,
            inputs,
            outputs,
        }))))
    }
}

fn owned(runtime: &Rc<Runtime>, object: Object, free: unsafe extern "C" fn(Object)) -> Owned {
    Owned {
        runtime: runtime.clone(),
        object,
        free,
    }
}

fn bytes_tensor(runtime: &Rc<Runtime>, bytes: &[u8]) -> Result<Owned, Failure> {
    let length = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
    filled_tensor(runtime, element(Kind::U8), &mut [length], bytes)
}

/// A tensor with these bytes, if that is how many it has.
fn filled_tensor(runtime: &Rc<Runtime>, element: u32, dims: &mut [i64], bytes: &[u8]) -> Result<Owned, Failure> {
    let (object, size) = runtime.new_tensor(element, dims)?;
    let tensor = owned(runtime, object, runtime.api.ov_tensor_free);
    if size != bytes.len() {
        let message = format!("a tensor of {size} bytes was asked for, {} were given", bytes.len());
        return Err(Failure::invalid(message));
    }
    let mut data = std::ptr::null_mut();
    // SAFETY: the tensor is alive.
    runtime.check("tensor", unsafe { (runtime.api.ov_tensor_data)(object, &raw mut data) })?;
    if !data.is_null() {
        // SAFETY: the tensor has exactly `size` bytes, as many as are copied.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), data.cast(), size) };
    }
    Ok(tensor)
}

type Count = unsafe extern "C" fn(Object, *mut usize) -> i32;
type ByIndex = unsafe extern "C" fn(Object, usize, *mut Object) -> i32;

/// Names of a model's inputs or outputs.
fn ports(compiled: &Owned, count: Count, by_index: ByIndex) -> Result<Vec<String>, Failure> {
    let runtime = &compiled.runtime;
    let api = runtime.api;
    let mut number = 0;
    // SAFETY: the model is alive.
    runtime.check("count the ports", unsafe { count(compiled.object, &raw mut number) })?;
    if number > PORTS_MAX {
        return Err(Failure::new(
            Code::TooLarge,
            format!("{number} inputs or outputs, at most {PORTS_MAX} are allowed"),
        ));
    }
    let mut ports = Vec::new();
    for index in 0..number {
        let (mut object, mut name) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the index is below the count.
        runtime.check("port", unsafe { by_index(compiled.object, index, &raw mut object) })?;
        let port = owned(runtime, object, api.ov_output_const_port_free);
        // SAFETY: the port is alive; a port without a name leaves the pointer alone.
        let named = unsafe { (api.ov_port_get_any_name)(port.object, &raw mut name) };
        let text = match named {
            // SAFETY: the library gave a string of ours to free.
            OK if !name.is_null() => unsafe {
                let text = CStr::from_ptr(name).to_string_lossy().into_owned();
                (api.ov_free)(name);
                text
            },
            _ => index.to_string(),
        };
        ports.push(text);
    }
    Ok(ports)
}

struct Compiled {
    compiled: Owned,
    inputs: Vec<String>,
    outputs: Vec<String>,
}

struct OpenvinoGraph(Rc<Compiled>);

impl Graph for OpenvinoGraph {
    fn context(&self) -> Result<Box<dyn Context>, Failure> {
        let runtime = &self.0.compiled.runtime;
        let mut object = std::ptr::null_mut();
        // SAFETY: the model is alive.
        let status =
            unsafe { (runtime.api.ov_compiled_model_create_infer_request)(self.0.compiled.object, &raw mut object) };
        runtime.check("make a request", status)?;
        Ok(Box::new(OpenvinoContext {
            request: owned(runtime, object, runtime.api.ov_infer_request_free),
            model: self.0.clone(),
            inputs: Vec::new(),
        }))
    }
}

struct OpenvinoContext {
    request: Owned,
    model: Rc<Compiled>,
    /// Kept alive for as long as the request may use them.
    inputs: Vec<(usize, Owned)>,
}

impl Context for OpenvinoContext {
    fn set_input(&mut self, slot: &Slot, tensor: Tensor) -> Result<(), Failure> {
        let names = &self.model.inputs;
        let index = find(slot, names)
            .ok_or_else(|| Failure::invalid(format!("the model has no input {slot:?}, only {}", names.join(", "))))?;
        let runtime = &self.request.runtime;
        let mut dims: Vec<i64> = tensor
            .dimensions
            .iter()
            .map(|dimension| i64::from(*dimension))
            .collect();
        let filled = filled_tensor(runtime, element(tensor.kind), &mut dims, &tensor.data)?;
        // SAFETY: request and tensor are alive; the library checks type and shape against the model's.
        let status = unsafe {
            (runtime.api.ov_infer_request_set_input_tensor_by_index)(self.request.object, index, filled.object)
        };
        let what = format!("input `{}` of {:?} {:?}", names[index], tensor.kind, tensor.dimensions);
        runtime
            .check(&what, status)
            .map_err(|failure| Failure::invalid(failure.message))?;
        self.inputs.retain(|(set, _)| *set != index);
        self.inputs.push((index, filled));
        Ok(())
    }

    fn compute(&mut self) -> Result<Vec<String>, Failure> {
        for (index, name) in self.model.inputs.iter().enumerate() {
            if !self.inputs.iter().any(|(set, _)| *set == index) {
                return Err(Failure::invalid(format!("input `{name}` is not set")));
            }
        }
        let runtime = &self.request.runtime;
        // SAFETY: the request is alive.
        let status = unsafe { (runtime.api.ov_infer_request_infer)(self.request.object) };
        runtime.check("compute", status)?;
        Ok(self.model.outputs.clone())
    }

    fn output(&mut self, index: usize) -> Result<Tensor, Failure> {
        if index >= self.model.outputs.len() {
            return Err(Failure::invalid(format!(
                "there is no output {index}, only {}",
                self.model.outputs.len()
            )));
        }
        let runtime = &self.request.runtime;
        let api = runtime.api;
        let mut object = std::ptr::null_mut();
        // SAFETY: the request is alive and the index below the count.
        let status =
            unsafe { (api.ov_infer_request_get_output_tensor_by_index)(self.request.object, index, &raw mut object) };
        runtime.check("output", status)?;
        read_tensor(&owned(runtime, object, api.ov_tensor_free))
    }
}

fn read_tensor(tensor: &Owned) -> Result<Tensor, Failure> {
    let runtime = &tensor.runtime;
    let api = runtime.api;
    let (mut number, mut size, mut data) = (0, 0, std::ptr::null_mut());
    let mut shape = Shape {
        rank: 0,
        dims: std::ptr::null_mut(),
    };
    // SAFETY: the tensor is alive and all pointers are writable.
    unsafe {
        runtime.check("type", (api.ov_tensor_get_element_type)(tensor.object, &raw mut number))?;
        runtime.check("size", (api.ov_tensor_get_byte_size)(tensor.object, &raw mut size))?;
        runtime.check("data", (api.ov_tensor_data)(tensor.object, &raw mut data))?;
        runtime.check("shape", (api.ov_tensor_get_shape)(tensor.object, &raw mut shape))?;
    }
    let rank = usize::try_from(shape.rank).unwrap_or(0);
    let dims = match rank {
        0 => Vec::new(),
        // SAFETY: the library gave `rank` dimensions.
        _ => unsafe { std::slice::from_raw_parts(shape.dims, rank) }.to_vec(),
    };
    // SAFETY: the shape came from the library, and its dimensions were copied.
    unsafe { (api.ov_shape_free)(&raw mut shape) };
    if rank > RANK_MAX || size as u64 > TENSOR_BYTES_MAX {
        return Err(Failure::new(
            Code::TooLarge,
            format!("an output of {size} bytes and {rank} dimensions"),
        ));
    }
    let data = match size {
        0 => Vec::new(),
        // SAFETY: the tensor has `size` bytes and is alive.
        _ => unsafe { std::slice::from_raw_parts(data.cast::<u8>(), size) }.to_vec(),
    };
    Ok(Tensor {
        dimensions: dims
            .into_iter()
            .map(|dimension| u32::try_from(dimension).unwrap_or(0))
            .collect(),
        kind: kind(number)?,
        data,
    })
}
