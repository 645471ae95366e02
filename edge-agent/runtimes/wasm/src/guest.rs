//! The workload itself: from mapped code to its end.

use std::sync::Arc;

use cnova_ral::{Exit, ExitReason, Spec};
use wasmtime::component::{self, ResourceTable};
use wasmtime::{Engine, Linker, Store, UpdateDeadline};
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::p2::bindings::Command;
use wasmtime_wasi::{I32Exit, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

use crate::artifact::Artifact;
use crate::control::{Interrupt, Shared};
use crate::limits::{Limiter, MemoryLimit, TableLimit, Throttle};

/// How often the workload is looked at, in epochs; the supervisor decides how long one is.
const EPOCHS: u64 = 1;

/// How it went on the workload's own terms.
pub(crate) enum Outcome {
    /// It returned or called exit.
    Code(i32),
    /// It never came to run.
    NotStarted(wasmtime::Error),
    /// It ran and failed.
    Failed(wasmtime::Error),
}

/// The state of a module of WASI preview 1.
struct ModuleHost {
    wasi: WasiP1Ctx,
    limiter: Limiter,
}

/// The state of a component of WASI 0.2.
struct ComponentHost {
    wasi: WasiCtx,
    table: ResourceTable,
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
    engine: &Engine,
    artifact: Artifact,
    world: WasiCtxBuilder,
    spec: &Spec,
    shared: &Arc<Shared>,
    started: impl FnOnce() -> wasmtime::Result<()>,
) -> Outcome {
    let guest = async {
        match artifact {
            Artifact::Module(module) => run_module(engine, &module, world, spec, shared, started).await,
            Artifact::Component(component) => run_component(engine, &component, world, spec, shared, started).await,
        }
    };
    // A workload that computes leaves by its epoch callback; one that sleeps is left here.
    tokio::select! {
        biased;
        outcome = guest => outcome,
        () = shared.wake.notified() => Outcome::Failed(Interrupted.into()),
    }
}

async fn run_module(
    engine: &Engine,
    module: &wasmtime::Module,
    mut world: WasiCtxBuilder,
    spec: &Spec,
    shared: &Arc<Shared>,
    started: impl FnOnce() -> wasmtime::Result<()>,
) -> Outcome {
    let host = ModuleHost {
        wasi: world.build_p1(),
        limiter: Limiter::new(shared.clone(), &spec.limits),
    };
    let mut store = Store::new(engine, host);
    store.limiter(|host| &mut host.limiter);
    watch(&mut store, spec, shared);
    let ready = async {
        let mut linker = Linker::new(engine);
        wasmtime_wasi::p1::add_to_linker_async(&mut linker, |host: &mut ModuleHost| &mut host.wasi)?;
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
        Err(error) => failed(error),
    }
}

async fn run_component(
    engine: &Engine,
    component: &component::Component,
    mut world: WasiCtxBuilder,
    spec: &Spec,
    shared: &Arc<Shared>,
    started: impl FnOnce() -> wasmtime::Result<()>,
) -> Outcome {
    let host = ComponentHost {
        wasi: world.build(),
        table: ResourceTable::new(),
        limiter: Limiter::new(shared.clone(), &spec.limits),
    };
    let mut store = Store::new(engine, host);
    store.limiter(|host| &mut host.limiter);
    watch(&mut store, spec, shared);
    let ready = async {
        let mut linker = component::Linker::new(engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        let command = Command::instantiate_async(&mut store, component, &linker).await?;
        started()?;
        wasmtime::Result::Ok(command)
    };
    let command = match ready.await {
        Ok(command) => command,
        Err(error) => return Outcome::NotStarted(error),
    };
    match command.wasi_cli_run().call_run(&mut store).await {
        Ok(Ok(())) => Outcome::Code(0),
        Ok(Err(())) => Outcome::Code(1),
        Err(error) => failed(error),
    }
}

fn failed(error: wasmtime::Error) -> Outcome {
    match error.downcast_ref::<I32Exit>() {
        Some(I32Exit(code)) => Outcome::Code(*code),
        None => Outcome::Failed(error),
    }
}

/// Looks at the workload each time the epoch has moved: is it to end, is it to pause?
fn watch<T>(store: &mut Store<T>, spec: &Spec, shared: &Arc<Shared>) {
    let shared = shared.clone();
    let mut throttle = Throttle::new(&spec.limits);
    store.set_epoch_deadline(EPOCHS);
    store.epoch_deadline_callback(move |_| {
        if shared.interrupted().is_some() {
            return Err(Interrupted.into());
        }
        let pause = throttle.as_mut().map(Throttle::pause).unwrap_or_default();
        if pause.is_zero() {
            return Ok(UpdateDeadline::Continue(EPOCHS));
        }
        Ok(UpdateDeadline::YieldCustom(EPOCHS, Box::pin(tokio::time::sleep(pause))))
    });
}

impl Outcome {
    /// What the exit file says about it.
    pub(crate) fn into_exit(self, shared: &Shared) -> Exit {
        let (error, ran) = match self {
            Outcome::Code(code) => return Exit::new(ExitReason::Finished).with_code(code),
            Outcome::NotStarted(error) => (error, false),
            Outcome::Failed(error) => (error, true),
        };
        if error.is::<Interrupted>() {
            return match shared.interrupted() {
                Some(Interrupt::Budget) => Exit::new(ExitReason::Budget).with_detail("limits.wall_seconds is over"),
                _ => Exit::new(ExitReason::Stopped),
            };
        }
        let reason = if error.is::<MemoryLimit>() {
            ExitReason::Memory
        } else if ran || error.is::<wasmtime::Trap>() || error.is::<TableLimit>() {
            ExitReason::Trap
        } else {
            ExitReason::Refused
        };
        // The long form holds the message, its causes and the backtrace.
        Exit::new(reason).with_detail(format!("{error:?}"))
    }
}
