//! The one thread that talks to the TPM, and how callers wait for it.
//!
//! libtss2 blocks in a read for as long as the TPM takes, so no caller ever enters it. A caller that gave up before its
//! command was begun takes the command back; one that was begun is finished by the thread, whenever the TPM answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use tss_esapi::Context;

use super::config::TpmConfig;
use super::fault::{At, Fault};
use super::objects;
use super::provision::{self, Keys};
use crate::RootError;

/// Most callers that wait for the TPM at once; one more is told so.
pub const CALLERS_MAX: usize = 256;

/// Whether a command may be sent again when the TPM had no room for it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    /// Once, after everything of ours was flushed.
    WhenFull,
    /// Not even then.
    Never,
}

const WAITING: u8 = 0;
const BEGUN: u8 = 1;
const TAKEN_BACK: u8 = 2;

struct Job {
    state: Arc<AtomicU8>,
    run: Box<dyn FnOnce(&mut Chip) + Send>,
}

/// The callers' end.
pub(super) struct Link {
    jobs: SyncSender<Job>,
}

impl Link {
    /// Starts the thread. It ends when the last caller's end is gone and what it does is done.
    pub(super) fn start(config: &Arc<TpmConfig>) -> Result<Self, RootError> {
        let (jobs, queue) = sync_channel::<Job>(CALLERS_MAX);
        let mut chip = Chip {
            config: Arc::clone(config),
            open: None,
            known: None,
        };
        let run = move || {
            for job in queue {
                if job.state.swap(BEGUN, Ordering::AcqRel) == WAITING {
                    (job.run)(&mut chip);
                }
            }
        };
        let started = std::thread::Builder::new().name("tpm".into()).spawn(run);
        started.map_err(|e| RootError::NoAnswer {
            command: "open",
            reason: format!("no thread could be started for it: {e}"),
        })?;
        Ok(Self { jobs })
    }

    /// Has `job` done by the thread and waits for it at most `limit`.
    pub(super) fn call<T: Send + 'static>(
        &self,
        command: &'static str,
        limit: Duration,
        retry: Retry,
        job: impl FnMut(&mut Conversation) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, RootError> {
        let no_answer = |reason: String| Err(RootError::NoAnswer { command, reason });
        let (reply, answer) = sync_channel(1);
        let state = Arc::new(AtomicU8::new(WAITING));
        let run = Box::new(move |chip: &mut Chip| {
            // The caller may have given up.
            let _ = reply.send(chip.perform(retry, job));
        });
        let sent = self.jobs.try_send(Job {
            state: Arc::clone(&state),
            run,
        });
        match sent {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return no_answer(format!("{CALLERS_MAX} callers wait for it already")),
            Err(TrySendError::Disconnected(_)) => return no_answer("the thread that talks to it has ended".into()),
        }
        match answer.recv_timeout(limit) {
            Ok(result) => result,
            Err(RecvTimeoutError::Disconnected) => no_answer("the thread that talks to it has ended".into()),
            Err(RecvTimeoutError::Timeout) => {
                let begun = state.swap(TAKEN_BACK, Ordering::AcqRel) == BEGUN;
                let fate = if begun {
                    "it may still take effect"
                } else {
                    "it was not begun"
                };
                no_answer(format!("nothing within {} ms; {fate}", limit.as_millis()))
            }
        }
    }
}

/// What the thread owns.
struct Chip {
    config: Arc<TpmConfig>,
    open: Option<Conversation>,
    /// The keys that were found or made first; another TPM, or a cleared one, is not silently taken for this one.
    known: Option<Keys>,
}

/// A context of libtss2, and our keys in it once somebody needed them. A TPM that is full cannot even show a key, and is
/// still good for its registers and its counter.
pub(super) struct Conversation {
    pub(super) context: Context,
    keys: Option<Keys>,
    known: Keys,
    config: Arc<TpmConfig>,
}

impl Conversation {
    /// The context and the keys.
    pub(super) fn keyed(&mut self) -> Result<(&mut Context, &Keys), Fault> {
        let keys = match &mut self.keys {
            Some(keys) => keys,
            none => none.insert(provision::find(&mut self.context, &self.config, &self.known)?),
        };
        Ok((&mut self.context, keys))
    }
}

impl Chip {
    fn perform<T>(
        &mut self,
        retry: Retry,
        mut job: impl FnMut(&mut Conversation) -> Result<T, Fault>,
    ) -> Result<T, RootError> {
        let mut result = self.attempt(&mut job);
        if let Err(fault) = &result
            && fault.is_no_room()
            && retry == Retry::WhenFull
        {
            // Closing a context flushes what of ours is still in the TPM.
            self.open = None;
            result = self.attempt(&mut job);
        }
        if result.as_ref().is_err_and(Fault::spoils_context) {
            // libtss2 cannot be used on after some errors, and the device may be another one by now.
            self.open = None;
        }
        result.map_err(RootError::from)
    }

    fn attempt<T>(&mut self, job: &mut impl FnMut(&mut Conversation) -> Result<T, Fault>) -> Result<T, Fault> {
        let open = match &mut self.open {
            Some(open) => open,
            closed => closed.insert(connect(&self.config, &mut self.known)?),
        };
        job(open)
    }
}

fn connect(config: &Arc<TpmConfig>, known: &mut Option<Keys>) -> Result<Conversation, Fault> {
    let mut context = Context::new(config.name_conf()?).at("open")?;
    objects::set_passwords(&mut context, config)?;
    let (keys, known) = match known {
        Some(known) => (None, known.clone()),
        None => {
            if !config.has_resource_manager() {
                objects::flush_leftovers(&mut context)?;
            }
            let keys = known.insert(provision::provision(&mut context, config)?);
            (Some(keys.clone()), keys.clone())
        }
    };
    let config = Arc::clone(config);
    Ok(Conversation {
        context,
        keys,
        known,
        config,
    })
}
