//! Does this runtime keep the Runtime Abstraction Layer?
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use cnova_ral::{Spec, Stream};
use cnova_ral_conformance::{Behaviour, Case, Fixture, conformance};

fn compiled(fixture: &Fixture, name: &str, wat: &str) -> Spec {
    let wasm = wat::parse_str(wat).unwrap();
    let target = cnova_wasm_engine::HOST_TARGET.unwrap();
    fixture
        .artifact(name, &cnova_wasm_engine::precompile(target, &wasm).unwrap())
        .unwrap()
}

fn fixture() -> Fixture {
    let fixture = Fixture::new(env!("CARGO_BIN_EXE_cnova-runtime-wasm"), "wasm").unwrap();
    let echo = compiled(&fixture, "echo", include_str!("guests/wat/echo.wat"));
    let sleeper = compiled(&fixture, "sleeper", include_str!("guests/wat/sleeper.wat"));
    let chatty = compiled(&fixture, "chatty", include_str!("guests/wat/chatty.wat"));
    let trap = compiled(&fixture, "trap", include_str!("guests/wat/trap.wat"));
    let hungry = compiled(&fixture, "hungry", include_str!("guests/wat/hungry.wat"));
    let raw = fixture
        .artifact("raw", &wat::parse_str(include_str!("guests/wat/spin.wat")).unwrap())
        .unwrap();
    fixture
        .case(Behaviour::RunsForever, Case::new(sleeper))
        .case(Behaviour::ExitsWith, Case::new(echo.clone()).code(42))
        .case(
            Behaviour::Prints,
            Case::new(echo.clone())
                .spec(|spec| {
                    spec.args = vec!["one".into(), "two".into()];
                    spec.env = [("SIDE".into(), "err".into())].into();
                })
                .line(Stream::Stdout, "one")
                .line(Stream::Stdout, "two")
                .line(Stream::Stderr, "SIDE=err"),
        )
        .case(Behaviour::PrintsALot, Case::new(chatty).code(0))
        .case(Behaviour::PrintsEnvironment,
            // Its own name, and what it always prints.
            Case::new(echo)
                .line(Stream::Stdout, "suite")
                .line(Stream::Stdout, "@metric not a number"),
        )
        .case(Behaviour::Fails, Case::new(trap).detail("divide by zero"))
        .case(Behaviour::ExceedsMemory, Case::new(hungry))
        .case(Behaviour::Refused, Case::new(raw))
        .not_applicable(Behaviour::DiesBySignal, "a fault of WebAssembly is a trap, never a signal")
        .not_applicable(
            Behaviour::IgnoresStop,
            "a module is interrupted wherever it is; a component that is deaf to `stop` is tested in tests/guests/lifecycle.rs",
        )
}

conformance!(fixture);
