//! `cnova delete`: asks first.

use std::io::{self, BufRead, IsTerminal, Write};

use cnova_shared::ids::Name;
use serde_json::json;

use crate::args::DeleteArgs;
use crate::client::Hub;
use crate::failure::read_and_print_error;
use crate::model::ApplicationInfo;
use crate::output::Screen;
use crate::routes;

read_and_print_error!(DeleteError {
    #[error("delete {application}? There is no terminal to ask on: say --yes")]
    NobodyToAsk { application: Name },
    #[error("{application} was not deleted")]
    SaidNo { application: Name },
});

/// Runs the command.
pub(crate) fn run(args: &DeleteArgs, hub: &Hub, screen: &mut Screen<'_>) -> Result<(), DeleteError> {
    let name = &args.application;
    if !args.yes {
        if !io::stdin().is_terminal() {
            return Err(DeleteError::NobodyToAsk {
                application: name.clone(),
            });
        }
        let is_confirmed = match args.system {
            true => ask(&format!("Delete system {name}? [y/N] "))?,
            false => is_confirmed(&hub.get(&routes::application(name))?)?,
        };
        if !is_confirmed {
            return Err(DeleteError::SaidNo {
                application: name.clone(),
            });
        }
    }
    let text = if args.system {
        hub.delete(&routes::system(name))?;
        format!("system {name} deleted; nodes keep what they run")
    } else {
        hub.delete(&routes::application(name))?;
        format!("{name} deleted; its nodes stop it when they hear of it")
    };
    screen.document(&json!({ "deleted": name }), |s| s.line(&text))?;
    Ok(())
}

fn is_confirmed(app: &ApplicationInfo) -> io::Result<bool> {
    let placed: usize = app.workloads.values().map(|w| w.nodes.len()).sum();
    ask(&format!(
        "Delete {} (generation {}, running in {placed} places)? [y/N] ",
        app.name, app.generation
    ))
}

fn ask(question: &str) -> io::Result<bool> {
    let mut err = io::stderr();
    err.write_all(question.as_bytes())?;
    err.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
