//! What the commands about attestation take.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use cnova_shared::ids::{Name, NodeId, SitePath};

/// What `attest` takes.
#[derive(Debug, Args)]
pub(crate) struct AttestArgs {
    #[command(subcommand)]
    pub(crate) what: Attest,
}

/// What can be done about attestation.
#[derive(Debug, Subcommand)]
pub(crate) enum Attest {
    /// What a node has proven: how it booted, and what was launched on it since
    #[command(after_long_help = "Example:\n  cnova attest show plc-14")]
    Show {
        /// The node
        #[arg(value_name = "NODE")]
        node: NodeId,
    },
    /// Challenge a node now; look with `show` what came of it
    #[command(after_long_help = "Example:\n  cnova attest now plc-14")]
    Now {
        /// The node
        #[arg(value_name = "NODE")]
        node: NodeId,
    },
    /// Let a node whose disk was rolled back out of its quarantine
    #[command(after_long_help = "\
The node takes nothing older than its newest twin from then on. The hub does this by itself unless its configuration \
says [attestation] release = false.

Example:
  cnova attest release plc-14")]
    Release {
        /// The node
        #[arg(value_name = "NODE")]
        node: NodeId,
    },
}

/// What `reference` takes.
#[derive(Debug, Args)]
pub(crate) struct ReferenceArgs {
    #[command(subcommand)]
    pub(crate) what: Reference,
}

/// What can be done about reference values.
#[derive(Debug, Subcommand)]
pub(crate) enum Reference {
    /// Say what nodes shall have booted
    #[command(after_long_help = "\
Sets that are for the same node are alternatives. Before an update is rolled out, add a set with its values; take the \
old one away when no node has it any more.

Examples:
  cnova reference add plc-image-1.4 --from-node plc-14 --site plant-7
  cnova reference add plc-image-1.5 --from-image build/plc-image-1.5.pcrs.json --label board=plc-x86
  cnova reference add plc-os-1.6 --from-node plc-14 --from-bundle system-1.6.cnova --label board=plc-x86")]
    Add(ReferenceAdd),
    /// List the reference values
    #[command(after_long_help = "Example:\n  cnova reference list")]
    List,
    /// Take a set away
    #[command(after_long_help = "Example:\n  cnova reference remove plc-image-1.3")]
    Remove {
        /// The set
        #[arg(value_name = "NAME")]
        name: Name,
    },
}

/// What `reference add` takes.
#[derive(Debug, Args)]
pub(crate) struct ReferenceAdd {
    /// The set's name, such as plc-image-1-4
    #[arg(value_name = "NAME")]
    pub(crate) name: Name,
    /// Take over what this node last showed; it must be as it should be
    #[arg(
        long,
        value_name = "NODE",
        required_unless_present = "from_image",
        conflicts_with = "from_image"
    )]
    pub(crate) from_node: Option<NodeId>,
    /// Values that an image's build wrote: JSON with "pcrs": {"7": ["sha256:..."]}
    #[arg(long, value_name = "FILE")]
    pub(crate) from_image: Option<PathBuf>,
    /// With --from-node: what that node would show if it booted this system bundle (firmware-images/build --bundle)
    #[arg(long, value_name = "FILE", requires = "from_node")]
    pub(crate) from_bundle: Option<PathBuf>,
    /// For every node of the tree
    #[arg(long, conflicts_with_all = ["node", "site", "label"])]
    pub(crate) all: bool,
    /// For this node; may be repeated
    #[arg(long, value_name = "NODE")]
    pub(crate) node: Vec<NodeId>,
    /// For nodes at this place and below
    #[arg(long, value_name = "SITE")]
    pub(crate) site: Option<SitePath>,
    /// For nodes with this label; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) label: Vec<String>,
}
