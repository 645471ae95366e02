//! Documents of which the whole tree has one of each kind, and whose contents this crate knows: kept, said in hellos and
//! handed on in one way. A new kind is an entry in [`Single`], in [`is_one`] and in the three lists below. Those that it
//! does not know are next door ([`super::kept`]).

use super::*;

/// What a hello calls the document of approved boots.
pub const BOOT_POLICY_SAID: &str = "b";

/// Whether this crate reads what documents of this kind say.
pub(super) fn is_one(kind: TrustItemKind) -> bool {
    kind == TrustItemKind::BootPolicy
}

/// Where a kind of document is kept.
trait Single: Document + PartialEq + 'static {
    /// What a hello calls it.
    const SAID: &str;
    fn held(state: &TrustState) -> Option<&Signed<Self>>;
    fn keep(state: &mut TrustState, document: Signed<Self>);
}

impl Single for BootPolicy {
    const SAID: &str = BOOT_POLICY_SAID;
    fn held(state: &TrustState) -> Option<&Signed<Self>> {
        state.boot_policy.as_ref()
    }
    fn keep(state: &mut TrustState, document: Signed<Self>) {
        state.boot_policy = Some(document);
    }
}

/// One that this node holds and by a key in force, as others need to know of it.
struct InForce<'a> {
    said: &'static str,
    kind: TrustItemKind,
    number: u64,
    bytes: &'a [u8],
}

impl TrustState {
    pub(super) fn take_single(
        &mut self,
        kind: TrustItemKind,
        bytes: &[u8],
        now_s: u64,
    ) -> Result<Option<TrustOp>, TrustError> {
        match kind {
            TrustItemKind::BootPolicy => self.take_one::<BootPolicy>(bytes, now_s),
            other => Err(TrustError::UnknownKind(other)),
        }
    }

    pub(super) fn restore_single(&mut self, stored: BTreeMap<TrustItemKind, Vec<u8>>, faults: &mut Vec<String>) {
        for (kind, bytes) in stored {
            let restored = match kind {
                TrustItemKind::BootPolicy => self.restore_one::<BootPolicy>(&bytes),
                _ => Ok(()),
            };
            if let Err(e) = restored {
                faults.push(format!("the stored document {} is left out: {e}", kind.as_str()));
            }
        }
    }

    fn singles(&self) -> impl Iterator<Item = InForce<'_>> {
        [self.in_force::<BootPolicy>()].into_iter().flatten()
    }

    /// For a hello.
    pub(super) fn singles_said(&self) -> impl Iterator<Item = (String, u64)> {
        self.singles().map(|s| (s.said.to_owned(), s.number))
    }

    /// For a child that said that it holds these.
    pub(super) fn singles_lacking(&self, documents: &BTreeMap<String, u64>) -> impl Iterator<Item = TrustItem> {
        let lacks = |s: &InForce<'_>| documents.get(s.said).copied().unwrap_or(0) < s.number;
        self.singles().filter(lacks).map(|s| TrustItem {
            kind: s.kind,
            body: ByteBuf::from(s.bytes.to_vec()),
        })
    }

    fn in_force<T: Single>(&self) -> Option<InForce<'_>> {
        let held = T::held(self).filter(|h| self.names(h.kid(), Role::Attestation))?;
        Some(InForce {
            said: T::SAID,
            kind: T::KIND,
            number: held.value().number(),
            bytes: held.bytes(),
        })
    }

    fn take_one<T: Single>(&mut self, bytes: &[u8], now_s: u64) -> Result<Option<TrustOp>, TrustError> {
        let Some(offered) = self.verify::<T>(bytes, T::held(self), now_s)? else {
            return Ok(None);
        };
        T::keep(self, offered);
        let (kind, bytes) = (T::KIND, bytes.to_vec());
        Ok(Some(TrustOp::PutDocument { kind, bytes }))
    }

    fn restore_one<T: Single>(&mut self, bytes: &[u8]) -> Result<(), DocumentError> {
        let document = open_with::<T>(bytes, |kid| self.key_ever(kid, Role::Attestation))?;
        T::keep(self, document);
        Ok(())
    }
}
