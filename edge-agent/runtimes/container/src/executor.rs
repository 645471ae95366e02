//! The last steps before the container's program: libcontainer would apply the system call filter to the first process
//! only, so it is applied here, to every process that enters the container.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use libcontainer::oci_spec::runtime::{LinuxSeccomp, Spec};
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use rustix::fs::{Access, AtFlags};

use crate::sys;

/// Applies the filter and becomes the program.
#[derive(Clone)]
pub(crate) struct FilteredExecutor {
    pub(crate) filter: LinuxSeccomp,
    /// The group that the first process enters by itself, which is free of waiting; see [`crate::cgroup::WorkloadGroup::doors`].
    pub(crate) doors: Arc<Vec<OwnedFd>>,
}

impl Executor for FilteredExecutor {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let arguments = arguments(spec).ok_or(ExecutorError::InvalidArg)?;
        let program = find(spec, &arguments[0]).ok_or(ExecutorError::InvalidArg)?;
        let program = c_string(&program.to_string_lossy())?;
        let arguments: Vec<CString> = arguments.iter().map(|text| c_string(text)).collect::<Result<_, _>>()?;
        let environment = spec.process().as_ref().and_then(|process| process.env().clone());
        let environment: Vec<CString> = environment
            .unwrap_or_default()
            .iter()
            .map(|text| c_string(text))
            .collect::<Result<_, _>>()?;
        let argument_list = null_ended(&arguments);
        let environment_list = null_ended(&environment);
        enter_group(&self.doors)
            .map_err(|error| ExecutorError::Other(format!("cannot enter the container's group: {error}")))?;
        sys::reset_signals();
        libcontainer::seccomp::initialize_seccomp(&self.filter)
            .map_err(|error| ExecutorError::Other(format!("cannot apply the system call filter: {error}")))?;
        // SAFETY: both lists end with a null pointer and point to strings that outlive the call.
        unsafe { libc::execve(program.as_ptr(), argument_list.as_ptr(), environment_list.as_ptr()) };
        let error = std::io::Error::last_os_error();
        // Nobody waits for this process's answer any more: its log is where the reason is looked for.
        eprintln!("cannot run {}: {error}", program.to_string_lossy());
        Err(ExecutorError::Other(format!(
            "cannot run {}: {error}",
            program.to_string_lossy()
        )))
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let refused = |text: String| Err(ExecutorValidationError::ArgValidationError(text));
        let Some(arguments) = arguments(spec) else {
            return refused("neither image nor manifest name a program".into());
        };
        match find(spec, &arguments[0]) {
            Some(_) => Ok(()),
            None => refused(format!(
                "`{}` is no program that its user may run in the image",
                arguments[0]
            )),
        }
    }
}

/// Puts the caller, a process of one thread, into the container's group.
pub(crate) fn enter_group(doors: &[OwnedFd]) -> io::Result<()> {
    for door in doors {
        // Zero is the one that writes.
        rustix::io::write(door, b"0")?;
    }
    Ok(())
}

fn arguments(spec: &Spec) -> Option<&Vec<String>> {
    let arguments = spec.process().as_ref()?.args().as_ref()?;
    (!arguments.is_empty()).then_some(arguments)
}

/// As a shell finds it, by the container's own PATH.
fn find(spec: &Spec, name: &str) -> Option<PathBuf> {
    let runnable = |path: &PathBuf| {
        let allowed = rustix::fs::accessat(rustix::fs::CWD, path, Access::EXEC_OK, AtFlags::EACCESS).is_ok();
        path.is_file() && allowed
    };
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(runnable);
    }
    let environment = spec.process().as_ref()?.env().as_ref()?;
    let paths = environment.iter().find_map(|entry| entry.strip_prefix("PATH="))?;
    paths.split(':').map(|dir| PathBuf::from(dir).join(name)).find(runnable)
}

fn c_string(text: &str) -> Result<CString, ExecutorError> {
    CString::new(text).map_err(|_| ExecutorError::Other(format!("`{}` holds a null byte", text.escape_debug())))
}

fn null_ended(texts: &[CString]) -> Vec<*const libc::c_char> {
    texts
        .iter()
        .map(|text| text.as_ptr())
        .chain([std::ptr::null()])
        .collect()
}
