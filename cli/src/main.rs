//! `cnova`: the command that people use to deploy to a fleet, to look at it, and to make the keys that it trusts.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;

mod age;
mod apply;
mod args;
mod artifact;
mod attest;
mod client;
mod delete;
mod describe;
mod enroll;
mod explain;
mod failure;
mod get;
mod logs;
mod manifest_errors;
mod model;
mod node;
mod output;
mod provenance;
mod routes;
mod secret;
mod settings;
mod token;
mod trust;

use args::{Cli, Command};
use client::Hub;
use failure::Failure;
use output::Screen;

fn main() -> ExitCode {
    // clap prints help and usage errors itself and exits with 0 or 2.
    let cli = Cli::parse();
    let stdout = io::stdout();
    let mut screen = Screen::new(
        Box::new(stdout.lock()),
        stdout.is_terminal(),
        cli.global.format(),
        age::now_ms(),
    );
    let done = run(cli, &mut screen).and_then(|()| screen.flush().map_err(Failure::from));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // `cnova get nodes | head -1`: the reader has seen enough.
        Err(Failure::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            // What was printed before the failure belongs before it. Nothing is left to do when stderr is closed.
            let _ = screen.flush();
            let _ = writeln!(io::stderr(), "error: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(cli: Cli, screen: &mut Screen<'_>) -> Result<(), Failure> {
    let global = &cli.global;
    let hub = || -> Result<Hub, Failure> {
        let hub = Hub::new(&settings::resolve(global, &settings::environment)?)?;
        if let Some(warning) = hub.warning() {
            let _ = writeln!(io::stderr(), "warning: {warning}");
        }
        Ok(hub)
    };
    match &cli.command {
        Command::Apply(args) => apply::run(args, &hub()?, screen)?,
        Command::Get(args) => get::run(&args.what, &hub()?, screen)?,
        Command::Describe(args) => describe::run(&args.what, &hub()?, screen)?,
        Command::Explain(args) => explain::run(&args.what, &hub()?, screen)?,
        Command::Artifact(args) => match &args.what {
            args::Artifact::Sign(sign) => {
                let hub = (!sign.no_upload).then(hub).transpose()?;
                provenance::sign::run(sign, hub.as_ref(), screen)?;
            }
            what => artifact::run(what, &hub()?, screen)?,
        },
        Command::Build(args) => provenance::build::run(args, screen)?,
        Command::Attest(args) => attest::run(&args.what, &hub()?, screen)?,
        Command::Reference(args) => attest::references(&args.what, &hub()?, screen)?,
        Command::Logs(args) => logs::run(args, &hub()?, screen)?,
        Command::Delete(args) => delete::run(args, &hub()?, screen)?,
        Command::Enroll(args) => enroll::run(&args.what, &hub()?, screen)?,
        Command::Secret(args) => secret::run(&args.what, &hub()?, screen)?,
        Command::Node(args) => node::run(&args.what, &hub()?, screen)?,
        Command::Trust(args) => match &args.what {
            args::Trust::Push { file } => trust::push(file, &hub()?, screen)?,
            offline => trust::run(offline, screen)?,
        },
        Command::Token(args) => token::run(&args.what, screen)?,
        Command::Completions { shell } => args::completions(*shell, screen)?,
        Command::Version => version(screen)?,
    }
    Ok(())
}

fn version(screen: &mut Screen<'_>) -> io::Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let value =
        serde_json::json!({ "cnova": version, "manifest": "cnova/v1", "wire": cnova_shared::wire::v1::VERSION });
    screen.document(&value, |s| {
        s.line(&format!("cnova {version} (manifests cnova/v1, wire v1)"))
    })
}
