//! What the commands about provenance take.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Who signs.
#[derive(Debug, Args)]
pub(crate) struct SignerArgs {
    /// The builder's private key (PEM, PKCS #8, Ed25519 or P-256); make one with: cnova trust builder key FILE
    #[arg(long, value_name = "FILE")]
    pub(crate) key: PathBuf,
    /// Who built it: a URI that the trust bundle names beside this key. How far it is believed stands there, too
    #[arg(long, value_name = "URI")]
    pub(crate) builder: String,
}

/// What `artifact sign` takes.
#[derive(Debug, Args)]
pub(crate) struct SignArgs {
    /// The artifact: a file, or an OCI image layout (a folder; an archive with --image)
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) signer: SignerArgs,
    /// The file is a container image; what is signed is its manifest
    #[arg(long)]
    pub(crate) image: bool,
    /// Something that it was made from: a file, or a digest
    #[arg(long, value_name = "FILE|DIGEST")]
    pub(crate) material: Vec<String>,
    /// What kind of build made it, a URI [default: urn:cnova:build:signed:v1]
    #[arg(long, value_name = "URI")]
    pub(crate) build_type: Option<String>,
    /// Where to write the provenance [default: FILE.intoto.jsonl]
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Keep what others signed before, and add to it
    #[arg(long)]
    pub(crate) append: bool,
    /// Write the file and bring nothing to the hub
    #[arg(long)]
    pub(crate) no_upload: bool,
}

/// What `build` takes.
#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    #[command(flatten)]
    pub(crate) signer: SignerArgs,
    /// What the build makes; removed before it, so that what is signed is what the build made
    #[arg(long, required = true, value_name = "FILE")]
    pub(crate) out: Vec<PathBuf>,
    /// The outputs are container images
    #[arg(long)]
    pub(crate) image: bool,
    /// Something that goes into it, beside the git commit: a file, or a folder of them
    #[arg(long, value_name = "PATH")]
    pub(crate) input: Vec<PathBuf>,
    /// A variable that the build gets beside PATH and HOME; its name is recorded, its value is not
    #[arg(long, value_name = "NAME")]
    pub(crate) env: Vec<String>,
    /// The build command
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// What `trust builder` takes.
#[derive(Debug, Args)]
pub(crate) struct BuilderArgs {
    #[command(subcommand)]
    pub(crate) what: Builder,
}

/// What can be done with builders.
#[derive(Debug, Subcommand)]
pub(crate) enum Builder {
    /// Make a key for a builder: FILE, for the builder alone, and FILE.pub, for the trust bundle
    #[command(after_long_help = "Example:\n  cnova trust builder key ci.key")]
    Key {
        /// Where to put it
        file: PathBuf,
    },
    /// Trust a builder: the root keys sign a bundle that names its key, its URI and how far it is believed
    #[command(after_long_help = "\
The same key and URI again replace what the bundle says of them. --hub-key names the key that the hub signs with, which \
compiles Wasm for nodes.

Examples:
  cnova trust builder add ./trust --builder https://ci.example/line-2 --key ci.key.pub --level 2
  cnova trust builder add ./trust --hub-key --level 3")]
    Add(AddArgs),
    /// Trust a builder no more: what it signed is refused from then on, also what was accepted before
    #[command(after_long_help = "Example:\n  cnova trust builder remove ./trust 0123456789abcdef")]
    Remove {
        /// The folder that `cnova trust init` made
        dir: PathBuf,
        /// The key's id, as `cnova trust builder list` shows it
        key: String,
        /// Where the root keys are [default: DIR/roots]
        #[arg(long, value_name = "FOLDER")]
        roots: Option<PathBuf>,
    },
    /// Ask for provenance of every workload, whatever its manifest says
    #[command(after_long_help = "\
Examples:
  cnova trust builder require ./trust --min-level 2
  cnova trust builder require ./trust --off")]
    Require(RequireArgs),
    /// List the builders of a trust bundle
    #[command(after_long_help = "Example:\n  cnova trust builder list ./trust/trust-bundle.cose")]
    List {
        /// The bundle
        file: PathBuf,
    },
}

/// What `trust builder add` takes.
#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    /// The folder that `cnova trust init` made
    pub(crate) dir: PathBuf,
    /// The builder's URI, as it stands in its provenance
    #[arg(long, value_name = "URI", required_unless_present = "hub_key")]
    pub(crate) builder: Option<String>,
    /// The builder's key (PEM), its public half or the whole
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "hub_key",
        conflicts_with = "hub_key"
    )]
    pub(crate) key: Option<PathBuf>,
    /// The key that the hub signs with: the hub as compiler of Wasm
    #[arg(long)]
    pub(crate) hub_key: bool,
    /// SLSA build level that its provenance is believed up to
    #[arg(long, value_name = "0-3", value_parser = clap::value_parser!(u8).range(0..=3))]
    pub(crate) level: u8,
    /// For how many days what it signs is taken as new
    #[arg(long, default_value_t = 730, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(1..=3650))]
    pub(crate) days: u64,
    /// Where the root keys are [default: DIR/roots]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) roots: Option<PathBuf>,
}

/// What `trust builder require` takes.
#[derive(Debug, Args)]
pub(crate) struct RequireArgs {
    /// The folder that `cnova trust init` made
    pub(crate) dir: PathBuf,
    /// The lowest SLSA build level
    #[arg(long, default_value_t = 0, value_name = "0-3", value_parser = clap::value_parser!(u8).range(0..=3))]
    pub(crate) min_level: u8,
    /// Only builders whose URI is this, `*` for any text
    #[arg(long = "builder", value_name = "PATTERN")]
    pub(crate) builders: Vec<String>,
    /// Input files, too
    #[arg(long)]
    pub(crate) files: bool,
    /// Ask for nothing any more
    #[arg(long, conflicts_with_all = ["min_level", "builders", "files"])]
    pub(crate) off: bool,
    /// Where the root keys are [default: DIR/roots]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) roots: Option<PathBuf>,
}
