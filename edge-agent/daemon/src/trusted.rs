//! What the node's TPM says when the agent starts: its counter, its launch log, its boot. One that does not answer is asked
//! again while the agent runs ([`crate::event_loop`]).

use std::sync::Arc;

use cnova_agent_core::standing::{Counter, CounterState, OwnBoot, Root, silent_tpm};
use cnova_link::{Identity, Witness};
use cnova_root_of_trust::measurer::{MeasureError, Measurer, Program};
use cnova_root_of_trust::{LedgerKey, RootError, RootOfTrust};
use cnova_shared::boot_policy::OwnBoots;
use cnova_shared::wire::v1::Alarm;

use crate::config::AgentConfig;
use crate::key_keeper::KeyKeeper;

/// The launch log's file in the state folder.
pub(crate) const LAUNCH_LOG: &str = "launch.log";

/// What the TPM said.
pub(crate) struct Trusted {
    pub(crate) root: Root,
    pub(crate) witness: Option<Arc<Witness>>,
    /// The key under which the ledger keeps what is secret; nothing while it cannot be opened.
    pub(crate) ledger_key: Option<Arc<LedgerKey>>,
    /// What opens it anew.
    pub(crate) keeper: Option<Arc<KeyKeeper>>,
    pub(crate) alarms: Vec<Alarm>,
    /// Why launches cannot be measured now; that may pass.
    pub(crate) unmeasured: Option<String>,
}

/// What was found on the way to the core.
struct Alarms(Vec<Alarm>);

impl Alarms {
    fn raise(&mut self, code: &str, detail: String) {
        tracing::warn!(alarm = code, "{detail}");
        let code = code.to_owned();
        self.0.push(Alarm { code, detail });
    }
}

/// Asks the TPM, if the node has one; `boots` are those that are approved for it. What is wrong with it keeps nobody from
/// starting. Blocks for as long as it takes.
pub(crate) fn ask(identity: &Identity, config: &AgentConfig, boots: OwnBoots) -> Result<Trusted, MeasureError> {
    let mut alarms = Alarms(Vec::new());
    let holder = match identity.tpm() {
        Some(tpm) => Ok(tpm.clone()),
        None => config.identity.open_root(false),
    };
    let keeper = holder.map(|root| Arc::new(KeyKeeper::new(root, &config.state_dir)));
    let keeper = keeper
        .map_err(|e| {
            alarms.raise(
                "ledger-key",
                format!("what is secret in the ledger cannot be opened: {e}"),
            )
        })
        .ok();
    let tried = keeper.as_ref().map(|k| k.open(&boots));
    if let Some(lost) = tried.as_ref().and_then(|t| t.lost.as_ref()) {
        let detail = format!("what was secret in the ledger is lost and comes anew: {lost}");
        alarms.raise("ledger-key", detail);
    }
    let (own_boot, ledger_key) = tried.map_or((OwnBoot::Unsealed, None), |t| (t.own_boot, t.key));
    let Some(tpm) = identity.tpm() else {
        if let OwnBoot::Unknown(why) = own_boot {
            alarms.raise(
                "ledger-key",
                format!("what is secret in the ledger cannot be opened: {why}"),
            );
        }
        return Ok(Trusted {
            root: Root::default(),
            witness: None,
            ledger_key,
            keeper,
            alarms: alarms.0,
            unmeasured: None,
        });
    };
    let counter = counter_of(&**tpm).map_or_else(
        |error| {
            alarms.raise("tpm", silent_tpm(&error.to_string()));
            CounterState::Unknown
        },
        CounterState::Value,
    );
    let path = config.state_dir.join(LAUNCH_LOG);
    let (measurer, problem) = Measurer::open(
        &path,
        tpm.clone(),
        config.attestation.launch_pcr,
        Program::this(env!("CARGO_PKG_VERSION"))?,
    )?;
    let mut unmeasured = None;
    match problem {
        // It is tried again; the core says so until it succeeds.
        Some(problem) if measurer.is_behind() => unmeasured = Some(problem.to_string()),
        Some(problem) => alarms.raise("launch-log", format!("launches are not measured: {problem}")),
        None => {}
    }
    let root = Root {
        tier: tpm.tier(),
        own_boot,
        boots,
        counter,
        parent: config.attestation.parent,
    };
    let pcrs = config.attestation.quoted();
    Ok(Trusted {
        root,
        witness: Some(Arc::new(Witness {
            measurer: Some(measurer),
            pcrs,
        })),
        ledger_key,
        keeper,
        alarms: alarms.0,
        unmeasured,
    })
}

/// The counter, made where there is none.
pub(crate) fn counter_of(tpm: &dyn RootOfTrust) -> Result<Counter, RootError> {
    let (value, is_new) = match tpm.counter()? {
        Some(value) => (value, false),
        None => (tpm.count_up()?, true),
    };
    Ok(Counter { value, is_new })
}
