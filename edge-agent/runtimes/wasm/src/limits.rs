//! What a workload may use: memory and tables, and its share of the CPU.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cnova_ral::Limits;
use wasmtime::ResourceLimiter;

use crate::control::Shared;

/// Instances, memories and tables that one component may be made of, unless its settings say less or more.
pub(crate) const PARTS_MAX: u32 = 256;
/// What a workload may use of the CPU at once after it was idle, before its share is enforced.
const BURST: Duration = Duration::from_millis(50);
/// Longest pause in one go, so that a clock that jumps costs little.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The memory limit was reached. A growth beyond it ends the workload rather than fail, so that the same limit means
/// the same for Wasm as for a container.
#[derive(Debug, thiserror::Error)]
#[error("memory limit: {wanted} bytes wanted, {limit} allowed (limits.memory_bytes)")]
pub(crate) struct MemoryLimit {
    wanted: u64,
    limit: u64,
}

/// The limit on table elements was reached.
#[derive(Debug, thiserror::Error)]
#[error("table limit: {wanted} elements wanted, {limit} allowed (limits.table_elements)")]
pub(crate) struct TableLimit {
    wanted: u64,
    limit: u64,
}

/// Counts all memories and tables of the workload together.
pub(crate) struct Limiter {
    shared: Arc<Shared>,
    memory_bytes_max: u64,
    table_elements: u64,
    table_elements_max: u64,
    parts_max: usize,
}

impl Limiter {
    pub(crate) fn new(shared: Arc<Shared>, limits: &Limits, instances: Option<u32>) -> Limiter {
        Limiter {
            parts_max: usize::try_from(instances.unwrap_or(PARTS_MAX)).unwrap_or(usize::MAX),
            shared,
            memory_bytes_max: limits.memory_bytes,
            table_elements: 0,
            table_elements_max: limits.table_elements,
        }
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            // The module's own bound: the workload is told, as WebAssembly says.
            return Ok(false);
        }
        let others = self
            .shared
            .memory_bytes
            .load(Ordering::Relaxed)
            .saturating_sub(current as u64);
        let wanted = others.saturating_add(desired as u64);
        if wanted > self.memory_bytes_max {
            let limit = self.memory_bytes_max;
            return Err(MemoryLimit { wanted, limit }.into());
        }
        self.shared.memory_bytes.store(wanted, Ordering::Relaxed);
        Ok(true)
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let wanted = (self.table_elements.saturating_sub(current as u64)).saturating_add(desired as u64);
        if wanted > self.table_elements_max {
            let limit = self.table_elements_max;
            return Err(TableLimit { wanted, limit }.into());
        }
        self.table_elements = wanted;
        Ok(true)
    }

    fn instances(&self) -> usize {
        self.parts_max
    }

    fn tables(&self) -> usize {
        self.parts_max
    }

    fn memories(&self) -> usize {
        self.parts_max
    }
}

/// Spreads the workload's computing so that it uses no more than its share of one core.
/// CPU time is credit: it comes in with the clock, is kept up to [`BURST`], and a debt is slept off.
pub(crate) struct Throttle {
    /// Share of one core, above 0 and below 1.
    share: f64,
    credit: f64,
    seen_at: Instant,
    seen_cpu: Duration,
}

impl Throttle {
    /// Nothing if the limits leave the workload a whole core.
    pub(crate) fn new(limits: &Limits, cpu: Duration) -> Option<Throttle> {
        (1..1000).contains(&limits.cpu_millis).then(|| Throttle {
            share: f64::from(limits.cpu_millis) / 1000.0,
            credit: BURST.as_secs_f64(),
            seen_at: Instant::now(),
            seen_cpu: cpu,
        })
    }

    /// How long the workload must pause now.
    pub(crate) fn pause(&mut self, cpu: Duration) -> Duration {
        self.account(Instant::now(), cpu)
    }

    fn account(&mut self, now: Instant, cpu: Duration) -> Duration {
        let passed = now.saturating_duration_since(self.seen_at).as_secs_f64();
        let used = cpu.saturating_sub(self.seen_cpu).as_secs_f64();
        (self.seen_at, self.seen_cpu) = (now, cpu);
        self.credit = (self.credit + passed * self.share).min(BURST.as_secs_f64()) - used;
        if self.credit >= 0.0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(-self.credit / self.share).map_or(PAUSE_MAX, |pause| pause.min(PAUSE_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a workload that always computes, in virtual time, and returns the share it got.
    fn share_of_a_busy_loop(cpu_millis: u32) -> f64 {
        let limits = Limits {
            cpu_millis,
            ..Limits::default()
        };
        let mut throttle = Throttle::new(&limits, Duration::ZERO).unwrap();
        let (start, cpu_start) = (throttle.seen_at, throttle.seen_cpu);
        let (mut now, mut cpu) = (start, cpu_start);
        for _ in 0..10_000 {
            now += Duration::from_millis(5);
            cpu += Duration::from_millis(5);
            now += throttle.account(now, cpu);
        }
        (cpu - cpu_start).as_secs_f64() / (now - start).as_secs_f64()
    }

    #[test]
    fn a_busy_loop_gets_its_share_and_no_more() {
        for cpu_millis in [10, 100, 250, 900] {
            let share = share_of_a_busy_loop(cpu_millis);
            let wanted = f64::from(cpu_millis) / 1000.0;
            assert!((share - wanted).abs() < wanted * 0.02, "{cpu_millis}: {share}");
        }
    }

    #[test]
    fn an_idle_workload_is_not_slowed() {
        let limits = Limits {
            cpu_millis: 100,
            ..Limits::default()
        };
        let mut throttle = Throttle::new(&limits, Duration::ZERO).unwrap();
        let (mut now, mut cpu) = (throttle.seen_at, throttle.seen_cpu);
        for _ in 0..100 {
            now += Duration::from_secs(1);
            cpu += Duration::from_millis(49);
            assert_eq!(throttle.account(now, cpu), Duration::ZERO);
        }
    }

    #[test]
    fn a_whole_core_needs_no_throttle() {
        for cpu_millis in [0, 1000, 4000] {
            let limits = Limits {
                cpu_millis,
                ..Limits::default()
            };
            assert!(Throttle::new(&limits, Duration::ZERO).is_none());
        }
    }
}
