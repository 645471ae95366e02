//! The eBPF runtime: runs the programs of one object in the kernel, as `docs/RAL.md` and `docs/EBPF.md` say.
//!
//! An object file is untrusted input to two fragile things: its parser, which panics on some damaged files, and the
//! kernel. So it goes through three processes, and a mistake in one is no way into the next:
//!
//! 1. [`inspect`] reads it in a helper process that is nobody and can do nothing;
//! 2. [`policy`] judges what that process says, in the runtime, which never parses the object itself;
//! 3. [`load`] loads and attaches it in a second helper process, which keeps only the capabilities that the kind of
//!    program needs, hands over the descriptors and ends.
//!
//! The runtime lives on with the descriptors and no rights: [`watch`] waits, [`control`] answers. When it ends,
//! however it ends, the kernel takes everything away.

pub mod attach;
pub mod attached;
pub mod confine;
pub mod control;
pub mod counters;
pub mod elf;
pub mod format;
pub mod helper;
pub mod helpers;
pub mod inspect;
pub mod load;
pub mod policy;
pub mod records;
pub mod run;
pub mod signals;
pub mod sys;
pub mod watch;
pub mod wire;
pub mod worker;
