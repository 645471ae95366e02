# The policy of a hub that was given no other. It is an example as well: copy it, change it, load it instead.
#
# input.manifest  the manifest in its canonical form: every default filled in, memory in bytes, CPU in cores,
#                 durations in seconds. Its schema has been checked, so that a missing field means "not given".
# input.user      who applies it.
# input.now       seconds since 1970.
#
# What can reach beyond a workload's own four walls is denied unless the site grants it. A site grants with one more
# file in the hub's policy folder (policy_dir), which says what, and under which conditions, in package cnova.grants:
#
#   package cnova.grants
#   allow contains "ebpf:xdp" if input.manifest.metadata.name == "traffic-watch"
#   allow contains "logger/network:host" if input.user == "alice"       # only the workload "logger"
#
# The words: ebpf:KIND, ebpf-helper:NAME, network:host, capability:NAME, seccomp:SYSCALL.
# Without another text in package cnova.admission in that folder, this one stays in force beside it.
package cnova.admission

max_workloads := 64

max_memory := 536870912 # 512 MiB: the whole memory of the smallest board we run on

max_cpu := 8

max_log := 16777216 # 16 MiB: flash wears

deny contains message if {
	some workload in input.manifest.workloads
	not workload.resources.memory
	message := sprintf("workload %s: resources.memory must be given", [workload.name])
}

deny contains message if {
	some workload in input.manifest.workloads
	workload.resources.memory > max_memory
	message := sprintf("workload %s: asks for %d bytes of memory; at most 512 MiB are allowed", [workload.name, workload.resources.memory])
}

deny contains message if {
	some workload in input.manifest.workloads
	workload.resources.cpu > max_cpu
	message := sprintf("workload %s: asks for %v cores; at most %d are allowed", [workload.name, workload.resources.cpu, max_cpu])
}

deny contains message if {
	some workload in input.manifest.workloads
	workload.limits.log > max_log
	message := sprintf("workload %s: keeps %d bytes of log; at most 16 MiB are allowed", [workload.name, workload.limits.log])
}

deny contains message if {
	some workload in input.manifest.workloads
	some peer in workload.grants.network
	contains(peer, "*")
	message := sprintf("workload %s: the network grant %q is open to anyone; name the host and the port", [workload.name, peer])
}

deny contains message if {
	count(input.manifest.workloads) > max_workloads
	message := sprintf("%d workloads; at most %d are allowed", [count(input.manifest.workloads), max_workloads])
}

# Granted by the site, to the whole application or to one workload of it.
granted(workload, what) if {
	some grant in data.cnova.grants.allow
	grant == what
}

granted(workload, what) if {
	some grant in data.cnova.grants.allow
	grant == sprintf("%s/%s", [workload.name, what])
}

# In a user namespace these reach nothing that is not the container's own.
harmless_capabilities := {
	"CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE",
	"SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}

# These reach into the kernel, into other processes, into mounts and namespaces, or set what belongs to the node.
dangerous_calls := {
	"_sysctl", "acct", "add_key", "adjtimex", "bpf", "chroot", "clock_adjtime", "clock_adjtime64", "clock_settime",
	"clock_settime64", "clone3", "create_module", "delete_module", "finit_module", "fsconfig", "fsmount", "fsopen",
	"fspick", "get_kernel_syms", "init_module", "io_uring_enter", "io_uring_register", "io_uring_setup", "ioperm",
	"iopl", "kcmp", "kexec_file_load", "kexec_load", "keyctl", "lookup_dcookie", "mknod", "mknodat", "modify_ldt",
	"mount", "mount_setattr", "move_mount", "move_pages", "name_to_handle_at", "nfsservctl", "open_by_handle_at",
	"open_tree", "open_tree_attr", "perf_event_open", "personality", "pidfd_getfd", "pivot_root", "process_madvise",
	"process_vm_readv", "process_vm_writev", "ptrace", "query_module", "quotactl", "quotactl_fd", "reboot",
	"request_key", "seccomp", "setdomainname", "sethostname", "setns", "settimeofday", "stime", "swapoff", "swapon",
	"syslog", "sysfs", "umount", "umount2", "unshare", "uselib", "userfaultfd", "ustat", "vhangup", "vm86", "vm86old",
}

# What each workload asks for beyond its own four walls: the word of the grant, and what it is, for a person.
asks contains [workload, what, text] if {
	some workload in input.manifest.workloads
	workload.runtime == "ebpf"
	some program in workload.settings.programs
	program.kind != "socket-filter"
	what := sprintf("ebpf:%s", [program.kind])
	text := sprintf("the program %s is of kind %s, which can change or watch more than copies of packets", [program.name, program.kind])
}

asks contains [workload, what, text] if {
	some workload in input.manifest.workloads
	workload.runtime == "ebpf"
	some helper in workload.settings.helpers
	what := sprintf("ebpf-helper:%s", [helper])
	text := sprintf("the kernel helper %s is beyond those that every program may call", [helper])
}

asks contains [workload, what, text] if {
	some workload in input.manifest.workloads
	workload.runtime == "container"
	workload.settings.network == "host"
	what := "network:host"
	text := "the node's own network reaches everything that the node reaches"
}

asks contains [workload, what, text] if {
	some workload in input.manifest.workloads
	workload.runtime == "container"
	some capability in workload.settings.capabilities
	not harmless_capabilities[capability]
	what := sprintf("capability:%s", [capability])
	text := sprintf("the capability %s is not among the harmless ones", [capability])
}

asks contains [workload, what, text] if {
	some workload in input.manifest.workloads
	workload.runtime == "container"
	some call in workload.settings.seccomp.allow
	dangerous_calls[call]
	what := sprintf("seccomp:%s", [call])
	text := sprintf("the system call %s reaches beyond the container", [call])
}

deny contains message if {
	some [workload, what, text] in asks
	not granted(workload, what)
	message := sprintf(
		"workload %s: %s; grant it in the hub's policy folder: package cnova.grants, allow contains %q if input.manifest.metadata.name == %q (docs/MANIFEST.md)",
		[workload.name, text, what, input.manifest.metadata.name],
	)
}
