//! What the kernel holds, to see that nothing is left.

use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use aya_obj::generated::bpf_prog_info;
use cnova_runtime_ebpf::sys;

const NEXT_PROGRAM: i64 = 11;
const PROGRAM_BY_ID: i64 = 13;
const NEXT_MAP: i64 = 12;

fn bpf(command: i64, attributes: &mut [u32; 16]) -> i64 {
    // SAFETY: the attributes live through the call; these commands have no pointers.
    unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of::<[u32; 16]>()) }
}

fn ids(command: i64) -> Vec<u32> {
    let mut found = Vec::new();
    let mut attributes = [0; 16];
    while bpf(command, &mut attributes) == 0 {
        found.push(attributes[1]);
        attributes = [0; 16];
        attributes[0] = *found.last().unwrap();
    }
    found
}

/// The programs of a name, which the kernel cuts at 15 characters.
pub(crate) fn programs(name: &str) -> Vec<bpf_prog_info> {
    let mut found = Vec::new();
    for id in ids(NEXT_PROGRAM) {
        let mut attributes = [0; 16];
        attributes[0] = id;
        let fd = bpf(PROGRAM_BY_ID, &mut attributes);
        if fd < 0 {
            continue;
        }
        // SAFETY: the kernel just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) };
        let info = sys::program_info(fd.as_fd()).unwrap();
        let text: Vec<u8> = info.name.iter().take_while(|c| **c != 0).map(|c| *c as u8).collect();
        if text == name.as_bytes() {
            found.push(info);
        }
    }
    found
}

/// The ids of the maps that a program of this name uses.
pub(crate) fn maps_of(name: &str) -> Vec<u32> {
    let output = std::process::Command::new("bpftool")
        .args(["-j", "prog", "show", "name", name])
        .output();
    let Ok(output) = output else {
        eprintln!("not looked at: the ids of maps, without bpftool");
        return Vec::new();
    };
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let programs = if shown.is_array() {
        shown.as_array().unwrap().clone()
    } else {
        vec![shown]
    };
    let ids = programs.iter().filter_map(|p| p["map_ids"].as_array()).flatten();
    ids.filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

/// Whether maps of these ids are there.
pub(crate) fn maps_left(ids_then: &[u32]) -> Vec<u32> {
    let now = ids(NEXT_MAP);
    ids_then.iter().copied().filter(|id| now.contains(id)).collect()
}
