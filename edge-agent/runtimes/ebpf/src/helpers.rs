//! Kernel helpers: their names, and which of them a program of each kind may call without being granted more.
//!
//! The type of a program is no sandbox: as root, a socket filter that reads any address of the kernel loads. What is
//! not in these tables must be granted by name in `settings.helpers`, and the hub's policy decides on that.

use cnova_ral::settings::ProgramKind;

/// Names of the kernel's helpers in the order of their numbers, from 0.
const NAMES: &str = "\
    unspec map_lookup_elem map_update_elem map_delete_elem probe_read ktime_get_ns trace_printk get_prandom_u32 \
    get_smp_processor_id skb_store_bytes l3_csum_replace l4_csum_replace tail_call clone_redirect \
    get_current_pid_tgid get_current_uid_gid get_current_comm get_cgroup_classid skb_vlan_push skb_vlan_pop \
    skb_get_tunnel_key skb_set_tunnel_key perf_event_read redirect get_route_realm perf_event_output \
    skb_load_bytes get_stackid csum_diff skb_get_tunnel_opt skb_set_tunnel_opt skb_change_proto skb_change_type \
    skb_under_cgroup get_hash_recalc get_current_task probe_write_user current_task_under_cgroup skb_change_tail \
    skb_pull_data csum_update set_hash_invalid get_numa_node_id skb_change_head xdp_adjust_head probe_read_str \
    get_socket_cookie get_socket_uid set_hash setsockopt skb_adjust_room redirect_map sk_redirect_map \
    sock_map_update xdp_adjust_meta perf_event_read_value perf_prog_read_value getsockopt override_return \
    sock_ops_cb_flags_set msg_redirect_map msg_apply_bytes msg_cork_bytes msg_pull_data bind xdp_adjust_tail \
    skb_get_xfrm_state get_stack skb_load_bytes_relative fib_lookup sock_hash_update msg_redirect_hash \
    sk_redirect_hash lwt_push_encap lwt_seg6_store_bytes lwt_seg6_adjust_srh lwt_seg6_action rc_repeat rc_keydown \
    skb_cgroup_id get_current_cgroup_id get_local_storage sk_select_reuseport skb_ancestor_cgroup_id sk_lookup_tcp \
    sk_lookup_udp sk_release map_push_elem map_pop_elem map_peek_elem msg_push_data msg_pop_data rc_pointer_rel \
    spin_lock spin_unlock sk_fullsock tcp_sock skb_ecn_set_ce get_listener_sock skc_lookup_tcp tcp_check_syncookie \
    sysctl_get_name sysctl_get_current_value sysctl_get_new_value sysctl_set_new_value strtol strtoul \
    sk_storage_get sk_storage_delete send_signal tcp_gen_syncookie skb_output probe_read_user probe_read_kernel \
    probe_read_user_str probe_read_kernel_str tcp_send_ack send_signal_thread jiffies64 read_branch_records \
    get_ns_current_pid_tgid xdp_output get_netns_cookie get_current_ancestor_cgroup_id sk_assign ktime_get_boot_ns \
    seq_printf seq_write sk_cgroup_id sk_ancestor_cgroup_id ringbuf_output ringbuf_reserve ringbuf_submit \
    ringbuf_discard ringbuf_query csum_level skc_to_tcp6_sock skc_to_tcp_sock skc_to_tcp_timewait_sock \
    skc_to_tcp_request_sock skc_to_udp6_sock get_task_stack load_hdr_opt store_hdr_opt reserve_hdr_opt \
    inode_storage_get inode_storage_delete d_path copy_from_user snprintf_btf seq_printf_btf skb_cgroup_classid \
    redirect_neigh per_cpu_ptr this_cpu_ptr redirect_peer task_storage_get task_storage_delete \
    get_current_task_btf bprm_opts_set ktime_get_coarse_ns ima_inode_hash sock_from_file check_mtu \
    for_each_map_elem snprintf sys_bpf btf_find_by_name_kind sys_close timer_init timer_set_callback timer_start \
    timer_cancel get_func_ip get_attach_cookie task_pt_regs get_branch_snapshot trace_vprintk skc_to_unix_sock \
    kallsyms_lookup_name find_vma loop strncmp get_func_arg get_func_ret get_func_arg_cnt get_retval set_retval \
    xdp_get_buff_len xdp_load_bytes xdp_store_bytes copy_from_user_task skb_set_tstamp ima_file_hash kptr_xchg \
    map_lookup_percpu_elem skc_to_mptcp_sock dynptr_from_mem ringbuf_reserve_dynptr ringbuf_submit_dynptr \
    ringbuf_discard_dynptr dynptr_read dynptr_write dynptr_data tcp_raw_gen_syncookie_ipv4 \
    tcp_raw_gen_syncookie_ipv6 tcp_raw_check_syncookie_ipv4 tcp_raw_check_syncookie_ipv6 ktime_get_tai_ns \
    user_ringbuf_drain cgrp_storage_get cgrp_storage_delete";

/// Allowed to every kind: work on the program's own maps and ring buffers, and clocks. None of them reaches memory
/// that the program was not given.
const EVERY: &[(&str, &str)] = &[
    ("map_lookup_elem", "its own maps"),
    ("map_update_elem", "its own maps"),
    ("map_delete_elem", "its own maps"),
    ("map_push_elem", "its own queues"),
    ("map_pop_elem", "its own queues"),
    ("map_peek_elem", "its own queues"),
    ("for_each_map_elem", "its own maps"),
    ("ktime_get_ns", "the clock that counts without sleep"),
    ("ktime_get_boot_ns", "the clock that counts since boot"),
    ("ktime_get_coarse_ns", "a cheaper clock"),
    ("get_smp_processor_id", "which CPU it runs on"),
    ("get_prandom_u32", "random numbers for sampling"),
    ("ringbuf_output", "its own ring buffer, which becomes the log"),
    ("ringbuf_reserve", "its own ring buffer"),
    ("ringbuf_submit", "its own ring buffer"),
    ("ringbuf_discard", "its own ring buffer"),
    ("ringbuf_query", "its own ring buffer"),
    ("loop", "loops that the verifier bounds"),
    ("strncmp", "compares its own bytes"),
    ("snprintf", "formats its own bytes"),
    ("spin_lock", "locks a value of its own map"),
    ("spin_unlock", "unlocks a value of its own map"),
];

/// Reading the packet that the program was given.
const READ_PACKET: &[(&str, &str)] = &[
    ("skb_load_bytes", "reads the packet it was given"),
    ("skb_load_bytes_relative", "reads the packet it was given"),
];

/// A program at tc may change packets; that is what its grant is for. Sending copies elsewhere is another matter.
const CHANGE_PACKET: &[(&str, &str)] = &[
    ("skb_store_bytes", "changes the packet it was given"),
    ("skb_pull_data", "makes the packet readable"),
    ("l3_csum_replace", "checksum after a change"),
    ("l4_csum_replace", "checksum after a change"),
    ("csum_diff", "checksum after a change"),
    ("csum_update", "checksum after a change"),
    ("skb_vlan_push", "adds a VLAN tag"),
    ("skb_vlan_pop", "removes a VLAN tag"),
    ("get_hash_recalc", "the hash of the flow"),
];

/// A program at XDP has the packet in memory; what is missing is making it shorter or longer.
const XDP: &[(&str, &str)] = &[
    ("xdp_adjust_head", "moves the start of the packet it was given"),
    ("xdp_adjust_tail", "moves the end of the packet it was given"),
    ("xdp_load_bytes", "reads the packet it was given"),
    ("xdp_store_bytes", "changes the packet it was given"),
    ("xdp_get_buff_len", "how long the packet is"),
    ("csum_diff", "checksum after a change"),
];

/// An event of the kernel comes with the task that caused it; its name and number are in every log anyway.
const TRACE: &[(&str, &str)] = &[
    ("get_current_pid_tgid", "which process caused the event"),
    ("get_current_comm", "the name of that process"),
    ("get_current_uid_gid", "whose process it is"),
];

/// Packets of a control group come with the group.
const CGROUP: &[(&str, &str)] = &[
    ("skb_cgroup_id", "which control group sent the packet"),
    ("skb_ancestor_cgroup_id", "which control group is above it"),
];

/// The tables for a kind.
#[must_use]
pub fn tables(kind: ProgramKind) -> [&'static [(&'static str, &'static str)]; 3] {
    match kind {
        ProgramKind::SocketFilter => [EVERY, READ_PACKET, &[]],
        ProgramKind::TcIngress => [EVERY, READ_PACKET, CHANGE_PACKET],
        ProgramKind::Xdp => [EVERY, XDP, &[]],
        ProgramKind::Tracepoint => [EVERY, TRACE, &[]],
        ProgramKind::CgroupSkb => [EVERY, READ_PACKET, CGROUP],
    }
}

/// Whether a program of a kind may call a helper without being granted it.
#[must_use]
pub fn is_allowed(kind: ProgramKind, helper: &str) -> bool {
    tables(kind)
        .iter()
        .any(|table| table.iter().any(|(name, _)| *name == helper))
}

/// The name of a helper as manifests use it (`bpf_map_lookup_elem`), or its number if it has none here.
#[must_use]
pub fn name(number: i32) -> String {
    let known = usize::try_from(number)
        .ok()
        .and_then(|at| NAMES.split_ascii_whitespace().nth(at));
    match known {
        Some(name) if number > 0 => format!("bpf_{name}"),
        _ => format!("helper number {number}"),
    }
}

/// Whether there is a helper of this name.
#[must_use]
pub fn exists(name: &str) -> bool {
    let bare = name.strip_prefix("bpf_");
    bare.is_some_and(|bare| bare != "unspec" && NAMES.split_ascii_whitespace().any(|known| known == bare))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [ProgramKind; 5] = [
        ProgramKind::SocketFilter,
        ProgramKind::TcIngress,
        ProgramKind::Xdp,
        ProgramKind::Tracepoint,
        ProgramKind::CgroupSkb,
    ];

    #[test]
    fn numbers_are_those_of_the_kernel() {
        for (number, expected) in [
            (1, "bpf_map_lookup_elem"),
            (26, "bpf_skb_load_bytes"),
            (113, "bpf_probe_read_kernel"),
            (130, "bpf_ringbuf_output"),
            (211, "bpf_cgrp_storage_delete"),
        ] {
            assert_eq!(name(number), expected);
        }
        assert_eq!(name(-1), "helper number -1");
        assert_eq!(name(0), "helper number 0");
        assert_eq!(name(9999), "helper number 9999");
    }

    #[test]
    fn the_tables_name_helpers_that_exist_and_none_that_reads_the_kernel() {
        for kind in KINDS {
            for (helper, why) in tables(kind).into_iter().flatten() {
                assert!(exists(&format!("bpf_{helper}")), "{helper}");
                assert!(!why.is_empty());
                assert!(!helper.contains("probe_") && !helper.contains("tail_call"), "{helper}");
            }
        }
        assert!(!exists("bpf_no_such_thing") && !exists("map_lookup_elem"));
    }

    #[test]
    fn what_changes_packets_is_for_those_that_may() {
        assert!(is_allowed(ProgramKind::TcIngress, "skb_store_bytes"));
        assert!(!is_allowed(ProgramKind::SocketFilter, "skb_store_bytes"));
        assert!(!is_allowed(ProgramKind::SocketFilter, "probe_read_kernel"));
        assert!(!is_allowed(ProgramKind::SocketFilter, "get_current_comm"));
    }
}
