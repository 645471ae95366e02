//! The launch log as a node writes it: what the file survives, and what a slice of it carries.

#![allow(clippy::unwrap_used)]

mod support;

use cnova_attestation::event_log::{Boot, Entry, Event, Launch, Log, LogError, Standing, ZERO, replay, slice};
use cnova_attestation::limits;
use cnova_shared::ids::Digest;
use cnova_shared::wire::v1::LogPrefix;
use cnova_shared::wire::{decode, encode};
use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};
use support::digest;

fn boot() -> Event {
    Event::Boot(Boot {
        agent: digest("agent"),
        version: "0.1.0".into(),
        boot: "3f1c".into(),
        before: None,
    })
}

fn launch(n: usize) -> Launch {
    Launch {
        workload: format!("app/workload-{n}"),
        artifact: digest(&format!("artifact {n}")),
        spec: digest("spec"),
        runtime: digest("runtime"),
    }
}

/// A log with the boot and `launches` launches, its file, and the ends of its records.
fn written(launches: usize) -> (Log, Vec<u8>, Vec<usize>) {
    let (mut log, mut file, mut ends) = (Log::new(), Vec::new(), vec![0]);
    for event in std::iter::once(boot()).chain((0..launches).map(|n| Event::Launch(launch(n)))) {
        let prepared = log.prepare(event).unwrap();
        file.extend(&prepared.record);
        log.append(&prepared).unwrap();
        ends.push(file.len());
    }
    (log, file, ends)
}

#[test]
fn what_was_written_is_read() {
    let (log, file, _) = written(20);
    let (read, torn) = Log::read(&file);
    assert_eq!((read, torn), (log.clone(), None));
    let all = slice(&file, None);
    assert_eq!((all.from, all.total, all.entries.len()), (0, 21, 21));
    assert_eq!(replay(&ZERO, &all.entries), log.pcr());
    assert!(log.has(&launch(7)) && !log.has(&launch(20)));
    let (empty, torn) = Log::read(&[]);
    assert_eq!((empty, torn), (Log::new(), None));
}

#[test]
fn a_torn_tail_is_cut_wherever_it_is_torn() {
    let (_, file, ends) = written(3);
    for len in 0..file.len() {
        let (log, torn) = Log::read(&file[..len]);
        let good = *ends.iter().filter(|e| **e <= len).max().unwrap();
        let whole = ends.iter().position(|e| *e == good).unwrap();
        assert_eq!(log.count(), whole as u64, "{len}");
        match torn {
            None => assert_eq!(good, len),
            Some(torn) => assert_eq!((torn.good, torn.cut), (good, len - good)),
        }
    }
    // A power cut can leave a file that grew and was never filled.
    let (log, torn) = Log::read(&[&file[..ends[3]], &[0; 100]].concat());
    assert_eq!((log.count(), torn.unwrap().good), (3, ends[3]));
}

#[test]
fn a_changed_record_ends_the_log() {
    let (_, file, ends) = written(3);
    for at in ends[2]..ends[3] {
        let mut changed = file.clone();
        changed[at] ^= 0x10;
        let (log, torn) = Log::read(&changed);
        assert_eq!((log.count(), torn.unwrap().good), (2, ends[2]), "byte {at}");
    }
    let swapped = [&file[..ends[1]], &file[ends[2]..ends[3]], &file[ends[1]..ends[2]]].concat();
    let (log, torn) = Log::read(&swapped);
    assert_eq!((log.count(), torn.unwrap().reason), (1, "it is out of sequence"));
    let without_boot = &file[ends[1]..];
    assert_eq!(Log::read(without_boot).0.count(), 0);
}

#[test]
fn after_a_restart_the_register_says_whether_the_last_entry_was_extended() {
    let (before, _, _) = written(4);
    let (log, file, _) = written(5);
    let last = slice(&file, None).entries.pop().unwrap();
    assert_eq!(log.against(&log.pcr()), Standing::Same);
    assert_eq!(log.against(&before.pcr()), Standing::Pending(Digest::of(&last)));
    assert_eq!(log.against(&written(3).0.pcr()), Standing::Differs { log: log.pcr() });
    assert_eq!(Log::new().against(&ZERO), Standing::Same);
    assert!(matches!(Log::new().against(&digest("x")), Standing::Differs { .. }));
    // Only the boot was logged, and the machine was cut off before it was extended.
    let (only_boot, _, _) = written(0);
    assert!(matches!(only_boot.against(&ZERO), Standing::Pending(_)));
}

#[test]
fn a_log_may_begin_in_a_register_that_was_used_before() {
    let before = digest("what shim left");
    let mut log = Log::new();
    let Event::Boot(mut first) = boot() else { panic!() };
    first.before = Some(before);
    let prepared = log.prepare(Event::Boot(first)).unwrap();
    log.append(&prepared).unwrap();
    assert_eq!(log.pcr(), replay(&before, &slice(&prepared.record, None).entries));
    assert_eq!(Log::read(&prepared.record).0, log);
    assert_eq!(log.against(&before), Standing::Pending(prepared.digest));
    let known = LogPrefix {
        count: 1,
        pcr: log.pcr(),
    };
    assert_eq!(slice(&prepared.record, Some(&known)).from, 1);
}

#[test]
fn what_cannot_be_logged_is_refused() {
    let mut log = Log::new();
    assert_eq!(log.prepare(Event::Launch(launch(1))), Err(LogError::BootFirst));
    let first = log.prepare(boot()).unwrap();
    log.append(&first).unwrap();
    assert_eq!(log.prepare(boot()), Err(LogError::BootFirst));
    assert!(matches!(
        log.append(&first),
        Err(LogError::OutOfTurn { seq: 0, next: 1 })
    ));
    let long = Launch {
        workload: "x".repeat(limits::ENTRY_TEXT_BYTES + 1),
        ..launch(1)
    };
    assert!(matches!(
        log.prepare(Event::Launch(long)),
        Err(LogError::TooLarge { .. })
    ));
    let largest = Launch {
        workload: "x".repeat(limits::ENTRY_TEXT_BYTES),
        ..launch(1)
    };
    assert!(log.prepare(Event::Launch(largest)).unwrap().record.len() <= limits::ENTRY_BYTES);
    assert_eq!(log.count(), 1);
}

#[test]
fn a_log_is_full_at_its_limit() {
    let mut log = Log::new();
    log.append(&log.prepare(boot()).unwrap()).unwrap();
    for n in 1..limits::LOG_ENTRIES {
        let event = Event::Agent {
            agent: digest("agent"),
            version: n.to_string(),
        };
        let prepared = log.prepare(event).unwrap();
        log.append(&prepared).unwrap();
    }
    let max = limits::LOG_ENTRIES;
    assert_eq!(log.prepare(Event::Launch(launch(1))), Err(LogError::Full { max }));
}

#[test]
fn a_slice_leaves_out_what_the_verifier_has() {
    let (log, file, ends) = written(10);
    let (part, _) = Log::read(&file[..ends[6]]);
    let known = LogPrefix {
        count: 6,
        pcr: part.pcr(),
    };
    let rest = slice(&file, Some(&known));
    assert_eq!((rest.from, rest.total, rest.entries.len()), (6, 11, 5));
    assert_eq!(replay(&known.pcr, &rest.entries), log.pcr());
    let whole = LogPrefix {
        count: 11,
        pcr: log.pcr(),
    };
    assert_eq!(slice(&file, Some(&whole)).entries.len(), 0);
    assert_eq!(slice(&file, Some(&whole)).from, 11);
    // Of another boot, or longer than this log: all of it.
    for (count, pcr) in [(6, digest("x")), (7, known.pcr), (12, log.pcr()), (0, ZERO)] {
        assert_eq!(slice(&file, Some(&LogPrefix { count, pcr })).from, 0, "{count}");
    }
    assert_eq!(slice(&[], Some(&known)).total, 0);
}

#[test]
fn a_long_log_is_cut_into_slices_that_fit() {
    let (log, file, _) = written(5000);
    let (mut at, mut seen) = (LogPrefix { count: 0, pcr: ZERO }, 0);
    for round in 1.. {
        let part = slice(&file, Some(&at));
        assert_eq!((part.from, part.total), (at.count, 5001));
        let bytes: usize = part.entries.iter().map(|e| e.len()).sum();
        assert!(bytes <= limits::SLICE_BYTES && part.entries.len() <= limits::SLICE_ENTRIES);
        at.pcr = replay(&at.pcr, &part.entries);
        at.count += part.entries.len() as u64;
        seen = round;
        if at.count == part.total {
            break;
        }
        assert!(!part.entries.is_empty());
    }
    assert!(seen > 2);
    assert_eq!(at.pcr, log.pcr());
}

#[test]
fn entries_have_golden_bytes() {
    let entry = Entry {
        seq: 7,
        event: Event::Launch(launch(1)),
    };
    let bytes = encode(&entry).unwrap();
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let a = launch(1).artifact.hex();
    let (s, r) = (digest("spec").hex(), digest("runtime").hex());
    let workload: String = b"app/workload-1".iter().map(|b| format!("{b:02x}")).collect();
    // {"s": 7, "e": {"t": "launch", "w": .., "a": h'..', "s": h'..', "r": h'..'}}
    let wanted = format!("a26173076165a56174666c61756e636861776e{workload}61615820{a}61735820{s}61725820{r}");
    assert_eq!(hex, wanted);
    assert_eq!(decode::<Entry>(&bytes).unwrap(), entry);
    // A kind of a later version is kept as bytes and known as unknown.
    let later = bytes
        .iter()
        .map(|b| if *b == b'l' { b'L' } else { *b })
        .collect::<Vec<_>>();
    assert_eq!(decode::<Entry>(&later).unwrap().event, Event::Unknown);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_bytes_are_a_log_or_a_torn_one(file: Vec<u8>, keep in 0_usize..4, at in any::<proptest::sample::Index>(), flip: u8) {
        let (_, good, ends) = written(3);
        let mut bytes = [&good[..ends[keep]], &file].concat();
        if !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
        }
        let (log, torn) = Log::read(&bytes);
        let kept = torn.map_or(bytes.len(), |t| t.good);
        prop_assert!(kept <= bytes.len());
        prop_assert_eq!(Log::read(&bytes[..kept]), (log, None));
    }
}
