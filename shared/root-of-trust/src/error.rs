//! What can go wrong with a root of trust.

use thiserror::Error;

/// Why a root of trust did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RootError {
    /// A key in a file was asked for what only a TPM can do.
    #[error("this node has no TPM ([identity] root = \"soft\"), and {what} needs one")]
    NoTpm {
        /// What was asked for.
        what: &'static str,
    },
    /// The registers are not those of an approved boot.
    #[error("this boot is not approved: PCR {}", list(.pcrs))]
    BootNotApproved {
        /// The registers of the approved policy.
        pcrs: Vec<u8>,
    },
    /// What was sealed was sealed elsewhere, or was changed: it opens here never again.
    #[error("what was sealed cannot be opened here: {reason}")]
    NotOurs {
        /// What was found.
        reason: String,
    },
    /// The TPM refused.
    #[error("the TPM refused {command}: {reason}")]
    Refused {
        /// Which command.
        command: &'static str,
        /// What it said, with its response code.
        reason: String,
    },
    /// The TPM did not answer in time, or its device is gone.
    #[error("the TPM did not answer {command}: {reason}")]
    NoAnswer {
        /// Which command.
        command: &'static str,
        /// Why.
        reason: String,
    },
    /// The TPM that answers is not the one that the node's certificate is about.
    #[error(
        "the TPM that answers is not this node's: its device key is {found}, and the certificate is about {certified}; \
         the disk or the TPM belongs to another machine, or the TPM was cleared"
    )]
    AnotherTpm {
        /// The key that it holds.
        found: String,
        /// The key in the certificate.
        certified: String,
    },
    /// The TPM has no room for more objects or sessions.
    #[error("the TPM has no room left for {command}: {reason}; another program holds its slots")]
    NoRoom {
        /// Which command.
        command: &'static str,
        /// What it said.
        reason: String,
    },
    /// The configuration names what cannot be.
    #[error("[identity]: {0}")]
    Config(String),
    /// A file of the root of trust cannot be used.
    #[error("{0}")]
    File(String),
}

fn list(pcrs: &[u8]) -> String {
    let text: Vec<String> = pcrs.iter().map(ToString::to_string).collect();
    text.join(", ")
}
