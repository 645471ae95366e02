//! Where a node's TPM is and what it may use of it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use tss_esapi::WrapperErrorKind;
use tss_esapi::tcti_ldr::{DeviceConfig, NetworkTPMConfig, TabrmdConfig, TctiNameConf};
use zeroize::Zeroizing;

use super::EkKind;
use crate::RootError;

/// How long a caller waits for a command that makes no key, unless configured. Hardware takes up to a second for a
/// signature, and callers wait for each other.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long a caller waits where keys are made (opening, enrolment, activation), unless configured. An RSA key takes some
/// hardware a minute.
pub const KEY_LIMIT: Duration = Duration::from_secs(300);
/// The storage root key's handle (TCG TPM v2.0 Provisioning Guidance, section 7.5.1).
pub const SRK_HANDLE: u32 = 0x8100_0001;
/// The attestation key's handle.
pub const AK_HANDLE: u32 = 0x8100_0011;
/// The device key's handle.
pub const DEVICE_HANDLE: u32 = 0x8100_0012;
/// The monotonic counter's NV index; 0x01800000 to 0x01BFFFFF are the owner's (TCG Registry of reserved handles).
pub const COUNTER_INDEX: u32 = 0x0180_0200;

const OWNER_PERSISTENT: std::ops::RangeInclusive<u32> = 0x8100_0000..=0x817F_FFFF;
const OWNER_NV: std::ops::RangeInclusive<u32> = 0x0180_0000..=0x01BF_FFFF;

/// Where a node's TPM is and what it may use of it.
#[derive(Clone)]
pub struct TpmConfig {
    /// How it is reached: `device:/dev/tpmrm0`, `swtpm:host=127.0.0.1,port=2321`, `tabrmd`.
    pub tcti: String,
    /// Handle of the storage root key; a storage key that is there is used.
    pub srk_handle: u32,
    /// Handle of the attestation key.
    pub ak_handle: u32,
    /// Handle of the device key.
    pub device_handle: u32,
    /// NV index of the monotonic counter.
    pub counter_index: u32,
    /// Which endorsement key to show; by default the first of [`EkKind::ORDER`] that has a certificate.
    pub ek: Option<EkKind>,
    /// The owner's password; mostly empty. Needed to make keys and the counter.
    pub owner_auth: Zeroizing<Vec<u8>>,
    /// The password of the endorsement hierarchy; mostly empty. Needed at enrolment.
    pub endorsement_auth: Zeroizing<Vec<u8>>,
    /// How long a caller waits for a command that makes no key.
    pub answer_limit: Duration,
    /// How long a caller waits where keys are made.
    pub key_limit: Duration,
}

impl TpmConfig {
    /// The usual handles and limits for the TPM behind `tcti`.
    #[must_use]
    pub fn new(tcti: impl Into<String>) -> Self {
        Self {
            tcti: tcti.into(),
            srk_handle: SRK_HANDLE,
            ak_handle: AK_HANDLE,
            device_handle: DEVICE_HANDLE,
            counter_index: COUNTER_INDEX,
            ek: None,
            owner_auth: Zeroizing::default(),
            endorsement_auth: Zeroizing::default(),
            answer_limit: ANSWER_LIMIT,
            key_limit: KEY_LIMIT,
        }
    }

    /// Refuses what cannot be before any thread is started for it.
    pub(super) fn check(&self) -> Result<(), RootError> {
        self.name_conf()?;
        let keys = [
            ("the storage key", self.srk_handle),
            ("the attestation key", self.ak_handle),
            ("the device key", self.device_handle),
        ];
        for (i, (what, handle)) in keys.iter().enumerate() {
            if !OWNER_PERSISTENT.contains(handle) {
                return Err(RootError::Config(format!(
                    "{handle:#010x} cannot be the handle of {what}: an owner's persistent handles are 0x81000000 to 0x817fffff"
                )));
            }
            if let Some((other, _)) = keys[..i].iter().find(|(_, h)| h == handle) {
                return Err(RootError::Config(format!(
                    "{other} and {what} have the same handle {handle:#010x}; each needs its own"
                )));
            }
        }
        if !OWNER_NV.contains(&self.counter_index) {
            return Err(RootError::Config(format!(
                "{:#010x} cannot be the index of the counter: an owner's NV indices are 0x01800000 to 0x01bfffff",
                self.counter_index
            )));
        }
        Ok(())
    }

    /// Not by `TctiNameConf`'s own reader, which compiles a regular expression for each kind it tries.
    pub(super) fn name_conf(&self) -> Result<TctiNameConf, RootError> {
        let (kind, rest) = self.tcti.split_once(':').unwrap_or((&self.tcti, ""));
        let parsed = match kind {
            "device" => DeviceConfig::from_str(rest).map(TctiNameConf::Device),
            "swtpm" => NetworkTPMConfig::from_str(rest).map(TctiNameConf::Swtpm),
            "mssim" => NetworkTPMConfig::from_str(rest).map(TctiNameConf::Mssim),
            "tabrmd" => TabrmdConfig::from_str(rest).map(TctiNameConf::Tabrmd),
            _ => Err(tss_esapi::Error::WrapperError(WrapperErrorKind::InvalidParam)),
        };
        parsed.map_err(|e| {
            RootError::Config(format!(
                "{:?} does not say where a TPM is ({e}); say for example device:/dev/tpmrm0",
                self.tcti
            ))
        })
    }

    /// Whether something stands between us and the TPM that keeps its clients apart. `device` alone is `/dev/tpmrm0`.
    pub(super) fn has_resource_manager(&self) -> bool {
        let direct = self.tcti.starts_with("swtpm")
            || self.tcti.starts_with("mssim")
            || (self.tcti.starts_with("device:") && !self.tcti.contains("tpmrm"));
        !direct
    }
}

// Not derived: passwords are not for logs.
impl fmt::Debug for TpmConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TpmConfig")
            .field("tcti", &self.tcti)
            .field("srk_handle", &self.srk_handle)
            .field("ak_handle", &self.ak_handle)
            .field("device_handle", &self.device_handle)
            .field("counter_index", &self.counter_index)
            .field("ek", &self.ek)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let good = TpmConfig::new("device:/dev/tpmrm0");
        assert_eq!(good.check(), Ok(()));
        let refused = |config: TpmConfig| config.check().unwrap_err().to_string();
        let bad = TpmConfig {
            ak_handle: 0x8180_0001,
            ..good.clone()
        };
        assert!(refused(bad).contains("0x81800001"));
        let bad = TpmConfig {
            device_handle: AK_HANDLE,
            ..good.clone()
        };
        assert!(refused(bad).contains("same handle"));
        let bad = TpmConfig {
            counter_index: 0x01C0_0002,
            ..good.clone()
        };
        assert!(refused(bad).contains("0x01c00002"));
        for bad in ["usb", "", "swtpm:port=high", "device2:/dev/tpm0"] {
            assert!(refused(TpmConfig::new(bad)).contains(&format!("{bad:?}")), "{bad}");
        }
        for good in ["device", "tabrmd", "mssim:host=localhost,port=2321", "swtpm"] {
            assert_eq!(TpmConfig::new(good).check(), Ok(()), "{good}");
        }
    }

    #[test]
    fn only_what_is_direct_has_no_resource_manager() {
        for (tcti, has) in [
            ("device:/dev/tpmrm0", true),
            ("device", true),
            ("tabrmd", true),
            ("device:/dev/tpm0", false),
            ("swtpm:port=1", false),
        ] {
            assert_eq!(TpmConfig::new(tcti).has_resource_manager(), has, "{tcti}");
        }
    }

    #[test]
    fn passwords_are_not_printed() {
        let config = TpmConfig {
            owner_auth: Zeroizing::new(b"hunter2".to_vec()),
            ..TpmConfig::new("tabrmd")
        };
        let shown = format!("{config:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("104, 117"), "{shown}");
    }
}
