//! wasi-nn: real models, and guests that lie.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cnova_ral::{Device, Exit, ExitReason, Mount, file, read_exit, write_spec};

use crate::onnx::{field, initializer, model, node, number, small, value};
use crate::support::{RUNTIME, Workload};

/// Numbers of wasi-nn's errors.
const INVALID_ARGUMENT: i32 = 1;
const INVALID_ENCODING: i32 = 2;
const RUNTIME_ERROR: i32 = 5;
const UNSUPPORTED: i32 = 6;
const TOO_LARGE: i32 = 7;
const NOT_FOUND: i32 = 8;

const WHOLE: &str = "(call $open (i32.const 0)) (call $context) (call $give) (call $run) (call $print)";

fn escape(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\{byte:02x}")).collect()
}

fn guest(model: &[u8], body: &str) -> Workload {
    let text = include_str!("wat/nn.wat")
        .replace("MODEL", &escape(model))
        .replace("LENGTH", &escape(&(model.len() as u32).to_le_bytes()))
        .replace("BODY", body);
    let mut workload = Workload::new(&text);
    workload.spec.grants.nn = true;
    workload
}

/// The worker lies beside the runtime; cargo builds it with the workspace, but not with the runtime alone.
fn worker_is_there() -> bool {
    let there = Path::new(RUNTIME).with_file_name("cnova-wasm-nn").is_file();
    if !there {
        eprintln!("skipped: there is no cnova-wasm-nn beside the runtime: cargo build -p cnova-wasm-nn");
    }
    there
}

fn finishes(model: &[u8], body: &str) -> (i32, Vec<String>) {
    let mut workload = guest(model, body);
    let exit = workload.run();
    assert_eq!(
        exit.reason,
        ExitReason::Finished,
        "{body}: {exit:?} {:?}",
        workload.log()
    );
    (exit.code.unwrap(), workload.log())
}

#[test]
fn a_model_from_the_guest_is_computed() {
    if !worker_is_there() {
        return;
    }
    assert_eq!(finishes(&small(), WHOLE), (0, vec!["y = 7 0".to_owned()]));
}

#[test]
fn a_model_of_the_settings_is_found_by_its_name() {
    if !worker_is_there() {
        return;
    }
    let by_name = WHOLE.replace(
        "(call $open (i32.const 0))",
        "(call $check (call $by_name (i32.const 320) (i32.const 5) (i32.const 16)))",
    );
    // The file is in a folder of the workload, or is mounted as such.
    for mounted in ["models", "models/small.onnx"] {
        let mut workload = guest(b"", &by_name);
        let models = workload.home.path().join("models");
        fs::create_dir(&models).unwrap();
        fs::write(models.join("small.onnx"), small()).unwrap();
        workload.spec.mounts.push(Mount {
            guest: Path::new("/").join(mounted),
            host: workload.home.path().join(mounted),
            writable: false,
        });
        workload.spec.settings = serde_json::json!({"models": [{"name": "small", "file": "/models/small.onnx"}]});
        let exit = workload.run();
        assert_eq!(
            (exit.code, workload.log()),
            (Some(0), vec!["y = 7 0".to_owned()]),
            "{exit:?}"
        );
    }
}

#[test]
fn a_model_that_cannot_be_loaded_is_refused_before_the_start() {
    if !worker_is_there() {
        return;
    }
    for (file, expected) in [
        ("/elsewhere/a.onnx", "lies in none"),
        ("/models/garbage.onnx", "not an ONNX model"),
    ] {
        let mut workload = guest(b"", WHOLE);
        let models = workload.home.path().join("models");
        fs::create_dir(&models).unwrap();
        fs::write(models.join("garbage.onnx"), b"garbage").unwrap();
        workload.spec.mounts.push(Mount {
            guest: "/models".into(),
            host: models,
            writable: false,
        });
        workload.spec.settings = serde_json::json!({"models": [{"name": "small", "file": file}]});
        let exit = workload.run();
        assert_eq!(exit.reason, ExitReason::Refused);
        let detail = exit.detail.unwrap();
        assert!(detail.contains(expected) && detail.contains("small"), "{detail}");
    }
}

#[test]
fn without_the_grant_there_is_no_wasi_nn() {
    let mut workload = guest(&small(), WHOLE);
    workload.spec.grants.nn = false;
    let exit = workload.run();
    assert_eq!(exit.reason, ExitReason::Refused);
    assert!(exit.detail.unwrap().contains("wasi_ephemeral_nn"));
}

/// Each of these gets an error number, and the process that runs the guest lives on to its end.
#[test]
fn guests_that_lie_get_errors() {
    if !worker_is_there() {
        return;
    }
    let ready = "(call $open (i32.const 0)) (call $context)";
    let endless = |call: &str| format!("(loop $on {call} (br $on))");
    let open = "(call $open (i32.const 0))";
    let cases = [
        // Pointers and lengths outside the memory, in every call.
        ("(call $check (call $load (i32.const 0x7fffffff) (i32.const 1) (i32.const 1) (i32.const 0) (i32.const 16)))".to_owned(), INVALID_ARGUMENT),
        ("(call $check (call $load (i32.const 64) (i32.const -1) (i32.const 1) (i32.const 0) (i32.const 16)))".to_owned(), INVALID_ARGUMENT),
        ("(i32.store (i32.const 68) (i32.const -1)) (call $open (i32.const 0))".to_owned(), INVALID_ARGUMENT),
        ("(call $check (call $load (i32.const 64) (i32.const 1) (i32.const 1) (i32.const 0) (i32.const -2)))".to_owned(), INVALID_ARGUMENT),
        ("(call $check (call $by_name (i32.const -1) (i32.const 5) (i32.const 16)))".to_owned(), INVALID_ARGUMENT),
        (format!("{ready} (call $check (call $set (i32.load (i32.const 20)) (i32.const 0) (i32.const -8)))"), INVALID_ARGUMENT),
        (format!("{ready} (i32.store (i32.const 204) (i32.const -1)) (call $give)"), INVALID_ARGUMENT),
        (format!("{ready} (i32.store (i32.const 208) (i32.const -1)) (call $give)"), INVALID_ARGUMENT),
        (format!("{ready} (i32.store (i32.const 196) (i32.const -1)) (call $give)"), TOO_LARGE),
        // Sizes, shapes and types that do not fit each other or the model.
        (format!("{ready} (i32.store (i32.const 208) (i32.const 11)) (call $give)"), INVALID_ARGUMENT),
        (format!("{ready} (i32.store (i32.const 132) (i32.const -1)) (call $give)"), TOO_LARGE),
        (format!("{ready} (i32.store (i32.const 128) (i32.const 3)) (i32.store (i32.const 132) (i32.const 1)) (call $give)"), INVALID_ARGUMENT),
        (format!("{ready} (i32.store8 (i32.const 200) (i32.const 4)) (call $give)"), INVALID_ARGUMENT),
        (format!("{ready} (i32.store8 (i32.const 200) (i32.const 77)) (call $give)"), INVALID_ARGUMENT),
        (format!("{ready} (call $check (call $set (i32.load (i32.const 20)) (i32.const 9) (i32.const 192)))"), INVALID_ARGUMENT),
        // Too early, too late, too small, and handles that are none.
        (format!("{ready} (call $run)"), INVALID_ARGUMENT),
        (format!("{ready} (call $print)"), INVALID_ARGUMENT),
        (format!("{ready} (call $give) (call $run) (call $check (call $get (i32.load (i32.const 20)) (i32.const 0) (i32.const 256) (i32.const 7) (i32.const 24)))"), TOO_LARGE),
        (format!("{ready} (call $give) (call $run) (call $check (call $get (i32.load (i32.const 20)) (i32.const 0) (i32.const -4) (i32.const 64) (i32.const 24)))"), INVALID_ARGUMENT),
        ("(call $check (call $compute (i32.const 77)))".to_owned(), INVALID_ARGUMENT),
        ("(call $check (call $init (i32.const 77) (i32.const 20)))".to_owned(), INVALID_ARGUMENT),
        ("(call $check (call $by_name (i32.const 320) (i32.const 5) (i32.const 16)))".to_owned(), NOT_FOUND),
        // What is not offered.
        ("(call $open (i32.const 2))".to_owned(), UNSUPPORTED),
        ("(call $open (i32.const 1))".to_owned(), UNSUPPORTED),
        ("(call $open (i32.const 9))".to_owned(), INVALID_ARGUMENT),
        ("(call $check (call $load (i32.const 64) (i32.const 1) (i32.const 2) (i32.const 0) (i32.const 16)))".to_owned(), INVALID_ENCODING),
        // Piling up.
        (endless(open), TOO_LARGE),
        (format!("{open} {}", endless("(call $context)")), TOO_LARGE),
    ];
    for (body, expected) in cases {
        let (code, log) = finishes(&small(), &body);
        assert_eq!(code, expected, "{body}\n{log:?}");
        assert!(log.iter().any(|line| line.starts_with("wasi-nn: ")), "{body}\n{log:?}");
    }
}

#[test]
fn garbage_instead_of_a_model_is_an_error() {
    if !worker_is_there() {
        return;
    }
    let whole = small();
    assert_eq!(finishes(b"garbage", WHOLE).0, RUNTIME_ERROR);
    assert_eq!(finishes(b"", WHOLE).0, RUNTIME_ERROR);
    for length in [whole.len() / 4, whole.len() / 2, whole.len() - 1] {
        let (code, log) = finishes(&whole[..length], WHOLE);
        assert!(code != 0, "{length}: {log:?}");
    }
    for at in (0..whole.len()).step_by(11) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x41;
        // Whether it is an error depends on the bit; that the process ends by itself does not.
        finishes(&bytes, WHOLE);
    }
}

#[test]
fn a_model_that_takes_more_memory_than_there_is_harms_only_itself() {
    if !worker_is_there() {
        return;
    }
    // One output of 2^38 elements, made of nothing.
    let shape = initializer("s", 7, &[1], &(1_u64 << 38).to_le_bytes());
    let hungry = model(
        &[
            node("ConstantOfShape", &["s"], "big"),
            node("ReduceSum", &["big"], "sum"),
            node("Add", &["x", "sum"], "y"),
        ],
        &[shape],
        &[value("x", &[1, 3])],
        &[value("y", &[1, 3])],
    );
    assert_eq!(finishes(&hungry, WHOLE).0, RUNTIME_ERROR);
}

#[test]
fn a_model_that_refers_to_files_of_the_node_is_refused() {
    if !worker_is_there() {
        return;
    }
    let entry = |key: &str, value: &str| field(13, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat());
    let outside = [
        initializer("w", 1, &[3, 2], b""),
        entry("location", "etc/passwd"),
        number(14, 1),
    ]
    .concat();
    let spy = model(
        &[node("MatMul", &["x", "w"], "y")],
        &[outside],
        &[value("x", &[1, 3])],
        &[value("y", &[1, 2])],
    );
    assert_eq!(finishes(&spy, WHOLE).0, UNSUPPORTED);
}

/// Runs a workload that leases an accelerator, with the vendor's library in this place.
fn with_library(workload: &Workload, variable: &str, library: &Path) -> Exit {
    write_spec(&workload.dir(), &workload.spec).unwrap();
    let status = Command::new(RUNTIME)
        .args(["run", "--state"])
        .arg(workload.dir())
        .env_clear()
        .env(variable, library)
        .stdin(Stdio::null())
        .stderr(fs::File::create(workload.dir().join(file::RUNTIME_ERR)).unwrap())
        .status()
        .unwrap();
    read_exit(&workload.dir())
        .unwrap()
        .unwrap_or_else(|| panic!("{status}, no exit file"))
}

fn lease(workload: &mut Workload, kind: &str) {
    workload.spec.devices.push(Device {
        name: "accelerator".into(),
        kind: kind.into(),
        nodes: Vec::new(),
    });
}

#[test]
fn a_claimed_accelerator_without_its_library_is_refused_in_words() {
    if !worker_is_there() {
        return;
    }
    for (kind, variable) in [("hailo-8l", "CNOVA_HAILORT_LIB"), ("intel-npu", "CNOVA_OPENVINO_LIB")] {
        let mut workload = guest(&small(), WHOLE);
        lease(&mut workload, kind);
        let exit = with_library(&workload, variable, Path::new("/nonexistent/lib.so"));
        assert_eq!(exit.reason, ExitReason::Refused);
        let detail = exit.detail.unwrap();
        assert!(
            detail.contains("/nonexistent/lib.so") && detail.contains("claims this accelerator"),
            "{detail}"
        );
    }
}

/// A library with HailoRT's C interface that doubles its input. No Hailo was at hand: this shows that calls, sizes and
/// structures fit the header, not that a device computes.
#[test]
fn a_hailo_is_reached_by_its_c_interface() {
    if !worker_is_there() {
        return;
    }
    let cc = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let by_name = WHOLE.replace(
        "(call $open (i32.const 0))",
        "(call $check (call $by_name (i32.const 320) (i32.const 5) (i32.const 16)))",
    );
    let mut workload = guest(b"", &by_name);
    let home: PathBuf = workload.home.path().to_owned();
    let library = home.join("libhailort.so");
    fs::write(home.join("hailort.c"), include_str!("fake_hailort.c")).unwrap();
    let built = Command::new(&cc)
        .args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"])
        .args([&library, &home.join("hailort.c")])
        .status();
    if !built.is_ok_and(|status| status.success()) {
        panic!("no C compiler `{cc}` to build the library with");
    }
    fs::set_permissions(&library, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(home.join("small.hef"), b"\x01HEF fake").unwrap();
    workload.spec.mounts.push(Mount {
        guest: "/small.hef".into(),
        host: home.join("small.hef"),
        writable: false,
    });
    workload.spec.settings = serde_json::json!({"models": [{"name": "small", "file": "/small.hef"}]});
    lease(&mut workload, "hailo-8");
    let exit = with_library(&workload, "CNOVA_HAILORT_LIB", &library);
    assert_eq!(
        (exit.code, workload.log()),
        (Some(0), vec!["y = 2 4".to_owned()]),
        "{exit:?}"
    );
}
