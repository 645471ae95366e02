//! What the commands about enrolment take.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use cnova_shared::ids::{NodeId, SitePath};
use cnova_shared::time::seconds_of;

/// What `enroll` takes.
#[derive(Debug, Args)]
pub(crate) struct EnrollArgs {
    #[command(subcommand)]
    pub(crate) what: Enroll,
}

fn span(text: &str) -> Result<u64, String> {
    seconds_of(text).ok_or_else(|| "write 90d, 24h, 30m or 45s".to_owned())
}

/// What can be done about enrolment.
#[derive(Debug, Subcommand)]
pub(crate) enum Enroll {
    /// Make a token that admits a node; it is printed once
    #[command(after_long_help = "\
Only the token goes to standard output; the hub keeps its hash.

Examples:
  cnova enroll token --site plant-7/line-2/plc-14 > token
  cnova enroll token --site 'plant-7/line-2/*' --name 'plc-*' --uses 20 --expires 7d > token")]
    Token {
        /// Where the node will hang; PATH/* for nodes below PATH, each at its own name
        #[arg(long, value_name = "PATH")]
        site: String,
        /// The name that it admits, or the beginning of one and a star [default: the last part of the site]
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// How many nodes it admits
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        uses: u32,
        /// How long it is good
        #[arg(long, default_value = "24h", value_name = "SPAN", value_parser = span)]
        expires: u64,
    },
    /// Make a TPM known, so that its node needs no token
    #[command(after_long_help = "\
Examples:
  cnova enroll ek --certificate plc-14-ek.pem --name plc-14 --site plant-7/line-2/plc-14
  cnova enroll ek --fingerprint 5f3c... --name plc-14 --site plant-7/line-2/plc-14")]
    Ek {
        /// SHA-256 of the endorsement key (TPMT_PUBLIC) or of its certificate (DER)
        #[arg(
            long,
            value_name = "HEX",
            required_unless_present = "certificate",
            conflicts_with = "certificate"
        )]
        fingerprint: Option<String>,
        /// The endorsement key's certificate, PEM or DER
        #[arg(long, value_name = "FILE")]
        certificate: Option<PathBuf>,
        /// The name that its node gets
        #[arg(long)]
        name: NodeId,
        /// Where it hangs
        #[arg(long, value_name = "PATH")]
        site: SitePath,
    },
    /// List tokens, known TPMs and enrolled nodes
    #[command(after_long_help = "Example:\n  cnova enroll list")]
    List,
    /// Take a token back
    #[command(after_long_help = "Example:\n  cnova enroll revoke-token 5f3c9a01b2c3")]
    RevokeToken {
        /// The token's id, from `cnova enroll list`
        id: String,
    },
    /// Make a TPM unknown again; the node that it became stays
    #[command(after_long_help = "Example:\n  cnova enroll remove-ek 5f3c...")]
    RemoveEk {
        /// Its fingerprint, from `cnova enroll list`
        fingerprint: String,
    },
    /// Free a node's name for another TPM or key, such as after a repair
    #[command(after_long_help = "\
The certificate that the old device has is not revoked by this.

Example:
  cnova enroll forget plc-14")]
    Forget {
        /// The node
        node: NodeId,
    },
}
