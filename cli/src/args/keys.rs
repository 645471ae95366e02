//! What the commands about keys and tokens take.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use cnova_shared::ids::{Name, NodeId, SitePath};

/// What `trust` takes.
#[derive(Debug, Args)]
pub(crate) struct TrustArgs {
    #[command(subcommand)]
    pub(crate) what: Trust,
}

/// What can be done with keys.
#[derive(Debug, Subcommand)]
pub(crate) enum Trust {
    /// Make root keys, the hub's signing key, the node CA and the first trust bundle
    #[command(after_long_help = "\
Nothing is ever overwritten. By default two of three root keys are needed, so that one can be lost or stolen.

Example:
  cnova trust init ./trust --tree acme --roots 3 --threshold 2")]
    Init {
        /// Where to put them; must not exist, or be empty
        dir: PathBuf,
        /// The tree's name, for the CA's subject
        #[arg(long, default_value = "cnova")]
        tree: Name,
        /// How many root keys
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=16))]
        roots: u32,
        /// How many of them must sign a trust bundle [default: more than half]
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=16))]
        threshold: Option<u32>,
        /// SLSA build level up to which the hub is believed as compiler of Wasm
        #[arg(long, default_value_t = 3, value_name = "0-3", value_parser = clap::value_parser!(u8).range(0..=3))]
        hub_level: u8,
    },
    /// Say whose provenance is believed, and how far
    #[command(
        after_long_help = "Example:\n  cnova trust builder add ./trust --builder https://ci.example/line-2 --key ci.key.pub --level 2"
    )]
    Builder(super::BuilderArgs),
    /// Make a node's key and certificate
    #[command(after_long_help = "\
Example:
  cnova trust issue plc-14 --site plant-7/line-2/plc-14 --dir ./trust --out ./image/etc/cnova/identity")]
    Issue(IssueArgs),
    /// Make the hub's issuing certificate, with which it enrols nodes and renews their certificates
    #[command(after_long_help = "\
Example:
  cnova trust issuer ./trust")]
    Issuer {
        /// The folder that `cnova trust init` made, with its ca.key
        dir: PathBuf,
        /// For how many days
        #[arg(long, default_value_t = 1825, value_parser = clap::value_parser!(u64).range(1..=3650))]
        days: u64,
    },
    /// Make a new signing key for the hub, and the trust bundle that announces it
    #[command(after_long_help = "\
The old key stays valid for --overlap-days. Give the hub the new key, then roll the bundle out with cnova trust push: \
the hub signs with the new key from then on, and every node gets the bundle before anything that this key signed.

Example:
  cnova trust rotate ./trust --overlap-days 30 --roots /media/usb/roots")]
    Rotate {
        /// The folder that `cnova trust init` made
        dir: PathBuf,
        /// How long the old key may still sign
        #[arg(long, default_value_t = 30, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(0..=3650))]
        overlap_days: u64,
        /// Where the root keys are [default: DIR/roots]
        #[arg(long, value_name = "FOLDER")]
        roots: Option<PathBuf>,
    },
    /// Make a key with which the hub approves boots, and the trust bundle that announces it
    #[command(after_long_help = "\
Nodes with a TPM open what is secret on their disks only under a boot that this key approved. cnova trust init makes \
the first one; this makes one for a tree without, or the next one. Give the hub the new key ([signing] boot_policy in \
hub.toml) beside the old one, then roll the bundle out with cnova trust push: nodes seal for the new key while the old \
one is still known.

Example:
  cnova trust boot-policy-key ./trust --overlap-days 90 --roots /media/usb/roots")]
    BootPolicyKey {
        /// The folder that `cnova trust init` made
        dir: PathBuf,
        /// How long the hub may still approve with older keys
        #[arg(long, default_value_t = 90, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(0..=3650))]
        overlap_days: u64,
        /// Where the root keys are [default: DIR/roots]
        #[arg(long, value_name = "FOLDER")]
        roots: Option<PathBuf>,
    },
    /// Take a stolen signing key out of the trust bundle at once, and make a new one
    #[command(after_long_help = "\
Nodes that hold the new bundle take nothing new that the old key signed, whatever it says. What runs runs on; the hub \
signs it anew.

Example:
  cnova trust revoke ./trust --key 1f0c6a2b33d4e5f6 --roots /media/usb/roots")]
    Revoke {
        /// The folder that `cnova trust init` made
        dir: PathBuf,
        /// The key's id, as `cnova trust show` prints it
        #[arg(long, value_name = "KID")]
        key: String,
        /// Where the root keys are [default: DIR/roots]
        #[arg(long, value_name = "FOLDER")]
        roots: Option<PathBuf>,
    },
    /// Give the hub a newer trust bundle: it is in force at once and rolled out (role admin)
    #[command(after_long_help = "Example:\n  cnova trust push ./trust/trust-bundle.cose")]
    Push {
        /// The bundle
        file: PathBuf,
    },
    /// Check and print a trust bundle
    #[command(after_long_help = "Example:\n  cnova trust show ./trust/trust-bundle.cose")]
    Show {
        /// The bundle
        file: PathBuf,
    },
}

/// What `trust issue` takes.
#[derive(Debug, Args)]
pub(crate) struct IssueArgs {
    /// The node's name
    pub(crate) node: NodeId,
    /// Where it hangs in the tree, such as plant-7/line-2/plc-14
    #[arg(long, value_name = "PATH")]
    pub(crate) site: SitePath,
    /// The folder that `cnova trust init` made
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// For how many days
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u64).range(1..=3650))]
    pub(crate) days: u64,
    /// Where to put key, certificate and trust bundle [default: DIR/nodes/NODE]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) out: Option<PathBuf>,
}

/// What `token` takes.
#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    #[command(subcommand)]
    pub(crate) what: Token,
}

/// What can be done with tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Make a token: print it once, and add its hash to the hub's token file
    #[command(after_long_help = "\
Only the token goes to standard output; the file holds its SHA-256, from which it cannot be had back.

Example:
  cnova token new --name ci --role operator --tokens /etc/cnova/tokens.toml > ci.token")]
    New {
        /// Who will use it
        #[arg(long)]
        name: Name,
        /// What it may do
        #[arg(long, value_enum)]
        role: Role,
        /// The hub's token file
        #[arg(long, default_value = "tokens.toml", value_name = "FILE")]
        tokens: PathBuf,
    },
}

/// What a token's holder may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// Everything
    Admin,
    /// Deploy, delete and look
    Operator,
    /// Look
    Viewer,
}

/// What `node` takes.
#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    #[command(subcommand)]
    pub(crate) what: Node,
}

/// What can be done with a node's membership.
#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// Trust a node no longer: every gateway refuses it, also while the hub is away (role admin)
    #[command(after_long_help = "Example:\n  cnova node revoke plc-14 --reason \"stolen on 3 May\"")]
    Revoke {
        /// The node
        node: NodeId,
        /// Why; shown to whoever asks, and to the node itself
        #[arg(long)]
        reason: String,
        /// Refuse only the keys that the hub knows of it, so that another device can take the name
        #[arg(long)]
        keys_only: bool,
    },
    /// Let a revoked node in again (role admin)
    #[command(after_long_help = "Example:\n  cnova node readmit plc-14 --new-key")]
    Readmit {
        /// The node
        node: NodeId,
        /// The keys that it had stay refused: another device takes the name
        #[arg(long)]
        new_key: bool,
    },
}
