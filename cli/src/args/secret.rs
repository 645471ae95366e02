//! What the commands about secrets take.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use cnova_shared::ids::Name;

/// What `secret` takes.
#[derive(Debug, Args)]
pub(crate) struct SecretArgs {
    #[command(subcommand)]
    pub(crate) what: Secret,
}

/// What can be done about secrets.
#[derive(Debug, Subcommand)]
pub(crate) enum Secret {
    /// Give a secret a value; another one than before is a new version, with which its workloads start anew
    #[command(after_long_help = "\
The value is read from the file or from standard input, as it is: a line break at its end belongs to it. It is never \
taken from the command line, which other users of this machine can see.

Examples:
  printf %s \"$PASSWORD\" | cnova secret set db-password --allow line-2/historian
  cnova secret set tls-key --from-file server.key --allow gateway-ui
  openssl rand -hex 32 | cnova secret set session-key")]
    Set {
        /// Its name: lowercase letters, digits and inner hyphens
        #[arg(value_name = "NAME")]
        name: Name,
        /// The file that holds the value [default: standard input]
        #[arg(long, value_name = "FILE")]
        from_file: Option<PathBuf>,
        /// Who may use it, and nobody else: an application, or APPLICATION/WORKLOAD [default: as before; nobody at first]
        #[arg(long, value_name = "WHO")]
        allow: Vec<String>,
    },
    /// Say who may use a secret, and nobody else
    #[command(after_long_help = "\
Examples:
  cnova secret allow db-password line-2 line-3/historian
  cnova secret allow db-password --nobody")]
    Allow {
        /// Its name
        #[arg(value_name = "NAME")]
        name: Name,
        /// Applications, or APPLICATION/WORKLOAD
        #[arg(value_name = "WHO", required_unless_present = "nobody", conflicts_with = "nobody")]
        who: Vec<String>,
        /// Nobody
        #[arg(long)]
        nobody: bool,
    },
    /// Names, versions, who may use each and who does; never a value
    #[command(after_long_help = "Example:\n  cnova secret list")]
    List,
    /// Remove a secret that nobody uses
    #[command(after_long_help = "Example:\n  cnova secret remove db-password")]
    Remove {
        /// Its name
        #[arg(value_name = "NAME")]
        name: Name,
    },
}
