//! Why a command failed, and with which exit code.

use std::io;

use thiserror::Error;

use crate::apply::ApplyError;
use crate::artifact::ImportError;
use crate::attest::ProofError;
use crate::client::HubError;
use crate::delete::DeleteError;
use crate::enroll::EnrollError;
use crate::get::GetError;
use crate::logs::LogsError;
use crate::node::NodeError;
use crate::provenance::AttestError;
use crate::secret::SecretError;
use crate::settings::SettingsError;
use crate::token::TokenError;
use crate::trust::{PushError, TrustError};

const FAILED: u8 = 1;
const USAGE: u8 = 2;
const UNREACHABLE: u8 = 3;

/// Any command's failure.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error(transparent)]
    Attest(#[from] AttestError),
    #[error(transparent)]
    Proof(#[from] ProofError),
    #[error(transparent)]
    Get(#[from] GetError),
    #[error(transparent)]
    Logs(#[from] LogsError),
    #[error(transparent)]
    Delete(#[from] DeleteError),
    #[error(transparent)]
    Enroll(#[from] EnrollError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error(transparent)]
    Push(#[from] PushError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("cannot write the output: {0}")]
    Output(#[source] io::Error),
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Self {
        Self::Output(e)
    }
}

impl Failure {
    /// The exit code that the help documents.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Hub(e) | Self::Apply(ApplyError::Hub(e) | ApplyError::Upload { source: e, .. }) => hub_code(e),
            Self::Get(GetError::Hub(e)) | Self::Logs(LogsError::Hub(e)) | Self::Delete(DeleteError::Hub(e)) => {
                hub_code(e)
            }
            Self::Push(PushError::Hub(e)) | Self::Node(NodeError::Hub(e)) => hub_code(e),
            Self::Proof(ProofError::Hub(e)) => hub_code(e),
            Self::Proof(ProofError::Label(_) | ProofError::ForNobody) => USAGE,
            Self::Import(ImportError::Hub(e) | ImportError::Upload { source: e, .. })
            | Self::Apply(ApplyError::Import(ImportError::Hub(e) | ImportError::Upload { source: e, .. })) => {
                hub_code(e)
            }
            Self::Attest(AttestError::Upload { source, .. }) => hub_code(source),
            Self::Attest(AttestError::Import(ImportError::Hub(e) | ImportError::Upload { source: e, .. })) => {
                hub_code(e)
            }
            Self::Attest(AttestError::Builder(_) | AttestError::Material(_)) => USAGE,
            Self::Enroll(EnrollError::Hub(e)) | Self::Secret(SecretError::Hub(e)) => hub_code(e),
            Self::Secret(SecretError::NotAGrantee { .. } | SecretError::Empty) => USAGE,
            Self::Import(ImportError::Platform(_)) | Self::Enroll(EnrollError::NotAFingerprint { .. }) => USAGE,
            Self::Settings(SettingsError::BadUrl { .. }) | Self::Delete(DeleteError::NobodyToAsk { .. }) => USAGE,
            _ => FAILED,
        }
    }
}

fn hub_code(e: &HubError) -> u8 {
    match e {
        HubError::Unreachable { .. } | HubError::Silent { .. } | HubError::NotTrusted { .. } => UNREACHABLE,
        HubError::Refused(_) | HubError::NotUnderstood { .. } | HubError::NoAuthorities => FAILED,
    }
}

/// Reading something from the hub and printing it can fail in two ways; several commands do no more.
macro_rules! read_and_print_error {
    ($name:ident { $($more:tt)* }) => {
        /// The command failed.
        #[derive(Debug, thiserror::Error)]
        pub(crate) enum $name {
            #[error(transparent)]
            Hub(#[from] $crate::client::HubError),
            #[error("cannot write the output: {0}")]
            Output(#[from] std::io::Error),
            $($more)*
        }
    };
}
pub(crate) use read_and_print_error;
