//! A TPM 2.0, by libtss2 (`tss-esapi`). docs/TPM.md says what it holds for a node.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use cnova_attestation::{Credential, Pcr, Quote, TpmEnrolment};
use cnova_shared::certificate::Tier;
use cnova_shared::ids::Digest;
use cnova_shared::keys::{PublicKey, SignError, Signer};
use tss_esapi::traits::Marshall;
use zeroize::Zeroizing;

mod config;
mod counter;
mod endorsement;
mod fault;
mod link;
mod objects;
mod provision;
mod registers;
mod sealing;

pub use config::{AK_HANDLE, ANSWER_LIMIT, COUNTER_INDEX, DEVICE_HANDLE, KEY_LIMIT, SRK_HANDLE, TpmConfig};
pub use endorsement::EkKind;
pub use link::CALLERS_MAX;

#[cfg(feature = "testing")]
pub(crate) use endorsement::template as ek_template;

use crate::{BootApproval, RootError, RootOfTrust};
use fault::At;
use link::{Conversation, Link, Retry};

/// Longest qualifying data of a certification, in bytes (TPM2B_DATA of a TPM with SHA-256).
pub const QUALIFYING_BYTES_MAX: usize = 32;

/// A TPM 2.0.
///
/// One thread of its own talks to the device. Every call waits for it at most as long as [`TpmConfig`] says and is then
/// told [`RootError::NoAnswer`]; a TPM that is back is used again by the next call.
pub struct Tpm {
    link: Arc<Link>,
    config: Arc<TpmConfig>,
    device_key: PublicKey,
}

impl fmt::Debug for Tpm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tpm({}, {:?})", self.config.tcti, self.device_key)
    }
}

impl Tpm {
    /// Opens a TPM and makes what is missing in it: storage key, attestation key, device key. What is there is used;
    /// what was interrupted is finished.
    ///
    /// Where no resource manager stands in between (anything but `/dev/tpmrm*` and `tabrmd`), objects and sessions that an
    /// earlier process left in the TPM are flushed.
    ///
    /// # Errors
    /// [`RootError`]: a wrong configuration, no answer, or a key of somebody else under one of the handles.
    pub fn open(config: TpmConfig) -> Result<Self, RootError> {
        config.check()?;
        let config = Arc::new(config);
        let link = Arc::new(Link::start(&config)?);
        let device_key = link.call("open", config.key_limit, Retry::WhenFull, |tpm| {
            tpm.keyed()?.1.device_key()
        })?;
        Ok(Self {
            link,
            config,
            device_key,
        })
    }

    fn call<T: Send + 'static>(
        &self,
        command: &'static str,
        job: impl FnMut(&mut Conversation) -> Result<T, fault::Fault> + Send + 'static,
    ) -> Result<T, RootError> {
        self.link.call(command, self.config.answer_limit, Retry::WhenFull, job)
    }
}

/// Stops libtss2 from writing its errors to stderr (each is in a [`RootError`] as well), unless `TSS2_LOG` is set already.
///
/// # Safety
/// It changes the environment: call it first in `main`, before any other thread runs.
pub unsafe fn silence_libtss2() {
    if std::env::var_os("TSS2_LOG").is_none() {
        // SAFETY: the caller has no other thread.
        unsafe { std::env::set_var("TSS2_LOG", "all+NONE") };
    }
}

impl RootOfTrust for Tpm {
    fn tier(&self) -> Tier {
        Tier::Tpm
    }

    fn device_key(&self) -> Arc<dyn Signer> {
        Arc::new(DeviceKey {
            link: Arc::clone(&self.link),
            limit: self.config.answer_limit,
            public: self.device_key.clone(),
        })
    }

    fn enrolment(&self, qualifying: &[u8]) -> Result<TpmEnrolment, RootError> {
        if qualifying.len() > QUALIFYING_BYTES_MAX {
            let reason = format!(
                "qualifying data has at most {QUALIFYING_BYTES_MAX} bytes, not {}",
                qualifying.len()
            );
            let command = "TPM2_Certify";
            return Err(RootError::Refused { command, reason });
        }
        let (config, qualifying) = (Arc::clone(&self.config), qualifying.to_vec());
        let job = move |tpm: &mut Conversation| {
            let (context, keys) = tpm.keyed()?;
            endorsement::enrolment(context, keys, &config, &qualifying)
        };
        self.link.call("enrolment", self.config.key_limit, Retry::WhenFull, job)
    }

    fn activate(&self, credential: &Credential) -> Result<Zeroizing<Vec<u8>>, RootError> {
        let (config, credential) = (Arc::clone(&self.config), credential.clone());
        let job = move |tpm: &mut Conversation| {
            let (context, keys) = tpm.keyed()?;
            endorsement::activate(context, keys, &config, &credential)
        };
        self.link
            .call("TPM2_ActivateCredential", self.config.key_limit, Retry::WhenFull, job)
    }

    fn quote(&self, qualifying: &Digest, pcrs: &[u8]) -> Result<Quote, RootError> {
        let pcrs = registers::checked("TPM2_Quote", pcrs)?;
        let qualifying = *qualifying;
        self.call("TPM2_Quote", move |tpm| {
            let (context, keys) = tpm.keyed()?;
            registers::quote(context, keys, &qualifying, &pcrs)
        })
    }

    fn attestation_key(&self) -> Result<Vec<u8>, RootError> {
        self.call("TPM2_ReadPublic", |tpm| {
            let (_, keys) = tpm.keyed()?;
            keys.ak_public.marshall().at("TPM2_ReadPublic")
        })
    }

    fn read_pcrs(&self, pcrs: &[u8]) -> Result<BTreeMap<u8, Pcr>, RootError> {
        let pcrs = registers::checked("TPM2_PCR_Read", pcrs)?;
        self.call("TPM2_PCR_Read", move |tpm| registers::read(&mut tpm.context, &pcrs))
    }

    fn extend(&self, pcr: u8, digest: &Digest) -> Result<(), RootError> {
        registers::checked("TPM2_PCR_Extend", &[pcr])?;
        let digest = *digest;
        self.call("TPM2_PCR_Extend", move |tpm| {
            registers::extend(&mut tpm.context, pcr, &digest)
        })
    }

    fn seal(&self, secret: &[u8], approver: &PublicKey) -> Result<Vec<u8>, RootError> {
        let approver = sealing::checked_approver(approver)?;
        if secret.len() > crate::SECRET_BYTES_MAX {
            return Err(crate::soft::too_long(secret.len()));
        }
        let secret = Zeroizing::new(secret.to_vec());
        self.call("seal", move |tpm| {
            let (context, keys) = tpm.keyed()?;
            sealing::seal(context, keys, &secret, &approver)
        })
    }

    fn unseal(
        &self,
        sealed: &[u8],
        approver: &PublicKey,
        approval: &BootApproval,
    ) -> Result<Zeroizing<Vec<u8>>, RootError> {
        let request = sealing::Unseal::new(sealed, approver, approval)?;
        self.call("TPM2_Unseal", move |tpm| {
            let (context, keys) = tpm.keyed()?;
            sealing::unseal(context, keys, &request)
        })
    }

    fn seal_here(&self, secret: &[u8]) -> Result<Vec<u8>, RootError> {
        if secret.len() > crate::SECRET_BYTES_MAX {
            return Err(crate::soft::too_long(secret.len()));
        }
        let secret = Zeroizing::new(secret.to_vec());
        self.call("seal", move |tpm| {
            let (context, keys) = tpm.keyed()?;
            sealing::seal_here(context, keys, &secret)
        })
    }

    fn unseal_here(&self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, RootError> {
        let object = sealing::Object::read(sealed)?;
        self.call("TPM2_Unseal", move |tpm| {
            let (context, keys) = tpm.keyed()?;
            sealing::unseal_here(context, keys, &object)
        })
    }

    fn counter(&self) -> Result<Option<u64>, RootError> {
        let index = self.config.counter_index;
        self.call("TPM2_NV_Read", move |tpm| counter::read(&mut tpm.context, index))
    }

    fn count_up(&self) -> Result<u64, RootError> {
        let index = self.config.counter_index;
        let job = move |tpm: &mut Conversation| counter::count_up(&mut tpm.context, index);
        // Never twice for one call: whoever ties the counter to a generation would find it one too far.
        self.link
            .call("TPM2_NV_Increment", self.config.answer_limit, Retry::Never, job)
    }
}

/// The key under the device key's handle.
struct DeviceKey {
    link: Arc<Link>,
    limit: Duration,
    public: PublicKey,
}

impl Signer for DeviceKey {
    fn public_key(&self) -> &PublicKey {
        &self.public
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        let digest = Digest::of(message);
        let job = move |tpm: &mut Conversation| {
            let (context, keys) = tpm.keyed()?;
            objects::sign(context, keys, &digest)
        };
        let signature = self.link.call("TPM2_Sign", self.limit, Retry::WhenFull, job);
        signature.map_err(|e| SignError {
            key: self.public.id(),
            reason: e.to_string(),
        })
    }
}
