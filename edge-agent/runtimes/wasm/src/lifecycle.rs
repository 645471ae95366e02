//! A component that answers for itself: `cnova:workload/lifecycle`.

use std::time::Duration;

use tokio::time::Instant;
use wasmtime::Store;
use wasmtime::component::{Component, Linker};

use crate::guest::{ComponentHost, Job, Outcome, failed};

mod bindings {
    #![allow(
        missing_docs,
        unreachable_pub,
        reason = "generated from wit/workload.wit, which is documented"
    )]
    wasmtime::component::bindgen!({
        path: "wit/workload.wit",
        world: "workload",
        exports: { default: async },
    });
}

use bindings::Workload;

/// The interface, as a component exports it.
const INTERFACE: &str = "cnova:workload/lifecycle@1.0.0";
/// Longest pause between two steps; a workload that asks for more gets this.
const PAUSE_MAX: Duration = Duration::from_secs(24 * 3600);
/// What a workload may say about its health, in bytes; the rest is cut off.
const HEALTH_BYTES_MAX: usize = 1 << 10;

/// Whether to ask it; a component that exports `wasi:cli/run` too is asked.
pub(crate) fn is_exported_by(component: &Component) -> bool {
    component.get_export_index(None, INTERFACE).is_some()
}

/// Runs it from `start` to `stop`.
pub(crate) async fn run(
    job: &Job<'_>,
    component: &Component,
    linker: &Linker<ComponentHost>,
    mut store: Store<ComponentHost>,
    started: impl FnOnce() -> wasmtime::Result<()>,
) -> Outcome {
    let guest = match Workload::instantiate_async(&mut store, component, linker).await {
        Ok(guest) => guest,
        Err(error) => return Outcome::NotStarted(error),
    };
    if let Err(error) = started() {
        return Outcome::NotStarted(error);
    }
    job.shared.desk.open();
    let mut workload = Lifecycle { job, guest, store };
    match workload.live().await {
        Ok(outcome) => outcome,
        Err(error) => failed(error, &mut workload.store, job),
    }
}

struct Lifecycle<'a> {
    job: &'a Job<'a>,
    guest: Workload,
    store: Store<ComponentHost>,
}

/// One call into the workload, with its name on the desk while it lasts.
macro_rules! call {
    ($self:ident, $name:literal, $function:ident) => {{
        $self.job.shared.desk.entering($name);
        let result = $self.guest.cnova_workload_lifecycle().$function(&mut $self.store).await;
        $self.job.shared.desk.left();
        result
    }};
}

impl Lifecycle<'_> {
    async fn live(&mut self) -> wasmtime::Result<Outcome> {
        if let Err(text) = call!(self, "start", call_start)? {
            return Ok(Outcome::Said(format!("start: {text}")));
        }
        let mut due = Instant::now();
        loop {
            if self.job.shared.desk.stop_asked() {
                call!(self, "stop", call_stop)?;
                return Ok(Outcome::Stopped);
            }
            self.answer().await?;
            if due <= Instant::now() {
                due = match call!(self, "step", call_step)? {
                    Ok(Some(pause_ms)) => Instant::now() + Duration::from_millis(pause_ms.into()).min(PAUSE_MAX),
                    Ok(None) => return Ok(Outcome::Code(0)),
                    Err(text) => return Ok(Outcome::Said(format!("step: {text}"))),
                };
                continue;
            }
            tokio::select! {
                () = self.job.shared.desk.bell.notified() => {}
                () = tokio::time::sleep_until(due) => {}
            }
        }
    }

    /// Answers what was asked since the last call.
    async fn answer(&mut self) -> wasmtime::Result<()> {
        let asked = self.job.shared.desk.asked();
        if let Some(number) = asked.health {
            let mut health = call!(self, "health", call_health)?;
            if let Err(text) = &mut health {
                text.truncate(text.floor_char_boundary(HEALTH_BYTES_MAX));
            }
            self.job.shared.desk.answer_health(number, health);
        }
        if let Some(number) = asked.metrics {
            let metrics = call!(self, "metrics", call_metrics)?;
            let metrics = metrics.into_iter().map(|metric| (metric.name, metric.value));
            let metrics = metrics.take(cnova_ral::COUNTERS_MAX).collect();
            self.job.shared.desk.answer_metrics(number, metrics);
        }
        Ok(())
    }
}
