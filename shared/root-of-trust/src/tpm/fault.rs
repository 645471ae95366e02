//! What libtss2 answers, sorted into what a caller can do about it.

use tss_esapi::Error as TssError;
use tss_esapi::constants::response_code::Tss2ResponseCode;

use crate::RootError;

/// A command that failed, or a reason of our own.
#[derive(Debug)]
pub(super) enum Fault {
    /// What libtss2 answered.
    Tss { command: &'static str, error: TssError },
    /// What we found.
    Root(RootError),
}

/// Layers of TSS response codes (TSS 2.0 Overview and Common Structures, section 2.4).
const LAYER_TPM: u32 = 0;
const LAYER_TCTI: u32 = 10;
const LAYER_RESOURCE_MANAGER: [u32; 2] = [11, 12];

/// TPM_RC_OBJECT_MEMORY, SESSION_MEMORY, MEMORY, SESSION_HANDLES, OBJECT_HANDLES, NV_SPACE (TPM 2.0 Library, part 2, 6.6).
const NO_ROOM: [u32; 6] = [0x902, 0x903, 0x904, 0x905, 0x906, 0x14B];
/// TPM_RC_INITIALIZE.
const NOT_STARTED: u32 = 0x100;

pub(super) trait At<T> {
    /// Says which command it was.
    fn at(self, command: &'static str) -> Result<T, Fault>;
}

impl<T> At<T> for Result<T, TssError> {
    fn at(self, command: &'static str) -> Result<T, Fault> {
        self.map_err(|error| Fault::Tss { command, error })
    }
}

impl From<RootError> for Fault {
    fn from(error: RootError) -> Self {
        Self::Root(error)
    }
}

/// A refusal in our own words.
pub(super) fn refused(command: &'static str, reason: impl Into<String>) -> Fault {
    Fault::Root(RootError::Refused {
        command,
        reason: reason.into(),
    })
}

/// The number of a response code; tss-esapi shows it only as text.
fn number(error: TssError) -> Option<u32> {
    let text = match error {
        TssError::Tss2Error(Tss2ResponseCode::FormatZero(code)) => code.to_string(),
        TssError::Tss2Error(Tss2ResponseCode::FormatOne(code)) => code.to_string(),
        _ => return None,
    };
    u32::from_str_radix(text.rsplit_once("0x")?.1, 16).ok()
}

impl Fault {
    /// The TPM's own response code, without the layer of a resource manager.
    pub(super) fn tpm_code(&self) -> Option<u32> {
        let Self::Tss { error, .. } = self else { return None };
        let code = number(*error)?;
        let layer = code >> 16 & 0xFF;
        let from_tpm = layer == LAYER_TPM || LAYER_RESOURCE_MANAGER.contains(&layer);
        from_tpm.then_some(code & 0xFFFF)
    }

    /// Whether more room in the TPM would help.
    pub(super) fn is_no_room(&self) -> bool {
        self.tpm_code().is_some_and(|code| NO_ROOM.contains(&code))
    }

    /// Whether the context that it came from should not be used again.
    pub(super) const fn spoils_context(&self) -> bool {
        matches!(self, Self::Tss { .. })
    }

    fn is_transport(&self) -> bool {
        let Self::Tss { error, .. } = self else { return false };
        number(*error).is_some_and(|code| code >> 16 & 0xFF == LAYER_TCTI)
    }
}

impl From<Fault> for RootError {
    fn from(fault: Fault) -> Self {
        let (no_room, transport, code) = (fault.is_no_room(), fault.is_transport(), fault.tpm_code());
        let (command, error) = match fault {
            Fault::Root(error) => return error,
            Fault::Tss { command, error } => (command, error),
        };
        let reason = match (number(error), code) {
            (_, Some(NOT_STARTED)) => "it was not started: the firmware must send TPM2_Startup (0x100)".into(),
            (Some(code), _) if transport => format!("its device or socket does not work (libtss2 says {code:#x})"),
            (Some(code), _) => format!("{error} ({code:#x})"),
            (None, _) => error.to_string(),
        };
        if no_room {
            Self::NoRoom { command, reason }
        } else if transport {
            Self::NoAnswer { command, reason }
        } else {
            Self::Refused { command, reason }
        }
    }
}
