//! A long run: what must not grow.

use std::time::Duration;

use super::inference::seconds;
use super::{Done, Run, Sample, Trouble};

/// Samples that are taken at most, and the shortest pause between two.
const SAMPLES: u32 = 120;
const PAUSE_MIN: Duration = Duration::from_secs(10);
/// What may come on top in the last third of the run, compared with the first: memory of a process group in bytes and as a
/// share, descriptors.
const GROWTH_BYTES: u64 = 2 << 20;
const GROWTH_SHARE: u64 = 10;
const GROWTH_DESCRIPTORS: u64 = 4;
/// Bytes that may be written to the flash in an hour in which nothing is deployed, and once. A 4 GB eMMC of 3000 cycles lasts
/// 17 years at that rate with a write amplification of 4.
const WRITTEN_PER_HOUR: u64 = 20 << 20;
const WRITTEN_ONCE: u64 = 4 << 20;

/// Watches the board for as long as was asked for.
pub(super) fn soak(run: &mut Run<'_>) -> Done {
    run.prepare()?;
    // Once, so that a target that cannot say is skipped before anything is waited for.
    run.target.sample()?;
    let length = run.options.soak;
    let pause = (length / SAMPLES).max(PAUSE_MIN);
    let begin = run.target.now();
    // What starts is not what grows.
    run.target.pass(pause)?;
    let mut samples = Vec::new();
    while run.target.now().saturating_sub(begin) < length {
        samples.push(run.target.sample()?);
        run.target.pass(pause)?;
    }
    samples.push(run.target.sample()?);
    run.measure(
        "watched for",
        format!(
            "{}, {} samples",
            seconds(run.target.now().saturating_sub(begin)),
            samples.len()
        ),
    );
    run.until_running(&super::Application::line(0).workloads())?;
    let (measures, grown) = judged(&samples)?;
    for (what, value) in measures {
        run.measure(what, value);
    }
    run.note(
        "rule: the median of the last third of the samples against that of the first third; memory may grow by 2 MiB or a \
         tenth, whichever is more, descriptors by 4; the flash may be written with 20 MiB an hour and 4 MiB once",
    );
    super::line::within_budget(run, "at the end of the long run")?;
    match grown.is_empty() {
        true => Ok(()),
        false => Err(Trouble::Failed(grown.join("; "))),
    }
}

type Judged = (Vec<(&'static str, String)>, Vec<String>);

/// What was measured, and what grew beyond what it may.
fn judged(samples: &[Sample]) -> Done<Judged> {
    let third = samples.len() / 3;
    let (Some(first), Some(last), true) = (samples.first(), samples.last(), third > 0) else {
        return Err(Trouble::failed("too short: three samples are the least"));
    };
    let (early, late) = (&samples[..third], &samples[samples.len() - third..]);
    let (mut measures, mut grown) = (Vec::new(), Vec::new());
    let memory: [(&str, Of); 2] = [
        ("memory of the agent, PSS", |s| s.agent_pss),
        ("memory of the runtimes, PSS", |s| s.runtimes_pss),
    ];
    for (what, of) in memory {
        let (from, to) = (median(early, of), median(late, of));
        measures.push((what, format!("{} KiB, then {} KiB", from >> 10, to >> 10)));
        if to > from + GROWTH_BYTES.max(from * GROWTH_SHARE / 100) {
            grown.push(format!("{what} grew from {} to {} KiB", from >> 10, to >> 10));
        }
    }
    let (from, to) = (median(early, |s| s.descriptors), median(late, |s| s.descriptors));
    measures.push(("descriptors of agent and runtimes", format!("{from}, then {to}")));
    if to > from + GROWTH_DESCRIPTORS {
        grown.push(format!("descriptors grew from {from} to {to}"));
    }
    let written = last.written.saturating_sub(first.written);
    let time = last.at.saturating_sub(first.at).as_secs();
    measures.push(("written to the flash", format!("{} KiB in {time} s", written >> 10)));
    if written > WRITTEN_ONCE + WRITTEN_PER_HOUR * time / 3600 {
        grown.push(format!("{} KiB were written to the flash in {time} s", written >> 10));
    }
    Ok((measures, grown))
}

/// What is looked at of a sample.
type Of = fn(&Sample) -> u64;

fn median(samples: &[Sample], of: Of) -> u64 {
    let mut all: Vec<u64> = samples.iter().map(of).collect();
    all.sort_unstable();
    all[all.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(grow: impl Fn(u64, &mut Sample)) -> Vec<Sample> {
        let sample = |n: u64| {
            let mut sample = Sample {
                at: Duration::from_secs(60 * n),
                agent_pss: 8 << 20,
                runtimes_pss: 40 << 20,
                descriptors: 60,
                written: 1 << 20,
            };
            grow(n, &mut sample);
            sample
        };
        (0..30).map(sample).collect()
    }

    #[test]
    fn what_stays_as_it_is_is_fine() {
        let noisy = samples(|n, s| {
            s.agent_pss += (n % 7) << 14;
            s.written += n << 12;
        });
        assert_eq!(judged(&noisy).unwrap().1, Vec::<String>::new());
    }

    #[test]
    fn each_growth_is_found() {
        let grow: [fn(u64, &mut Sample); 4] = [
            |n, s| s.agent_pss += n << 18,
            |n, s| s.runtimes_pss += n << 19,
            |n, s| s.descriptors += n,
            |n, s| s.written += n << 20,
        ];
        for grow in grow {
            assert_eq!(judged(&samples(grow)).unwrap().1.len(), 1);
        }
    }

    #[test]
    fn two_samples_say_nothing() {
        assert!(judged(&samples(|_, _| {})[..2]).is_err());
    }
}
