//! The workload itself: from mapped code to its end.

use std::path::Path;
use std::sync::Arc;

use cnova_ral::settings::Wasm;
use cnova_ral::{Exit, ExitReason, Spec};
use wasmtime::component::{self, ResourceTable};
use wasmtime::{Engine, Linker, Store, UpdateDeadline};
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::p2::bindings::Command;
use wasmtime_wasi::{I32Exit, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

use crate::artifact::Artifact;
use crate::control::{Interrupt, Shared};
use crate::limits::{Limiter, MemoryLimit, PARTS_MAX, TableLimit, Throttle};
use crate::nn::{self, Nn};
use crate::{coredump, lifecycle};

/// How often the workload is looked at, in epochs; the supervisor decides how long one is.
const EPOCHS: u64 = 1;
/// How wasmtime begins to say that a component is made of too many parts.
const TOO_MANY: &str = "resource limit exceeded";

/// What is to be run, and by which rules.
pub(crate) struct Job<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) spec: &'a Spec,
    pub(crate) settings: &'a Wasm,
    pub(crate) shared: &'a Arc<Shared>,
    /// The state folder.
    pub(crate) dir: &'a Path,
}

/// How it went on the workload's own terms.
pub(crate) enum Outcome {
    /// It returned or called exit.
    Code(i32),
    /// It said in words why it ended.
    Said(String),
    /// It was asked to stop and did.
    Stopped,
    /// It never came to run.
    NotStarted(wasmtime::Error),
    /// It ran and failed; with the core dump's path, or why there is none, if one was asked for.
    Failed(wasmtime::Error, Option<String>),
}

/// The state of a module of WASI preview 1.
pub(crate) struct ModuleHost {
    wasi: WasiP1Ctx,
    pub(crate) nn: Option<Nn>,
    limiter: Limiter,
}

/// The state of a component of WASI 0.2.
pub(crate) struct ComponentHost {
    wasi: WasiCtx,
    pub(crate) nn: Option<Nn>,
    pub(crate) table: ResourceTable,
    limiter: Limiter,
}

impl WasiView for ComponentHost {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

/// Carried out of the workload when it was interrupted while computing; [`Shared`] knows why.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
struct Interrupted;

/// Instantiates the artifact, calls `started` and runs it until it ends or is interrupted.
pub(crate) async fn run(
    job: &Job<'_>,
    artifact: Artifact,
    world: WasiCtxBuilder,
    nn: Option<Nn>,
    started: impl FnOnce() -> wasmtime::Result<()>,
) -> Outcome {
    let guest = async {
        match artifact {
            Artifact::Module(module) => run_module(job, &module, world, nn, started).await,
            Artifact::Component(component) => run_component(job, &component, world, nn, started).await,
        }
    };
    // A workload that computes leaves by its epoch callback; one that sleeps is left here.
    let outcome = tokio::select! {
        biased;
        outcome = guest => outcome,
        () = job.shared.wake.notified() => Outcome::Failed(Interrupted.into(), None),
    };
    job.shared.desk.close();
    outcome
}

async fn run_module(
    job: &Job<'_>,
    module: &wasmtime::Module,
    mut world: WasiCtxBuilder,
    nn: Option<Nn>,
    started: impl FnOnce() -> wasmtime::Result<()>,
) -> Outcome {
    let host = ModuleHost {
        wasi: world.build_p1(),
        nn,
        limiter: Limiter::new(job.shared.clone(), &job.spec.limits, job.settings.instances),
    };
    let mut store = Store::new(job.engine, host);
    store.limiter(|host| &mut host.limiter);
    watch(&mut store, job);
    let ready = async {
        let mut linker = Linker::new(job.engine);
        wasmtime_wasi::p1::add_to_linker_async(&mut linker, |host: &mut ModuleHost| &mut host.wasi)?;
        if store.data().nn.is_some() {
            nn::add_to_module_linker(&mut linker)?;
        }
        let instance = linker.instantiate_async(&mut store, module).await?;
        let entry = instance.get_typed_func::<(), ()>(&mut store, "_start")?;
        started()?;
        Ok(entry)
    };
    let entry = match ready.await {
        Ok(entry) => entry,
        Err(error) => return Outcome::NotStarted(error),
    };
    match entry.call_async(&mut store, ()).await {
        Ok(()) => Outcome::Code(0),
        Err(error) => failed(error, &mut store, job),
    }
}

async fn run_component(
    job: &Job<'_>,
    component: &component::Component,
    mut world: WasiCtxBuilder,
    nn: Option<Nn>,
    started: impl FnOnce() -> wasmtime::Result<()>,
) -> Outcome {
    let host = ComponentHost {
        wasi: world.build(),
        nn,
        table: ResourceTable::new(),
        limiter: Limiter::new(job.shared.clone(), &job.spec.limits, job.settings.instances),
    };
    let mut store = Store::new(job.engine, host);
    store.limiter(|host| &mut host.limiter);
    watch(&mut store, job);
    let mut linker = component::Linker::new(job.engine);
    let linked = async {
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        if store.data().nn.is_some() {
            nn::add_to_component_linker(&mut linker)?;
        }
        wasmtime::Result::Ok(())
    };
    if let Err(error) = linked.await {
        return Outcome::NotStarted(error);
    }
    if lifecycle::is_exported_by(component) {
        return lifecycle::run(job, component, &linker, store, started).await;
    }
    let command = match Command::instantiate_async(&mut store, component, &linker).await {
        Ok(command) => command,
        Err(error) => return Outcome::NotStarted(error),
    };
    if let Err(error) = started() {
        return Outcome::NotStarted(error);
    }
    match command.wasi_cli_run().call_run(&mut store).await {
        Ok(Ok(())) => Outcome::Code(0),
        Ok(Err(())) => Outcome::Code(1),
        Err(error) => failed(error, &mut store, job),
    }
}

/// What a call's error means; a trap leaves its core dump if the settings ask for one.
pub(crate) fn failed<T: 'static>(error: wasmtime::Error, store: &mut Store<T>, job: &Job<'_>) -> Outcome {
    if let Some(I32Exit(code)) = error.downcast_ref::<I32Exit>() {
        return Outcome::Code(*code);
    }
    let is_trap = !error.is::<Interrupted>() && !error.is::<MemoryLimit>();
    let note = (job.settings.core_dump && is_trap).then(|| coredump::keep(&error, store, job));
    Outcome::Failed(error, note)
}

/// Looks at the workload each time the epoch has moved: is it to end, is it to pause?
fn watch<T>(store: &mut Store<T>, job: &Job<'_>) {
    let shared = job.shared.clone();
    let mut throttle = Throttle::new(&job.spec.limits, shared.cpu_time());
    store.set_epoch_deadline(EPOCHS);
    store.epoch_deadline_callback(move |_| {
        if shared.interrupted().is_some() {
            return Err(Interrupted.into());
        }
        let pause = throttle.as_mut().map(|throttle| throttle.pause(shared.cpu_time()));
        match pause {
            Some(pause) if !pause.is_zero() => {
                Ok(UpdateDeadline::YieldCustom(EPOCHS, Box::pin(tokio::time::sleep(pause))))
            }
            _ => Ok(UpdateDeadline::Continue(EPOCHS)),
        }
    });
}

impl Outcome {
    /// What the exit file says about it.
    pub(crate) fn into_exit(self, job: &Job<'_>) -> Exit {
        let (error, ran, note) = match self {
            Outcome::Code(code) => return Exit::new(ExitReason::Finished).with_code(code),
            Outcome::Said(text) => return Exit::new(ExitReason::Finished).with_code(1).with_detail(text),
            Outcome::Stopped => return Exit::new(ExitReason::Stopped),
            Outcome::NotStarted(error) => (error, false, None),
            Outcome::Failed(error, note) => (error, true, note),
        };
        if error.is::<Interrupted>() {
            return interrupted_exit(job);
        }
        let reason = if error.is::<MemoryLimit>() {
            ExitReason::Memory
        } else if ran || error.is::<wasmtime::Trap>() || error.is::<TableLimit>() {
            ExitReason::Trap
        } else {
            ExitReason::Refused
        };
        // The long form holds the message, its causes and the backtrace. A note comes first: the long form is cut.
        let mut detail = format!("{error:?}");
        if let Some(note) = note {
            detail.insert_str(0, &format!("{note}\n"));
        }
        if detail.starts_with(TOO_MANY) {
            let allowed = job.settings.instances.unwrap_or(PARTS_MAX);
            detail.insert_str(
                0,
                &format!("settings.instances allows {allowed} instances, memories and tables each: "),
            );
        }
        Exit::new(reason).with_detail(detail)
    }
}

fn interrupted_exit(job: &Job<'_>) -> Exit {
    match job.shared.interrupted() {
        Some(Interrupt::Wall) => Exit::new(ExitReason::Budget).with_detail("limits.wall_seconds is over"),
        Some(Interrupt::Cpu) => {
            let used = job.shared.cpu_time().saturating_sub(job.shared.cpu_base());
            let budget = job.settings.cpu_budget_ms.unwrap_or_default();
            let used_ms = used.as_secs_f64() * 1e3;
            Exit::new(ExitReason::Budget).with_detail(format!(
                "settings.cpuBudgetMs is used up: {used_ms:.3} ms of {budget} ms"
            ))
        }
        Some(Interrupt::Stopped) | None if job.shared.desk.stop_asked() => {
            let exit =
                Exit::new(ExitReason::Stopped).with_detail("it was interrupted: it had not ended in the grace time");
            // Force, as if by this signal.
            Exit {
                signal: Some(libc::SIGKILL),
                ..exit
            }
        }
        Some(Interrupt::Stopped) | None => Exit::new(ExitReason::Stopped),
    }
}
