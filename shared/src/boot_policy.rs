//! Which boots open what is sealed: policies over PCR values and their approval by a key outside of the TPM.
//!
//! Pure computation for both sides: the hub approves with [`BootApproval::sign`], a node's TPM checks the same bytes with
//! TPM2_PolicyPCR and TPM2_PolicyAuthorize (TPM 2.0 Library, part 3, sections 23.7 and 23.16).

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use crate::ids::Digest;
use crate::keys::{Algorithm, PublicKey, SignError, Signer};

/// Registers of a PC client TPM: 0 to 23.
pub const PCR_COUNT: u8 = 24;

/// What an approval says it is for (`policyRef`), so that no other signature of the same key is one.
pub const POLICY_REF: &[u8] = b"cnova-boot-v1";

const CC_POLICY_PCR: u32 = 0x0000_017F;
const CC_POLICY_AUTHORIZE: u32 = 0x0000_016A;
const ALG_SHA256: u16 = 0x000B;
/// Bytes of a PCR bitmap (`sizeofSelect`).
const SELECT_BYTES: usize = 3;
const NO_POLICY: [u8; 32] = [0; 32];

/// A boot under which a sealed secret may be opened: the hub's signature on a PCR policy (TPM2_PolicyAuthorize).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BootApproval {
    /// The registers that the policy is about.
    pub pcrs: Vec<u8>,
    /// The policy's digest (TPM2_PolicyPCR over the approved values).
    pub policy: Digest,
    /// ES256 of the approving key over `policy || policyRef` (so over the digest that TPM2_PolicyAuthorize expects),
    /// r || s.
    #[serde(with = "serde_bytes")]
    pub signature: Vec<u8>,
    /// The approved values, so that a node can say which register differs. Not needed to open anything, and only believed
    /// when `policy` is their digest.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub values: BTreeMap<u8, Digest>,
}

/// Why a boot cannot be approved.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ApproveError {
    /// No registers, or one that no TPM has.
    #[error("a boot is approved by the values of 1 to {PCR_COUNT} registers numbered 0 to 23, not by {0:?}")]
    Registers(Vec<u8>),
    /// A TPM checks approvals with P-256.
    #[error("boots are approved with an ES256 key; {0:?} is none")]
    Algorithm(PublicKey),
    /// The key's holder did not sign.
    #[error("the approval was not signed: {0}")]
    Sign(#[from] SignError),
}

impl BootApproval {
    /// Approves the boot that ends in `values` with `approver` (ES256).
    ///
    /// # Errors
    /// [`ApproveError`].
    pub fn sign(values: &BTreeMap<u8, Digest>, approver: &dyn Signer) -> Result<Self, ApproveError> {
        let pcrs: Vec<u8> = values.keys().copied().collect();
        if pcrs.is_empty() || pcrs.iter().any(|p| *p >= PCR_COUNT) {
            return Err(ApproveError::Registers(pcrs));
        }
        if approver.public_key().algorithm != Algorithm::Es256 {
            return Err(ApproveError::Algorithm(approver.public_key().clone()));
        }
        let policy = pcr_policy(values);
        let signature = approver.sign(&signed_bytes(&policy))?;
        Ok(Self {
            pcrs,
            policy,
            signature,
            values: values.clone(),
        })
    }

    /// No approval: what opens secrets sealed by a key in a file, which has no boot to approve. A TPM refuses it.
    #[must_use]
    pub fn none() -> Self {
        Self {
            pcrs: Vec::new(),
            policy: Digest(NO_POLICY),
            signature: Vec::new(),
            values: BTreeMap::new(),
        }
    }

    /// Whether `approver` signed this.
    #[must_use]
    pub fn is_signed_by(&self, approver: &PublicKey) -> bool {
        approver.algorithm == Algorithm::Es256 && approver.verifies(&signed_bytes(&self.policy), &self.signature)
    }

    /// The registers in which `now` differs from what was approved; all of the policy's when their values are not told.
    #[must_use]
    pub fn differing(&self, now: &BTreeMap<u8, Digest>) -> Vec<u8> {
        let told = !self.values.is_empty() && pcr_policy(&self.values) == self.policy;
        if !told {
            return self.pcrs.clone();
        }
        let differs = |(pcr, value): (&u8, &Digest)| (now.get(pcr) != Some(value)).then_some(*pcr);
        self.values.iter().filter_map(differs).collect()
    }
}

/// A boot that the hub approved for this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApprovedBoot {
    /// The name of the reference values that it is one of.
    pub name: String,
    /// The key that approved it.
    pub approver: PublicKey,
    /// The approval.
    pub approval: BootApproval,
}

impl ApprovedBoot {
    /// Whether the approver signed this, for exactly the values that `now` has.
    #[must_use]
    pub fn fits(&self, now: &BTreeMap<u8, Digest>) -> bool {
        let value = |pcr: &u8| Some((*pcr, *now.get(pcr)?));
        let now: BTreeMap<u8, Digest> = self.approval.pcrs.iter().filter_map(value).collect();
        let is_whole = now.len() == self.approval.pcrs.len();
        is_whole && pcr_policy(&now) == self.approval.policy && self.approval.is_signed_by(&self.approver)
    }
}

/// Under which boots a node's own secrets may open, by what it trusts now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnBoots {
    /// What was approved for this node, those by the key first that lasts longest.
    pub approved: Vec<ApprovedBoot>,
}

impl OwnBoots {
    /// All registers that something is said about.
    #[must_use]
    pub fn pcrs(&self) -> Vec<u8> {
        let all: BTreeSet<u8> = self.approved.iter().flat_map(|a| a.approval.pcrs.clone()).collect();
        all.into_iter().collect()
    }

    /// The first that fits these registers.
    #[must_use]
    pub fn fitting(&self, now: &BTreeMap<u8, Digest>) -> Option<&ApprovedBoot> {
        self.approved.iter().find(|a| a.fits(now))
    }

    /// Why none fits, for a person: the registers in which the nearest one differs, and what they hold.
    #[must_use]
    pub fn differing(&self, now: &BTreeMap<u8, Digest>) -> String {
        let nearest = self.approved.iter().map(|a| (a.approval.differing(now), a));
        let Some((pcrs, nearest)) = nearest.min_by_key(|(pcrs, _)| pcrs.len()) else {
            return "no boot is approved for it".into();
        };
        let one = |pcr: &u8| {
            let short =
                |value: Option<&Digest>| value.map_or_else(|| "nothing that is told".into(), ToString::to_string);
            let (holds, approved) = (short(now.get(pcr)), short(nearest.approval.values.get(pcr)));
            format!("PCR {pcr} holds {holds}, approved is {approved}")
        };
        let all: Vec<String> = pcrs.iter().map(one).collect();
        if all.is_empty() {
            // The values are as they were approved: then it is the signature that does not hold.
            return format!("what approves {} is not signed by a key that may", nearest.name);
        }
        format!("{} ({})", all.join("; "), nearest.name)
    }
}

fn signed_bytes(policy: &Digest) -> Vec<u8> {
    [&policy.0[..], POLICY_REF].concat()
}

/// The policy digest that TPM2_PolicyPCR makes of these values of the SHA-256 bank.
#[must_use]
pub fn pcr_policy(values: &BTreeMap<u8, Digest>) -> Digest {
    let mut bitmap = [0_u8; SELECT_BYTES];
    let mut concatenated = Vec::with_capacity(values.len() * 32);
    for (pcr, value) in values {
        if let Some(byte) = bitmap.get_mut(usize::from(pcr / 8)) {
            *byte |= 1 << (pcr % 8);
            concatenated.extend_from_slice(&value.0);
        }
    }
    let mut policy = Vec::with_capacity(128);
    policy.extend_from_slice(&NO_POLICY);
    policy.extend_from_slice(&CC_POLICY_PCR.to_be_bytes());
    // TPML_PCR_SELECTION with one TPMS_PCR_SELECTION.
    policy.extend_from_slice(&1_u32.to_be_bytes());
    policy.extend_from_slice(&ALG_SHA256.to_be_bytes());
    policy.push(SELECT_BYTES as u8);
    policy.extend_from_slice(&bitmap);
    policy.extend_from_slice(&Digest::of(&concatenated).0);
    Digest::of(&policy)
}

/// The policy of an object that opens under whatever the key with this TPM name approves for [`POLICY_REF`].
#[must_use]
pub fn authorized_policy(approver_name: &[u8]) -> Digest {
    let first = [&NO_POLICY[..], &CC_POLICY_AUTHORIZE.to_be_bytes(), approver_name].concat();
    Digest::of(&[&Digest::of(&first).0[..], POLICY_REF].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::SoftKey;

    fn es256() -> SoftKey {
        let rng = ring::rand::SystemRandom::new();
        let pair =
            ring::signature::EcdsaKeyPair::generate_pkcs8(&ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING, &rng);
        SoftKey::from_pkcs8(pair.unwrap().as_ref()).unwrap()
    }

    #[test]
    fn an_approval_names_its_signer_and_what_differs() {
        let (key, other) = (es256(), es256());
        let values = BTreeMap::from([(0, Digest::of(b"a")), (11, Digest::of(b"b")), (23, Digest::of(b"c"))]);
        let approval = BootApproval::sign(&values, &key).unwrap();
        assert!(approval.is_signed_by(key.public_key()));
        assert!(!approval.is_signed_by(other.public_key()));
        let mut now = values.clone();
        assert_eq!(approval.differing(&now), [0_u8; 0]);
        now.insert(11, Digest::of(b"x"));
        assert_eq!(approval.differing(&now), [11]);
        // Values that the signature does not cover are not believed.
        let mut lying = approval.clone();
        lying.values.insert(0, Digest::of(b"y"));
        assert_eq!(lying.differing(&now), [0, 11, 23]);
    }

    #[test]
    fn what_cannot_be_approved_is_refused() {
        let key = es256();
        assert_eq!(
            BootApproval::sign(&BTreeMap::new(), &key),
            Err(ApproveError::Registers(vec![]))
        );
        let values = BTreeMap::from([(24, Digest::of(b"a"))]);
        assert_eq!(
            BootApproval::sign(&values, &key),
            Err(ApproveError::Registers(vec![24]))
        );
        let ed25519 = SoftKey::ed25519_from_seed(&[7; 32]);
        let values = BTreeMap::from([(0, Digest::of(b"a"))]);
        let refused = BootApproval::sign(&values, &ed25519);
        assert!(matches!(refused, Err(ApproveError::Algorithm(_))));
    }

    #[test]
    fn values_travel_only_when_told() {
        let key = es256();
        let values = BTreeMap::from([(7, Digest::of(b"a"))]);
        let approval = BootApproval::sign(&values, &key).unwrap();
        let bytes = serde_cbor::to_vec(&approval).unwrap();
        assert_eq!(serde_cbor::from_slice::<BootApproval>(&bytes).unwrap(), approval);
        let short = BootApproval {
            values: BTreeMap::new(),
            ..approval
        };
        let bytes = serde_cbor::to_vec(&short).unwrap();
        assert!(!bytes.windows(6).any(|w| w == b"values"));
        assert_eq!(serde_cbor::from_slice::<BootApproval>(&bytes).unwrap(), short);
    }
}
