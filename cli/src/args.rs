//! The command line: every command, every flag, and the help that teaches them.

mod attest;
mod enroll;
mod keys;
mod provenance;
mod secret;

use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use cnova_shared::ids::{Name, NodeId, WorkloadId};

use crate::output::{Format, Screen};

pub(crate) use attest::{Attest, AttestArgs, Reference, ReferenceAdd, ReferenceArgs};
pub(crate) use enroll::{Enroll, EnrollArgs};
pub(crate) use keys::{IssueArgs, Node, NodeArgs, Token, TokenArgs, Trust, TrustArgs};
pub(crate) use provenance::{AddArgs, BuildArgs, Builder, BuilderArgs, RequireArgs, SignArgs};
pub(crate) use secret::{Secret, SecretArgs};

const ABOUT: &str = "\
Deploy workloads to a fleet of small machines, watch them, and make the keys that the fleet trusts.

A manifest (CNDL, YAML or JSON) says what shall run where. `cnova apply` sends it to the hub, which checks, places and \
signs it; gateways carry it to the agents, and the agents report back.";

const AFTER: &str = "\
First steps:
  cnova trust init ./trust                   # keys, once, on a machine that you keep offline
  cnova token new --name alice --role admin  # a token for the hub, and its hash for the hub's token file
  cnova apply app.yaml --wait                # deploy, and follow it until every node has reported
  cnova get workloads                        # what runs where, and why what does not

Configuration, a later one wins over an earlier one:
  ~/.config/cnova/config.toml                hub = \"https://hub.example\", token_file = \"~/.cnova-token\", ca = \"ca.pem\"
  environment                                CNOVA_HUB, CNOVA_TOKEN, CNOVA_TOKEN_FILE, CNOVA_CA
  flags                                      --hub, --token, --token-file, --ca

Exit codes:
  0  done
  1  refused or failed; the message says by whom and why
  2  the command line is wrong
  3  the hub cannot be reached";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "cnova", version, about = "Deploy to a fleet of small machines, and watch it", long_about = ABOUT, after_long_help = AFTER)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags that every command takes.
#[derive(Debug, Default, Args)]
pub(crate) struct Global {
    /// The hub's URL [env: CNOVA_HUB] [default: http://127.0.0.1:8080]
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) hub: Option<String>,
    /// The token to show the hub; other users of this machine can see it in the process list, so prefer --token-file [env: CNOVA_TOKEN]
    #[arg(long, global = true, value_name = "TOKEN", conflicts_with = "token_file")]
    pub(crate) token: Option<String>,
    /// A file that holds the token [env: CNOVA_TOKEN_FILE]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// The authorities (PEM) that certify the hub's https address; without it, the public web's [env: CNOVA_CA]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// How to print
    #[arg(long, short, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Format,
    /// The same as --output json
    #[arg(long, global = true, conflicts_with = "output")]
    pub(crate) json: bool,
}

impl Global {
    /// How to print.
    pub(crate) fn format(&self) -> Format {
        if self.json { Format::Json } else { self.output }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Deploy manifests, or change what they deployed
    #[command(after_long_help = "\
Files that a manifest names (artifact: {file: build/app.wasm}) are looked for beside the manifest, and uploaded when \
the hub does not have them yet. A folder means its *.yaml, *.yml and *.json files with apiVersion cnova/v1, also in \
subfolders, except in those called build. All files are read before the first manifest is sent.

Examples:
  cnova apply app.yaml --wait         # deploy, and follow it for up to 60 seconds
  cnova apply ./site-a --wait=300     # all manifests of a folder
  cnova apply app.yaml --dry-run      # where would it go? Nothing that runs is changed")]
    Apply(ApplyArgs),
    /// List nodes, workloads or applications; show a node's twin or history, or the audit log
    #[command(after_long_help = "\
Examples:
  cnova get nodes
  cnova get workloads --node plc-14
  cnova get applications -o json
  cnova get twin plc-14 --raw plc-14.twin.cose
  cnova get history plc-14
  cnova get audit --limit 20")]
    Get(GetArgs),
    /// Explain one node, application or workload: reasons, refusals, alarms, timeline
    #[command(after_long_help = "\
Examples:
  cnova describe node plc-14                             # twin, alarms, refused twins, workloads
  cnova describe application vibration-watch             # where it is, and for every other node why not
  cnova describe workload vibration-watch/detector       # on every node
  cnova describe workload vibration-watch/detector@plc-14")]
    Describe(DescribeArgs),
    /// Explain why a workload runs, or does not, on each node, and what can be done
    #[command(after_long_help = "\
Examples:
  cnova explain workload vibration-watch/detector
  cnova explain workload vibration-watch/detector --node plc-14
  cnova explain workload vibration-watch/detector --json")]
    Explain(ExplainArgs),
    /// Run a build command in a clean environment, and sign where its outputs are from
    #[command(after_long_help = "\
The provenance (SLSA v1, in-toto, DSSE) lies beside each output: app.wasm.intoto.jsonl. It records the command, the git \
commit and what differs from it, and the inputs that are named. `cnova apply` uploads it with the artifact.

Examples:
  cnova build --key ci.key --builder https://ci.example/line-2 --out app.wasm -- clang --target=wasm32-wasi -O2 app.c -o app.wasm
  cnova build --key ci.key --builder https://ci.example/line-2 --input models --env CARGO_HOME --out app.wasm -- make app.wasm")]
    Build(BuildArgs),
    /// Import container images, sign artifacts, list what the hub keeps, remove what nothing uses
    #[command(after_long_help = "\
An image is an OCI image layout: a folder, or a tar archive of one (skopeo copy ... oci-archive:FILE, buildah push ... \
oci-archive:FILE, or docker save of Docker 25 or newer). Only what the hub does not have yet is uploaded.

Examples:
  cnova artifact import nginx.tar --platform linux/arm64
  cnova artifact sign app.wasm --key ci.key --builder https://ci.example/line-2
  cnova artifact list
  cnova artifact gc")]
    Artifact(ArtifactArgs),
    /// Print the end of a workload's log
    #[command(after_long_help = "\
The hub asks the node, so the node must be connected.

Examples:
  cnova logs vibration-watch/detector --lines 20
  cnova logs vibration-watch/detector --node plc-14")]
    Logs(LogsArgs),
    /// Delete an application: its workloads stop on every node
    #[command(after_long_help = "\
Examples:
  cnova delete vibration-watch        # asks first
  cnova delete vibration-watch --yes  # for scripts")]
    Delete(DeleteArgs),
    /// Trust a node no longer, or again
    #[command(after_long_help = "\
Examples:
  cnova node revoke plc-14 --reason \"stolen on 3 May\"
  cnova node readmit plc-14 --new-key")]
    Node(NodeArgs),
    /// What nodes with a TPM have proven: how they booted, and what was launched on them
    #[command(after_long_help = "\
Examples:
  cnova attest show plc-14
  cnova attest now plc-14
  cnova attest release plc-14")]
    Attest(AttestArgs),
    /// What nodes shall have booted: the values that attestation compares with
    #[command(after_long_help = "\
Examples:
  cnova reference add plc-image-1-4 --from-node plc-14 --site plant-7
  cnova reference list
  cnova reference remove plc-image-1-3")]
    Reference(ReferenceArgs),
    /// Let devices become nodes: tokens, known TPMs; see who did
    #[command(after_long_help = "\
A device with a TPM, or with a token, gets its certificate by itself. docs/ENROLMENT.md describes it.

Examples:
  cnova enroll token --site plant-7/line-2/plc-14 > token
  cnova enroll ek --certificate plc-14-ek.pem --name plc-14 --site plant-7/line-2/plc-14
  cnova enroll list")]
    Enroll(EnrollArgs),
    /// Passwords and keys for workloads: set, granted, rotated, never shown
    #[command(after_long_help = "\
A value is encrypted to each node whose workloads name it, and opened there in memory. docs/SECRETS.md describes it.

Examples:
  printf %s \"$PASSWORD\" | cnova secret set db-password --allow line-2/historian
  cnova secret list
  cnova secret remove db-password")]
    Secret(SecretArgs),
    /// Make and show the keys that the fleet trusts; only `push` needs a hub
    #[command(after_long_help = "\
Root keys sign trust bundles and nothing else: keep DIR/roots offline. The hub needs DIR/hub-signing.key and \
DIR/trust-bundle.cose; every image needs the trust bundle; every node its own key and certificate.

Examples:
  cnova trust init ./trust --tree acme --roots 3 --threshold 2
  cnova trust issue plc-14 --site plant-7/line-2/plc-14 --dir ./trust
  cnova trust rotate ./trust
  cnova trust push ./trust/trust-bundle.cose
  cnova trust show ./trust/trust-bundle.cose")]
    Trust(TrustArgs),
    /// Make tokens for people and scripts; needs no hub
    #[command(after_long_help = "\
Example:
  cnova token new --name ci --role operator --tokens /etc/cnova/tokens.toml > ci.token")]
    Token(TokenArgs),
    /// Print a script that completes this command in a shell
    #[command(after_long_help = "\
Examples:
  cnova completions bash > /etc/bash_completion.d/cnova
  cnova completions zsh > ~/.zfunc/_cnova
  cnova completions fish > ~/.config/fish/completions/cnova.fish")]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print this program's version
    #[command(after_long_help = "Example:\n  cnova version -o json")]
    Version,
}

/// What `apply` takes.
#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// Manifests, or folders of them
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    /// Follow until every placed node has reported, at most so many seconds (60 when none are given)
    #[arg(long, value_name = "SECS", num_args = 0..=1, require_equals = true, default_missing_value = "60", conflicts_with = "dry_run")]
    pub(crate) wait: Option<u64>,
    /// Say what would happen, and change nothing; no file is uploaded
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// What `get` takes.
#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    #[command(subcommand)]
    pub(crate) what: Get,
}

/// What can be listed or shown.
#[derive(Debug, Subcommand)]
pub(crate) enum Get {
    /// All nodes
    #[command(visible_alias = "node", after_long_help = "Example:\n  cnova get nodes")]
    Nodes,
    /// All workloads, on all nodes
    #[command(
        visible_alias = "workload",
        after_long_help = "Example:\n  cnova get workloads --application vibration-watch"
    )]
    Workloads {
        /// Only those on this node
        #[arg(long, value_name = "NODE")]
        node: Option<NodeId>,
        /// Only those of this application
        #[arg(long, short, value_name = "APP")]
        application: Option<Name>,
    },
    /// All applications
    #[command(visible_aliases = ["application", "apps"], after_long_help = "Example:\n  cnova get applications -o yaml")]
    Applications,
    /// All operating systems for nodes, and how far each node is
    #[command(visible_alias = "system", after_long_help = "Example:\n  cnova get systems")]
    Systems,
    /// The twin (desired state) that a node should have
    #[command(after_long_help = "Example:\n  cnova get twin plc-14 --raw plc-14.twin.cose")]
    Twin {
        /// The node
        node: NodeId,
        /// Save the signed bytes (COSE_Sign1), as they travel to the node, to this file
        #[arg(long, value_name = "FILE")]
        raw: Option<PathBuf>,
    },
    /// What a node reported, newest first
    #[command(after_long_help = "Example:\n  cnova get history plc-14 --limit 20")]
    History {
        /// The node
        node: NodeId,
        /// At most so many entries
        #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Who changed what, newest first, and whether the log is whole
    #[command(after_long_help = "Example:\n  cnova get audit --limit 20")]
    Audit {
        /// At most so many entries
        #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
}

/// What `describe` takes.
#[derive(Debug, Args)]
pub(crate) struct DescribeArgs {
    #[command(subcommand)]
    pub(crate) what: Describe,
}

/// What can be explained.
#[derive(Debug, Subcommand)]
pub(crate) enum Describe {
    /// A node
    #[command(after_long_help = "Example:\n  cnova describe node plc-14")]
    Node {
        /// Its name
        name: NodeId,
    },
    /// An application
    #[command(
        visible_alias = "app",
        after_long_help = "Example:\n  cnova describe application vibration-watch"
    )]
    Application {
        /// Its name
        name: Name,
    },
    /// A workload, on one node or on all
    #[command(after_long_help = "Example:\n  cnova describe workload vibration-watch/detector@plc-14")]
    Workload {
        /// APP/NAME or APP/NAME@NODE
        workload: WorkloadRef,
    },
}

/// A workload on a node, or on any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WorkloadRef {
    pub(crate) id: WorkloadId,
    pub(crate) node: Option<NodeId>,
}

impl std::str::FromStr for WorkloadRef {
    type Err = cnova_shared::ids::InvalidName;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (id, node) = match text.split_once('@') {
            Some((id, node)) => (id, Some(node.parse()?)),
            None => (text, None),
        };
        Ok(Self { id: id.parse()?, node })
    }
}

/// What `explain` takes.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    #[command(subcommand)]
    pub(crate) what: Explain,
}

/// What can be explained in full.
#[derive(Debug, Subcommand)]
pub(crate) enum Explain {
    /// A workload: where it is placed and why, what each node has heard and says, and what can be done
    #[command(after_long_help = "Example:\n  cnova explain workload vibration-watch/detector --node plc-14")]
    Workload {
        /// APP/NAME or APP/NAME@NODE
        workload: WorkloadRef,
        /// Only this node
        #[arg(long, value_name = "NODE")]
        node: Option<NodeId>,
    },
}

/// What `artifact` takes.
#[derive(Debug, Args)]
pub(crate) struct ArtifactArgs {
    #[command(subcommand)]
    pub(crate) what: Artifact,
}

/// What can be done with artifacts.
#[derive(Debug, Subcommand)]
pub(crate) enum Artifact {
    /// Upload a container image; prints the digest that a manifest names it by
    #[command(after_long_help = "Example:\n  cnova artifact import nginx.tar --platform linux/arm64")]
    Import {
        /// An OCI image layout: a folder or a tar archive
        #[arg(value_name = "IMAGE")]
        image: PathBuf,
        /// Of an image for several platforms, this one
        #[arg(long, value_name = "OS/ARCH")]
        platform: Option<String>,
        /// Of several images, the one of this name
        #[arg(long = "ref", value_name = "NAME")]
        reference: Option<String>,
    },
    /// Sign where an artifact is from, and bring both to the hub
    #[command(after_long_help = "\
Examples:
  cnova artifact sign app.wasm --key ci.key --builder https://ci.example/line-2
  cnova artifact sign nginx.tar --image --key ci.key --builder https://ci.example/line-2 --no-upload")]
    Sign(SignArgs),
    /// All artifacts that the hub keeps, and what uses each
    #[command(after_long_help = "Example:\n  cnova artifact list -o json")]
    List,
    /// Remove, now, all artifacts that nothing uses; the hub does it by itself after a week
    #[command(after_long_help = "Example:\n  cnova artifact gc")]
    Gc,
}

/// What `logs` takes.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// APP/WORKLOAD
    pub(crate) workload: WorkloadId,
    /// Only of this node; otherwise of every node that it is on
    #[arg(long, value_name = "NODE")]
    pub(crate) node: Option<NodeId>,
    /// At most so many lines
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) lines: u32,
}

/// What `delete` takes.
#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// The application
    #[arg(value_name = "APP")]
    pub(crate) application: Name,
    /// It is a system (kind: System): nodes keep what they run, and begin nothing new
    #[arg(long)]
    pub(crate) system: bool,
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
}

/// Shells that completions are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    /// GNU Bash
    Bash,
    /// Z shell
    Zsh,
    /// fish
    Fish,
}

/// Prints the completion script of a shell.
pub(crate) fn completions(shell: Shell, screen: &mut Screen<'_>) -> std::io::Result<()> {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "cnova", &mut script);
    screen.bytes(&script)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_command_has_an_example() {
        let mut command = Cli::command();
        command.build();
        command.clone().debug_assert();
        let mut all = vec![command];
        while let Some(command) = all.pop() {
            let subs: Vec<_> = command
                .get_subcommands()
                .filter(|c| c.get_name() != "help")
                .cloned()
                .collect();
            let help = command
                .get_after_long_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(help.contains("cnova "), "{} has no example", command.get_name());
            // clap itself does not notice, and then ends the program where the flag is read.
            let globals = ["hub", "token", "token_file", "ca", "output", "json"];
            for arg in command
                .get_arguments()
                .filter(|a| globals.contains(&a.get_id().as_str()))
            {
                assert!(
                    arg.is_global_set(),
                    "{} has a --{} of its own",
                    command.get_name(),
                    arg.get_id()
                );
            }
            all.extend(subs);
        }
    }

    #[test]
    fn a_workload_may_name_its_node() {
        let r: WorkloadRef = "a/b@plc-1.x".parse().unwrap();
        assert_eq!(
            (r.id.to_string().as_str(), r.node.unwrap().as_str()),
            ("a/b", "plc-1.x")
        );
        assert_eq!("a/b".parse::<WorkloadRef>().unwrap().node, None);
        assert!("a".parse::<WorkloadRef>().is_err());
        assert!("a/b@".parse::<WorkloadRef>().is_err());
    }
}
