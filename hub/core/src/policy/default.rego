# The policy of a hub that was given no other. It is an example as well: copy it, change it, load it instead.
#
# input.manifest  the manifest in its canonical form: every default filled in, memory in bytes, CPU in cores,
#                 durations in seconds. Its schema has been checked, so that a missing field means "not given".
# input.user      who applies it.
# input.now       seconds since 1970.
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
