//! `cnova artifact sign`: says of a file that is there who made it.

use serde_json::json;

use super::{AttestError, Local, Statement, beside, check_builder, envelope, inputs, report, upload, write};
use crate::args::SignArgs;
use crate::client::Hub;
use crate::output::Screen;
use crate::{age, trust};

const BUILD_TYPE: &str = "urn:cnova:build:signed:v1";

/// Runs the command. Without a hub nothing is uploaded.
pub(crate) fn run(args: &SignArgs, hub: Option<&Hub>, screen: &mut Screen<'_>) -> Result<(), AttestError> {
    check_builder(&args.signer.builder)?;
    let key = trust::read_key(&args.signer.key).map_err(AttestError::Key)?;
    let local = Local::read(&args.file, args.image)?;
    let materials = args.material.iter().map(|m| inputs::of_material(m));
    let dependencies = materials.collect::<Result<Vec<_>, _>>()?;
    inputs::check(dependencies.len())?;
    let now_s = age::now_ms() / 1000;
    let statement = Statement {
        build_type: args.build_type.as_deref().unwrap_or(BUILD_TYPE),
        parameters: json!({}),
        dependencies: &dependencies,
        builder: &args.signer.builder,
        times_s: (now_s, now_s),
    };
    let envelope = envelope(&[local.subject()], statement, &key)?;
    let file = args.out.clone().unwrap_or_else(|| beside(&local.path));
    write(&file, &envelope, args.append)?;
    let signed = [(local, file)];
    report(&signed, &key, &args.signer.builder, screen)?;
    match hub {
        Some(hub) => upload(hub, &signed[0].0, &signed[0].1, screen),
        None => Ok(()),
    }
}
