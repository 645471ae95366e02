//! Shapes and elements.

use serde::{Deserialize, Serialize};

use crate::protocol::Code;
use crate::{Failure, RANK_MAX, TENSOR_BYTES_MAX};

/// The type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Half-precision float.
    F16,
    /// Single-precision float.
    F32,
    /// Double-precision float.
    F64,
    /// Brain float.
    Bf16,
    /// Unsigned byte.
    U8,
    /// Signed 32-bit integer.
    I32,
    /// Signed 64-bit integer.
    I64,
}

impl Kind {
    /// Size of one element, in bytes.
    pub fn bytes(self) -> u64 {
        match self {
            Kind::U8 => 1,
            Kind::F16 | Kind::Bf16 => 2,
            Kind::F32 | Kind::I32 => 4,
            Kind::F64 | Kind::I64 => 8,
        }
    }
}

/// A tensor with its elements, row by row, little-endian.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Its shape.
    pub dimensions: Vec<u32>,
    /// The type of its elements.
    pub kind: Kind,
    /// Its elements.
    pub data: Vec<u8>,
}

/// Fails unless shape, type and number of bytes fit each other and the limits.
pub fn check_shape(dimensions: &[u32], kind: Kind, bytes: u64) -> Result<(), Failure> {
    if dimensions.len() > RANK_MAX {
        let message = format!(
            "a tensor of {} dimensions, at most {RANK_MAX} are allowed",
            dimensions.len()
        );
        return Err(Failure::new(Code::TooLarge, message));
    }
    let wanted = dimensions
        .iter()
        .try_fold(kind.bytes(), |size, dimension| size.checked_mul(u64::from(*dimension)));
    match wanted {
        None => Err(Failure::new(
            Code::TooLarge,
            format!("a tensor of shape {dimensions:?}"),
        )),
        Some(wanted) if wanted > TENSOR_BYTES_MAX => Err(Failure::new(
            Code::TooLarge,
            format!("a tensor of {wanted} bytes, at most {TENSOR_BYTES_MAX} are allowed"),
        )),
        Some(wanted) if wanted != bytes => Err(Failure::invalid(format!(
            "a {kind:?} tensor of shape {dimensions:?} has {wanted} bytes, {bytes} were given"
        ))),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_that_lie_are_found() {
        check_shape(&[2, 3], Kind::F32, 24).unwrap();
        check_shape(&[], Kind::I64, 8).unwrap();
        check_shape(&[0], Kind::U8, 0).unwrap();
        for (dimensions, kind, bytes) in [
            (&[2, 3][..], Kind::F32, 23),
            (&[2, 3], Kind::F16, 24),
            (&[u32::MAX, u32::MAX, u32::MAX], Kind::F64, 0),
            (&[u32::MAX], Kind::F64, 8),
            (&[1; 9], Kind::U8, 1),
        ] {
            check_shape(dimensions, kind, bytes).unwrap_err();
        }
    }
}
