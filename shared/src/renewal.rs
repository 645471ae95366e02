//! When a node asks for its next certificate, and which answers it takes.
//!
//! A node asks over its ordinary link, long before the end, again and again until it has the next one; the old one stays in
//! use until the next is on disk. Nothing here ever stops a workload: a certificate that ran out only means that the node
//! speaks to nobody until it was admitted anew.

use thiserror::Error;

use crate::bundle::TrustBundle;
use crate::certificate::{self, CertificateError, NodeCertificate};
use crate::ids::{NodeId, SitePath};
use crate::keys::PublicKey;
use crate::limits;
use crate::wire::v1::{self, EnrolIssued, EnrolStep};

/// Why a certificate that was issued is not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IssuedError {
    /// Its chain does not lead to an authority that this node trusts.
    #[error(transparent)]
    Chain(#[from] CertificateError),
    /// It is about another key.
    #[error("the certificate is about another key than this node's")]
    OtherKey,
    /// It names another node.
    #[error("the certificate is for {got}, this is {me}")]
    OtherNode {
        /// The name in it.
        got: NodeId,
        /// This node's.
        me: NodeId,
    },
    /// It does not say what the answer says.
    #[error("the certificate does not say what came with it: {0}")]
    Disagrees(&'static str),
    /// Too many certificates.
    #[error("{0} certificates in the chain, at most {max} are used", max = limits::X5CHAIN_CERTS)]
    TooMany(usize),
}

/// Checks what was issued against the node's key, its trust and, where it has one, its name.
///
/// # Errors
/// [`IssuedError`]; what the node has stays in use.
pub fn check(
    issued: &EnrolIssued,
    me: Option<&NodeId>,
    key: &PublicKey,
    trust: &TrustBundle,
    now_s: u64,
) -> Result<NodeCertificate, IssuedError> {
    if issued.chain.len() > limits::X5CHAIN_CERTS {
        return Err(IssuedError::TooMany(issued.chain.len()));
    }
    let chain: Vec<Vec<u8>> = issued.chain.iter().map(|c| c.to_vec()).collect();
    let certificate = certificate::verify(&chain, &trust.authorities(), now_s)?;
    if certificate.key != *key {
        return Err(IssuedError::OtherKey);
    }
    if let Some(me) = me.filter(|me| **me != certificate.node) {
        let (got, me) = (certificate.node, me.clone());
        return Err(IssuedError::OtherNode { got, me });
    }
    if certificate.node != issued.node {
        return Err(IssuedError::Disagrees("the node's name"));
    }
    if certificate.site.as_ref() != Some(&issued.site) {
        return Err(IssuedError::Disagrees("the site"));
    }
    Ok(certificate)
}

/// The state of asking.
#[derive(Clone, Debug)]
pub struct Renewal {
    key: PublicKey,
    /// Seconds since 1970; a certificate that was issued by hand names no time and is never renewed by itself.
    renew_s: Option<u64>,
    ticket: u64,
    ask_at_ms: u64,
    look_ms: u64,
    pause_ms: u64,
}

impl Renewal {
    /// For a node with this key, whose certificate says when to ask. `first_ticket` differs on every start, so that an
    /// answer to an earlier life is not taken.
    #[must_use]
    pub fn new(key: PublicKey, renew_s: Option<u64>, first_ticket: u64) -> Self {
        Self {
            key,
            renew_s,
            ticket: first_ticket,
            ask_at_ms: 0,
            look_ms: 0,
            pause_ms: limits::RENEW_AGAIN_MIN_MS,
        }
    }

    /// The link is new: what is due is asked at once.
    pub fn connected(&mut self, mono_ms: u64) {
        self.ask_at_ms = mono_ms;
        self.look_ms = mono_ms;
        self.pause_ms = limits::RENEW_AGAIN_MIN_MS;
    }

    /// What to ask now, if it is time. To be called while connected.
    pub fn poll(&mut self, now_s: u64, mono_ms: u64) -> Option<v1::Enrol> {
        let left_ms = self.renew_s?.saturating_sub(now_s).saturating_mul(1000);
        if left_ms > 0 {
            // The wall clock may be set meanwhile, so it is looked at from time to time.
            self.look_ms = mono_ms + left_ms.min(limits::RENEW_AGAIN_MAX_MS);
            return None;
        }
        if self.ask_at_ms > mono_ms {
            self.look_ms = self.ask_at_ms;
            return None;
        }
        self.ask_at_ms = mono_ms + self.pause_ms;
        self.look_ms = self.ask_at_ms;
        self.pause_ms = (self.pause_ms * 2).min(limits::RENEW_AGAIN_MAX_MS);
        self.ticket = self.ticket.wrapping_add(1);
        let step = EnrolStep::Renew { key: self.key.clone() };
        Some(v1::Enrol {
            v: v1::VERSION,
            ticket: self.ticket,
            step,
        })
    }

    /// When [`Renewal::poll`] may have something, monotonic milliseconds.
    #[must_use]
    pub fn timeout(&self) -> Option<u64> {
        self.renew_s.map(|_| self.look_ms)
    }

    /// Whether an answer is to what was asked last.
    #[must_use]
    pub fn is_mine(&self, enrolled: &v1::Enrolled) -> bool {
        enrolled.ticket == self.ticket
    }

    /// Checks a certificate that came as the answer. The site may not change: the node's twin and hello name it.
    ///
    /// # Errors
    /// [`IssuedError`]; it is asked for again.
    pub fn take(
        &mut self,
        issued: &EnrolIssued,
        me: &NodeId,
        site: &SitePath,
        trust: &TrustBundle,
        now_s: u64,
    ) -> Result<(), IssuedError> {
        check(issued, Some(me), &self.key, trust, now_s)?;
        if issued.site != *site {
            return Err(IssuedError::Disagrees("the node's site"));
        }
        // The next answer is to another question, whether or not this one gets onto the disk.
        self.ticket = self.ticket.wrapping_add(1);
        Ok(())
    }

    /// A certificate is on disk and in use.
    pub fn installed(&mut self, renew_s: Option<u64>, mono_ms: u64) {
        // A clock that is ahead of the hub's would find the next one due at once: the pause goes on growing then.
        self.ask_at_ms = self.ask_at_ms.max(mono_ms);
        self.look_ms = mono_ms;
        self.renew_s = renew_s;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{Signer, SoftKey};

    fn renewal(renew_s: Option<u64>) -> Renewal {
        let key = SoftKey::ed25519_from_seed(&[1; 32]);
        Renewal::new(key.public_key().clone(), renew_s, 7)
    }

    #[test]
    fn it_is_asked_when_it_is_due_and_then_less_and_less_often() {
        let mut r = renewal(Some(1000));
        assert_eq!((r.poll(999, 0), r.timeout()), (None, Some(1000)));
        let first = r.poll(1000, 0).unwrap();
        assert_eq!(first.ticket, 8);
        assert_eq!(r.poll(1000, 1), None);
        assert_eq!(r.timeout(), Some(limits::RENEW_AGAIN_MIN_MS));
        let mut at = limits::RENEW_AGAIN_MIN_MS;
        assert!(r.poll(1000, at).is_some());
        for _ in 0..20 {
            let next = r.timeout().unwrap();
            assert!(next - at <= limits::RENEW_AGAIN_MAX_MS);
            assert!(r.poll(1000, next).is_some());
            at = next;
        }
        r.connected(at + 1);
        assert!(r.poll(1000, at + 1).is_some(), "a new link is tried at once");
    }

    #[test]
    fn what_was_issued_by_hand_is_left_alone() {
        let mut r = renewal(None);
        assert_eq!((r.poll(u64::MAX, u64::MAX), r.timeout()), (None, None));
    }

    #[test]
    fn a_clock_that_runs_ahead_does_not_ask_without_end() {
        let mut r = renewal(Some(10));
        let far = 4_000_000_000;
        let mut asked = 0;
        for ms in (0..3_600_000).step_by(1000) {
            if r.poll(far, ms).is_some() {
                asked += 1;
                r.installed(Some(20), ms);
            }
        }
        assert!((2..=12).contains(&asked), "{asked} in an hour");
    }
}
