//! The verifier's side of the launch log: whether it replays to the quoted register, and what it proves.

use std::collections::BTreeSet;

use cnova_shared::ids::Digest;
use cnova_shared::wire;
use cnova_shared::wire::v1::LogPrefix;
use serde::{Deserialize, Serialize};

use crate::event_log::{Boot, Entry, Event, Launch, Slice, ZERO, before_first, extended};
use crate::{Pcr, limits};

/// A launch, with its place in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launched {
    /// Its place.
    #[serde(rename = "s")]
    pub seq: u64,
    /// What was launched.
    #[serde(rename = "l")]
    pub launch: Launch,
}

/// What a verifier keeps of a node's launch log, from one appraisal to the next. The node then sends only what is new.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogState {
    /// How many entries were replayed.
    #[serde(rename = "n")]
    pub count: u64,
    /// The register's value after them.
    #[serde(rename = "p")]
    pub pcr: Pcr,
    /// The TPM's reset count: after another reset the log begins anew.
    #[serde(rename = "r")]
    pub reset_count: u32,
    /// How many of the entries a quote has proven. Fewer than `count` only while a long log is told in parts.
    #[serde(rename = "ok")]
    pub proven: u64,
    /// The first entry.
    #[serde(rename = "b")]
    pub boot: Boot,
    /// Executables of the agent that wrote the log.
    #[serde(rename = "ag")]
    pub agents: BTreeSet<Digest>,
    /// What was launched since boot, in order; proven when `seq < proven`.
    #[serde(rename = "l")]
    pub launched: Vec<Launched>,
}

impl LogState {
    /// What to name in the next challenge.
    #[must_use]
    pub fn prefix(&self) -> LogPrefix {
        LogPrefix {
            count: self.count,
            pcr: self.pcr,
        }
    }

    fn take(&mut self, seq: u64, event: &Event, digest: &Digest) {
        match event {
            Event::Agent { agent, .. } => {
                self.agents.insert(*agent);
            }
            Event::Launch(launch) => self.launched.push(Launched {
                seq,
                launch: launch.clone(),
            }),
            Event::Boot(_) | Event::Unknown => {}
        }
        self.pcr = extended(&self.pcr, digest);
        self.count = seq + 1;
    }
}

/// What the replay of a log says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Replay {
    /// The register proves all of it, but perhaps for one entry at its end that was logged and not yet extended.
    Proven { pending: Option<Event> },
    /// It continues: ask again from here.
    Incomplete { have: u64, total: u64 },
    /// There is none, and the register was not used.
    Absent,
    /// The register does not prove it.
    Refuted { detail: String, event: Option<String> },
}

/// The outcome, with what to keep.
pub(crate) struct Judged {
    pub(crate) replay: Replay,
    pub(crate) state: Option<LogState>,
}

fn refuted(detail: String, event: Option<String>) -> Judged {
    let replay = Replay::Refuted { detail, event };
    Judged { replay, state: None }
}

/// An entry that was decoded, and the digest that the register was extended with.
struct Read {
    event: Event,
    digest: Digest,
}

/// Judges the part of a log that came with a quote which says that the register holds `register`.
pub(crate) fn judge(
    slice: &Slice,
    retained: Option<&LogState>,
    register: &Pcr,
    reset_count: u32,
    starts: &BTreeSet<Pcr>,
) -> Judged {
    let retained = retained.filter(|r| r.reset_count == reset_count && r.count == slice.from && slice.from > 0);
    if slice.from > 0 && retained.is_none() {
        let from = slice.from;
        return refuted(
            format!("the launch log begins at entry {from}, and what comes before was not left out for us"),
            None,
        );
    }
    if slice.total > limits::LOG_ENTRIES {
        let total = slice.total;
        return refuted(
            format!("the launch log claims {total} entries, at most {}", limits::LOG_ENTRIES),
            None,
        );
    }
    let end = slice.from + slice.entries.len() as u64;
    if end > slice.total || (end < slice.total && slice.entries.is_empty()) {
        return refuted(
            format!("the launch log claims {} entries and shows {end}", slice.total),
            None,
        );
    }
    if slice.total == 0 {
        if *register == ZERO || starts.contains(register) {
            return Judged {
                replay: Replay::Absent,
                state: None,
            };
        }
        return refuted(
            "the launch register was extended, and no launch log was shown".into(),
            None,
        );
    }
    let read = match read_entries(slice) {
        Ok(read) => read,
        Err((seq, reason)) => {
            return refuted(
                format!("entry {seq} of the launch log: {reason}"),
                Some(format!("entry {seq}")),
            );
        }
    };
    let state = match retained {
        Some(retained) => retained.clone(),
        None => match first_state(slice, reset_count, starts) {
            Ok(state) => state,
            Err(detail) => return refuted(detail, Some("entry 0".into())),
        },
    };
    compare(slice, read, state, register)
}

fn read_entries(slice: &Slice) -> Result<Vec<Read>, (u64, String)> {
    let mut read = Vec::with_capacity(slice.entries.len());
    for (seq, bytes) in (slice.from..).zip(&slice.entries) {
        let entry: Entry = wire::decode(bytes).map_err(|e| (seq, format!("it cannot be read: {e}")))?;
        if entry.seq != seq {
            return Err((
                seq,
                format!(
                    "it says that it is entry {}: entries were moved or taken out",
                    entry.seq
                ),
            ));
        }
        if matches!(entry.event, Event::Boot(_)) != (seq == 0) {
            return Err((seq, "a log begins with the boot, and has it nowhere else".into()));
        }
        read.push(Read {
            event: entry.event,
            digest: Digest::of(bytes),
        });
    }
    Ok(read)
}

fn first_state(slice: &Slice, reset_count: u32, starts: &BTreeSet<Pcr>) -> Result<LogState, String> {
    let first = slice.entries.first();
    let entry = first.and_then(|b| wire::decode::<Entry>(b).ok());
    let (Some(Event::Boot(boot)), Some(before)) = (entry.map(|e| e.event), first.and_then(|b| before_first(b))) else {
        return Err("the launch log does not begin with the boot".into());
    };
    if before != ZERO && !starts.contains(&before) {
        return Err(format!(
            "the launch log says that its register held {} before, and no reference allows that: something used the register \
             before the agent",
            before.short()
        ));
    }
    Ok(LogState {
        count: 0,
        pcr: before,
        reset_count,
        proven: 0,
        agents: BTreeSet::from([boot.agent]),
        boot,
        launched: Vec::new(),
    })
}

/// Replays; the last entry may be pending.
fn compare(slice: &Slice, mut read: Vec<Read>, mut state: LogState, register: &Pcr) -> Judged {
    let complete = slice.from + read.len() as u64 == slice.total;
    let last = if complete { read.pop() } else { None };
    let mut reached = (state.pcr == *register).then_some(slice.from);
    for (seq, entry) in (slice.from..).zip(&read) {
        state.take(seq, &entry.event, &entry.digest);
        if state.pcr == *register {
            reached = Some(seq + 1);
        }
    }
    let Some(last) = last else {
        return match (complete, state.pcr == *register) {
            (true, true) => proven(state, None),
            (true, false) => does_not_replay(slice, reached, register),
            (false, _) => Judged {
                replay: Replay::Incomplete {
                    have: state.count,
                    total: slice.total,
                },
                state: Some(state),
            },
        };
    };
    if extended(&state.pcr, &last.digest) == *register {
        let seq = state.count;
        state.take(seq, &last.event, &last.digest);
        return proven(state, None);
    }
    // Without its first entry there is no log yet: a boot that was logged and not extended leaves nothing to keep.
    if state.pcr == *register {
        return proven(state, Some(last.event));
    }
    does_not_replay(slice, reached, register)
}

fn proven(mut state: LogState, pending: Option<Event>) -> Judged {
    state.proven = state.count;
    Judged {
        replay: Replay::Proven { pending },
        state: (state.count > 0).then_some(state),
    }
}

fn does_not_replay(slice: &Slice, reached: Option<u64>, register: &Pcr) -> Judged {
    let last = slice.total.saturating_sub(1);
    if let Some(reached) = reached {
        let missing = slice.total - reached;
        let detail = format!("{missing} entries ({reached} to {last}) were logged and never extended; one may be");
        return refuted(detail, Some(format!("entry {reached}")));
    }
    let range = if slice.from == last {
        format!("entry {last}")
    } else {
        format!("one of entries {} to {last}", slice.from)
    };
    let detail = format!(
        "the launch log does not replay to the register's {}: {range} was changed, or one was added or left out",
        register.short()
    );
    refuted(detail, Some(range))
}
