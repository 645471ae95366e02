//! What the node's TPM says when the agent starts: its counter, its launch log, its boot.

use std::path::Path;
use std::sync::Arc;

use cnova_agent_core::standing::{Counter, CounterState, OwnBoot, Root};
use cnova_link::{Identity, Witness};
use cnova_root_of_trust::ledger_key::{LedgerKey, LedgerKeyError, SealedKey};
use cnova_root_of_trust::measurer::{MeasureError, Measurer, Program};
use cnova_root_of_trust::{RootError, RootOfTrust};
use cnova_shared::wire::v1::Alarm;

use crate::config::{AgentConfig, ParentTrust};

/// The launch log's file in the state folder.
const LAUNCH_LOG: &str = "launch.log";

/// What the TPM said.
pub(crate) struct Trusted {
    pub(crate) root: Root,
    pub(crate) witness: Option<Arc<Witness>>,
    /// The key under which the ledger keeps what is secret; nothing while it cannot be opened.
    pub(crate) ledger_key: Option<Arc<LedgerKey>>,
    pub(crate) alarms: Vec<Alarm>,
}

/// Asks the TPM, if the node has one. What is wrong with it keeps nobody from starting. Blocks for as long as it takes.
pub(crate) fn ask(identity: &Identity, config: &AgentConfig) -> Result<Trusted, MeasureError> {
    let mut alarms = Vec::new();
    let mut alarm = |code: &str, detail: String| {
        tracing::warn!(alarm = code, "{detail}");
        let code = code.to_owned();
        alarms.push(Alarm { code, detail });
    };
    let root = match identity.tpm() {
        Some(tpm) => Ok(tpm.clone()),
        None => config.identity.open_root(false),
    };
    let opened = root
        .map_err(|e| e.to_string())
        .and_then(|root| ledger_key(&*root, &config.state_dir).map_err(|e| e.to_string()));
    let ledger_key = opened
        .map_err(|why| {
            alarm(
                "ledger-key",
                format!("what is secret in the ledger cannot be opened: {why}"),
            )
        })
        .ok();
    let Some(tpm) = identity.tpm() else {
        return Ok(Trusted {
            root: Root::default(),
            witness: None,
            ledger_key,
            alarms,
        });
    };
    let counter = counter_of(&**tpm).unwrap_or_else(|error| {
        alarm(
            "tpm",
            format!("the TPM's counter cannot be read, so a rolled-back disk is not noticed: {error}"),
        );
        CounterState::Unknown
    });
    let path = config.state_dir.join(LAUNCH_LOG);
    let (measurer, problem) = Measurer::open(
        &path,
        tpm.clone(),
        config.attestation.launch_pcr,
        Program::this(env!("CARGO_PKG_VERSION"))?,
    )?;
    if let Some(problem) = problem {
        alarm("launch-log", format!("launches are not measured: {problem}"));
    }
    let root = Root {
        tier: tpm.tier(),
        own_boot: OwnBoot::Unsealed,
        counter,
        attested_parent: config.attestation.parent == ParentTrust::Attested,
    };
    let pcrs = config.attestation.quoted();
    Ok(Trusted {
        root,
        witness: Some(Arc::new(Witness {
            measurer: Some(measurer),
            pcrs,
        })),
        ledger_key,
        alarms,
    })
}

fn ledger_key(root: &dyn RootOfTrust, state_dir: &Path) -> Result<Arc<LedgerKey>, LedgerKeyError> {
    SealedKey::in_folder(state_dir).open_here(root).map(Arc::new)
}

fn counter_of(tpm: &dyn RootOfTrust) -> Result<CounterState, RootError> {
    let (value, is_new) = match tpm.counter()? {
        Some(value) => (value, false),
        None => (tpm.count_up()?, true),
    };
    Ok(CounterState::Value(Counter { value, is_new }))
}
