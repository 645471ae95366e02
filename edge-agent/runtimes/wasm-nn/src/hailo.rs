//! HailoRT by its C interface, loaded at run time: for a Hailo-8, 8L or 10H.
//!
//! Inputs go in as bytes (the device's own numbers) or as `f32` (the library quantises them); outputs come back as
//! `f32`, flat, in the order that the model's compiler chose.

use std::ffi::{CStr, c_char, c_void};
use std::path::Path;
use std::rc::Rc;

use cnova_wasm_nn::{Code, Failure, Kind, PORTS_MAX, Slot, TENSOR_BYTES_MAX, Tensor};
use libloading::Library;

use crate::backend::{Backend, Context, Graph, Model};
use crate::onnx::find;
use crate::openvino::interface;

/// Where the library is looked for if the node does not say.
const LIBRARY: &str = "libhailort.so";
/// `HAILO_SUCCESS`.
const SUCCESS: u32 = 0;
/// `HAILO_FORMAT_TYPE_UINT8`.
const UINT8: u32 = 1;
/// `HAILO_FORMAT_TYPE_FLOAT32`.
const FLOAT32: u32 = 3;
/// `HAILO_MAX_STREAM_NAME_SIZE`.
const NAME_BYTES: usize = 128;

/// A thing of the library.
type Object = *mut c_void;

/// `hailo_input_vstream_params_by_name_t`, and the same for outputs.
#[repr(C)]
#[derive(Clone, Copy)]
struct StreamParams {
    name: [c_char; NAME_BYTES],
    format_type: u32,
    format_order: u32,
    format_flags: u32,
    timeout_ms: u32,
    queue_size: u32,
    stats_flags: u32,
    element_stats_flags: u32,
}

interface!(Api {
    hailo_get_status_message: fn(u32) -> *const c_char;
    hailo_create_vdevice: fn(*mut c_void, *mut Object) -> u32;
    hailo_release_vdevice: fn(Object) -> u32;
    hailo_create_hef_buffer: fn(*mut Object, *const c_void, usize) -> u32;
    hailo_release_hef: fn(Object) -> u32;
    hailo_configure_vdevice: fn(Object, Object, *mut c_void, *mut Object, *mut usize) -> u32;
    hailo_make_input_vstream_params: fn(Object, bool, u32, *mut StreamParams, *mut usize) -> u32;
    hailo_make_output_vstream_params: fn(Object, bool, u32, *mut StreamParams, *mut usize) -> u32;
    hailo_create_input_vstreams: fn(Object, *const StreamParams, usize, *mut Object) -> u32;
    hailo_create_output_vstreams: fn(Object, *const StreamParams, usize, *mut Object) -> u32;
    hailo_get_input_vstream_frame_size: fn(Object, *mut usize) -> u32;
    hailo_get_output_vstream_frame_size: fn(Object, *mut usize) -> u32;
    hailo_vstream_write_raw_buffer: fn(Object, *const c_void, usize) -> u32;
    hailo_vstream_read_raw_buffer: fn(Object, *mut c_void, usize) -> u32;
    hailo_release_input_vstreams: fn(*const Object, usize) -> u32;
    hailo_release_output_vstreams: fn(*const Object, usize) -> u32;
});

/// The loaded library with the device; kept by all that comes from it.
struct Device {
    api: Api,
    vdevice: Object,
    _library: Library,
}

impl Device {
    fn check(&self, what: &str, status: u32) -> Result<(), Failure> {
        if status == SUCCESS {
            return Ok(());
        }
        Err(Failure::runtime(format!(
            "HailoRT: {what}: {}",
            message(self.api, status)
        )))
    }
}

fn message(api: Api, status: u32) -> String {
    // SAFETY: the library returns a string constant.
    unsafe { CStr::from_ptr((api.hailo_get_status_message)(status)) }
        .to_string_lossy()
        .into_owned()
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: the device was made by this library and nothing uses it any more.
        unsafe { (self.api.hailo_release_vdevice)(self.vdevice) };
    }
}

/// The engine.
pub(crate) struct Hailo(Rc<Device>);

impl Hailo {
    pub(crate) fn open(library: Option<&Path>) -> Result<Hailo, Failure> {
        let path = library.unwrap_or(Path::new(LIBRARY));
        let missing = |error: libloading::Error| {
            let message = format!("cannot load {}: {error}; install HailoRT on the node", path.display());
            Failure::new(Code::UnsupportedOperation, message)
        };
        // SAFETY: the node's own library, whose initialisers are trusted as the node's software is.
        let library = unsafe { Library::new(path) }.map_err(missing)?;
        // SAFETY: the signatures are those of HailoRT's header (4.16 and later).
        let api = unsafe { Api::find(&library) }.map_err(missing)?;
        let mut vdevice = std::ptr::null_mut();
        // SAFETY: no parameters are the defaults.
        let status = unsafe { (api.hailo_create_vdevice)(std::ptr::null_mut(), &raw mut vdevice) };
        if status != SUCCESS {
            let message = format!("HailoRT: open the device: {}", message(api, status));
            return Err(Failure::new(Code::UnsupportedOperation, message));
        }
        Ok(Hailo(Rc::new(Device {
            api,
            vdevice,
            _library: library,
        })))
    }
}

impl Backend for Hailo {
    fn load(&mut self, model: &Model<'_>) -> Result<Box<dyn Graph>, Failure> {
        let Model::Hef(bytes) = model else {
            let message = "a Hailo takes .hef only: compile the model with Hailo's own compiler";
            return Err(Failure::new(Code::InvalidEncoding, message));
        };
        let (device, api) = (&self.0, self.0.api);
        let mut hef = std::ptr::null_mut();
        // SAFETY: the bytes live longer than the call.
        let status = unsafe { (api.hailo_create_hef_buffer)(&raw mut hef, bytes.as_ptr().cast(), bytes.len()) };
        device.check("read the .hef", status)?;
        let (mut group, mut count) = (std::ptr::null_mut(), 1);
        // SAFETY: room for one network group is given, and said so.
        let status = unsafe {
            let none = std::ptr::null_mut();
            (api.hailo_configure_vdevice)(device.vdevice, hef, none, &raw mut group, &raw mut count)
        };
        // SAFETY: a configured network group does not need the file any more.
        unsafe { (api.hailo_release_hef)(hef) };
        device.check("configure the device", status)?;
        if count != 1 {
            return Err(Failure::invalid(format!(
                "the .hef has {count} network groups, one is needed"
            )));
        }
        let network = Network {
            device: device.clone(),
            group,
        };
        let inputs = network.params(api.hailo_make_input_vstream_params, UINT8)?;
        let outputs = network.params(api.hailo_make_output_vstream_params, FLOAT32)?;
        Ok(Box::new(HailoGraph(Rc::new(Configured {
            network,
            inputs: inputs.iter().map(name).collect(),
            outputs: outputs.iter().map(name).collect(),
        }))))
    }
}

fn name(params: &StreamParams) -> String {
    let bytes: Vec<u8> = params
        .name
        .iter()
        .map(|byte| byte.to_ne_bytes()[0])
        .take_while(|byte| *byte != 0)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A configured network group. It lives as long as the device.
struct Network {
    device: Rc<Device>,
    group: Object,
}

type MakeParams = unsafe extern "C" fn(Object, bool, u32, *mut StreamParams, *mut usize) -> u32;

impl Network {
    fn params(&self, make: MakeParams, format_type: u32) -> Result<Vec<StreamParams>, Failure> {
        // SAFETY: all of it is numbers, for which zeros are valid.
        let mut params: Vec<StreamParams> = vec![unsafe { std::mem::zeroed() }; PORTS_MAX];
        let mut count = params.len();
        // SAFETY: there is room for `count` entries.
        let status = unsafe { make(self.group, true, format_type, params.as_mut_ptr(), &raw mut count) };
        self.device.check("streams", status)?;
        params.truncate(count.min(PORTS_MAX));
        Ok(params)
    }
}

struct Configured {
    network: Network,
    inputs: Vec<String>,
    outputs: Vec<String>,
}

struct HailoGraph(Rc<Configured>);

impl Graph for HailoGraph {
    fn context(&self) -> Result<Box<dyn Context>, Failure> {
        Ok(Box::new(HailoContext {
            inputs: vec![None; self.0.inputs.len()],
            outputs: Vec::new(),
            model: self.0.clone(),
            streams: None,
        }))
    }
}

/// The open streams of one execution context.
struct Streams {
    device: Rc<Device>,
    format_type: u32,
    inputs: Vec<(Object, usize)>,
    outputs: Vec<(Object, usize)>,
}

impl Drop for Streams {
    fn drop(&mut self) {
        let objects = |streams: &[(Object, usize)]| -> Vec<Object> { streams.iter().map(|stream| stream.0).collect() };
        let (inputs, outputs) = (objects(&self.inputs), objects(&self.outputs));
        // SAFETY: the streams were made by this library and nothing uses them any more.
        unsafe {
            (self.device.api.hailo_release_input_vstreams)(inputs.as_ptr(), inputs.len());
            (self.device.api.hailo_release_output_vstreams)(outputs.as_ptr(), outputs.len());
        }
    }
}

type CreateStreams = unsafe extern "C" fn(Object, *const StreamParams, usize, *mut Object) -> u32;
type FrameSize = unsafe extern "C" fn(Object, *mut usize) -> u32;

impl Streams {
    fn open(network: &Network, format_type: u32) -> Result<Streams, Failure> {
        let api = network.device.api;
        let mut streams = Streams {
            device: network.device.clone(),
            format_type,
            inputs: Vec::new(),
            outputs: Vec::new(),
        };
        let params = network.params(api.hailo_make_input_vstream_params, format_type)?;
        let (create, size) = (api.hailo_create_input_vstreams, api.hailo_get_input_vstream_frame_size);
        streams.inputs = create_streams(network, &params, create, size)?;
        let params = network.params(api.hailo_make_output_vstream_params, FLOAT32)?;
        let (create, size) = (
            api.hailo_create_output_vstreams,
            api.hailo_get_output_vstream_frame_size,
        );
        streams.outputs = create_streams(network, &params, create, size)?;
        Ok(streams)
    }
}

/// Opens streams and asks how long a frame of each is, in bytes.
fn create_streams(
    network: &Network,
    params: &[StreamParams],
    create: CreateStreams,
    frame_size: FrameSize,
) -> Result<Vec<(Object, usize)>, Failure> {
    let mut objects = vec![std::ptr::null_mut(); params.len()];
    // SAFETY: there is room for as many streams as there are parameters.
    let status = unsafe { create(network.group, params.as_ptr(), params.len(), objects.as_mut_ptr()) };
    network.device.check("open streams", status)?;
    let mut streams = Vec::new();
    for object in objects {
        let mut size = 0;
        // SAFETY: the stream was just made.
        network
            .device
            .check("frame size", unsafe { frame_size(object, &raw mut size) })?;
        streams.push((object, size));
    }
    match streams.iter().find(|stream| stream.1 as u64 > TENSOR_BYTES_MAX) {
        Some((_, size)) => Err(Failure::new(Code::TooLarge, format!("a frame of {size} bytes"))),
        None => Ok(streams),
    }
}

struct HailoContext {
    model: Rc<Configured>,
    inputs: Vec<Option<Tensor>>,
    outputs: Vec<Vec<u8>>,
    streams: Option<Streams>,
}

impl HailoContext {
    /// All inputs, of one type.
    fn check_inputs(&self) -> Result<(u32, Vec<&Tensor>), Failure> {
        let mut tensors = Vec::new();
        for (tensor, name) in self.inputs.iter().zip(&self.model.inputs) {
            tensors.push(
                tensor
                    .as_ref()
                    .ok_or_else(|| Failure::invalid(format!("input `{name}` is not set")))?,
            );
        }
        let bytes = tensors.iter().all(|tensor| tensor.kind == Kind::U8);
        match tensors.iter().all(|tensor| tensor.kind == Kind::F32) || bytes {
            true => Ok((if bytes { UINT8 } else { FLOAT32 }, tensors)),
            false => Err(Failure::invalid("the inputs of a Hailo are all u8 or all f32")),
        }
    }
}

impl Context for HailoContext {
    fn set_input(&mut self, slot: &Slot, tensor: Tensor) -> Result<(), Failure> {
        let names = &self.model.inputs;
        let index = find(slot, names)
            .ok_or_else(|| Failure::invalid(format!("the model has no input {slot:?}, only {}", names.join(", "))))?;
        self.inputs[index] = Some(tensor);
        Ok(())
    }

    fn compute(&mut self) -> Result<Vec<String>, Failure> {
        self.outputs.clear();
        let (format_type, _) = self.check_inputs()?;
        let streams = match self.streams.take() {
            Some(streams) if streams.format_type == format_type => streams,
            _ => Streams::open(&self.model.network, format_type)?,
        };
        let (_, tensors) = self.check_inputs()?;
        let device = &self.model.network.device;
        // All sizes first: a frame that was written without the others would stay in the device.
        for ((tensor, name), (_, size)) in tensors.iter().zip(&self.model.inputs).zip(&streams.inputs) {
            if tensor.data.len() != *size {
                let message = format!("input `{name}` takes {size} bytes, {} were given", tensor.data.len());
                return Err(Failure::invalid(message));
            }
        }
        for (tensor, (stream, size)) in tensors.iter().zip(&streams.inputs) {
            // SAFETY: the tensor has exactly a frame's bytes.
            let status =
                unsafe { (device.api.hailo_vstream_write_raw_buffer)(*stream, tensor.data.as_ptr().cast(), *size) };
            device.check("write", status)?;
        }
        let mut outputs = Vec::new();
        for (stream, size) in &streams.outputs {
            let mut frame = vec![0; *size];
            // SAFETY: the buffer has exactly a frame's bytes.
            let status =
                unsafe { (device.api.hailo_vstream_read_raw_buffer)(*stream, frame.as_mut_ptr().cast(), *size) };
            device.check("read", status)?;
            outputs.push(frame);
        }
        // Streams in which something failed are not used again: they are closed by then.
        (self.outputs, self.streams) = (outputs, Some(streams));
        Ok(self.model.outputs.clone())
    }

    fn output(&mut self, index: usize) -> Result<Tensor, Failure> {
        let data = self.outputs.get(index).cloned();
        let data = data.ok_or_else(|| Failure::invalid(format!("there is no output {index}: compute first")))?;
        let elements = u32::try_from(data.len() / 4).unwrap_or(0);
        Ok(Tensor {
            dimensions: vec![elements],
            kind: Kind::F32,
            data,
        })
    }
}
