//! wasi-nn for modules of preview 1: `wasi_ephemeral_nn`. Every pointer is checked; what is wrong is an error number.

use cnova_wasm_nn::{Code, Encoding, Failure, Kind, MODEL_PARTS_MAX, NAME_BYTES_MAX, RANK_MAX, Slot, Target, Tensor};
use wasmtime::{Caller, Extern, Linker, Memory};

use super::Nn;
use crate::guest::ModuleHost;

const MODULE: &str = "wasi_ephemeral_nn";

type Call<'a> = Caller<'a, ModuleHost>;

/// Defines a function whose result is an error number.
macro_rules! define {
    ($linker:ident, $function:ident, $arguments:ty) => {
        $linker.func_wrap_async(
            MODULE,
            stringify!($function),
            |mut caller: Call<'_>, arguments: $arguments| {
                Box::new(async move {
                    let result = $function(&mut caller, arguments).await;
                    wasmtime::Result::Ok(errno(&caller, result))
                })
            },
        )?
    };
}

/// Offers it to a module.
pub(crate) fn add_to_module_linker(linker: &mut Linker<ModuleHost>) -> wasmtime::Result<()> {
    define!(linker, load, (u32, u32, u32, u32, u32));
    define!(linker, load_by_name, (u32, u32, u32));
    define!(linker, init_execution_context, (u32, u32));
    define!(linker, set_input, (u32, u32, u32));
    define!(linker, compute, (u32,));
    define!(linker, get_output, (u32, u32, u32, u32, u32));
    Ok(())
}

/// The number of the outcome; the words of a failure go to the log.
fn errno(caller: &Call<'_>, result: Result<(), Failure>) -> u32 {
    let Err(failure) = result else {
        return 0;
    };
    if let Some(nn) = &caller.data().nn {
        nn.note(&failure);
    }
    match failure.code {
        Code::InvalidArgument => 1,
        Code::InvalidEncoding => 2,
        Code::RuntimeError => 5,
        Code::UnsupportedOperation => 6,
        Code::TooLarge => 7,
        Code::NotFound => 8,
    }
}

fn nn<'a>(caller: &'a mut Call<'_>) -> Result<&'a mut Nn, Failure> {
    let nn = caller.data_mut().nn.as_mut();
    nn.ok_or_else(|| Failure::new(Code::UnsupportedOperation, "wasi-nn is not granted"))
}

fn memory(caller: &mut Call<'_>) -> Result<Memory, Failure> {
    match caller.get_export("memory") {
        Some(Extern::Memory(memory)) => Ok(memory),
        _ => Err(Failure::invalid("the module exports no memory of the name `memory`")),
    }
}

/// A copy of a piece of the guest's memory.
fn read(caller: &mut Call<'_>, at: u32, length: u32) -> Result<Vec<u8>, Failure> {
    let memory = memory(caller)?;
    let (start, end) = (at as usize, (at as usize).saturating_add(length as usize));
    let piece = memory.data(&*caller).get(start..end);
    piece.map(<[u8]>::to_vec).ok_or_else(|| outside(at, length as usize))
}

fn write(caller: &mut Call<'_>, at: u32, bytes: &[u8]) -> Result<(), Failure> {
    let memory = memory(caller)?;
    let (start, end) = (at as usize, (at as usize).saturating_add(bytes.len()));
    let piece = memory.data_mut(caller).get_mut(start..end);
    piece.ok_or_else(|| outside(at, bytes.len()))?.copy_from_slice(bytes);
    Ok(())
}

fn outside(at: u32, length: usize) -> Failure {
    Failure::invalid(format!("{length} bytes at {at} lie outside the memory"))
}

/// Little-endian numbers that follow each other in memory.
fn words(bytes: &[u8]) -> Vec<u32> {
    let (words, _) = bytes.as_chunks();
    words.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

async fn load(
    caller: &mut Call<'_>,
    (builders, count, encoding, target, graph_at): (u32, u32, u32, u32, u32),
) -> Result<(), Failure> {
    if count as usize > MODEL_PARTS_MAX {
        return Err(Failure::invalid(format!(
            "{count} parts, at most {MODEL_PARTS_MAX} are allowed"
        )));
    }
    let encoding = match encoding {
        0 => Encoding::Openvino,
        1 => Encoding::Onnx,
        5 => Encoding::Autodetect,
        other => {
            return Err(Failure::new(
                Code::InvalidEncoding,
                format!("encoding {other} is not offered"),
            ));
        }
    };
    let target = match target {
        0 => Target::Cpu,
        1 => Target::Gpu,
        2 => Target::Tpu,
        other => return Err(Failure::invalid(format!("there is no target {other}"))),
    };
    let list = words(&read(caller, builders, count * 8)?);
    let mut parts = Vec::new();
    for pair in list.chunks_exact(2) {
        parts.push(read(caller, pair[0], pair[1])?);
    }
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    let graph = nn(caller)?.load(encoding, target, &parts).await?;
    write(caller, graph_at, &graph.to_le_bytes())
}

async fn load_by_name(caller: &mut Call<'_>, (name, length, graph_at): (u32, u32, u32)) -> Result<(), Failure> {
    if length as usize > NAME_BYTES_MAX {
        return Err(Failure::new(
            Code::NotFound,
            format!("a name of {length} bytes is no model's"),
        ));
    }
    let name = read(caller, name, length)?;
    let name = String::from_utf8(name).map_err(|_| Failure::invalid("the name is not UTF-8"))?;
    let graph = nn(caller)?.named(&name)?;
    write(caller, graph_at, &graph.to_le_bytes())
}

async fn init_execution_context(caller: &mut Call<'_>, (graph, context_at): (u32, u32)) -> Result<(), Failure> {
    let context = nn(caller)?.context(graph).await?;
    write(caller, context_at, &context.to_le_bytes())
}

/// A tensor in memory: dimensions (pointer, count), type (one byte), data (pointer, length); 20 bytes.
async fn set_input(caller: &mut Call<'_>, (context, index, tensor): (u32, u32, u32)) -> Result<(), Failure> {
    let fields = words(&read(caller, tensor, 20)?);
    let [dimensions_at, rank, kind, data_at, data_length] = fields[..] else {
        return Err(Failure::invalid("a tensor has 20 bytes"));
    };
    if rank as usize > RANK_MAX {
        return Err(Failure::new(
            Code::TooLarge,
            format!("{rank} dimensions, at most {RANK_MAX} are allowed"),
        ));
    }
    // The three bytes after the type's are padding.
    let kind = match kind & 0xff {
        0 => Kind::F16,
        1 => Kind::F32,
        2 => Kind::F64,
        3 => Kind::U8,
        4 => Kind::I32,
        5 => Kind::I64,
        other => return Err(Failure::invalid(format!("there is no tensor type {other}"))),
    };
    let tensor = Tensor {
        dimensions: words(&read(caller, dimensions_at, rank * 4)?),
        kind,
        data: read(caller, data_at, data_length)?,
    };
    nn(caller)?.set_input(context, Slot::Index(index), &tensor).await
}

async fn compute(caller: &mut Call<'_>, (context,): (u32,)) -> Result<(), Failure> {
    nn(caller)?.compute(context).await.map(|_| ())
}

async fn get_output(
    caller: &mut Call<'_>,
    (context, index, buffer, buffer_length, written_at): (u32, u32, u32, u32, u32),
) -> Result<(), Failure> {
    let tensor = nn(caller)?.output(context, index).await?;
    let written = u32::try_from(tensor.data.len()).unwrap_or(u32::MAX);
    if written > buffer_length {
        let message = format!("output {index} has {written} bytes, the buffer {buffer_length}");
        return Err(Failure::new(Code::TooLarge, message));
    }
    write(caller, buffer, &tensor.data)?;
    write(caller, written_at, &written.to_le_bytes())
}
