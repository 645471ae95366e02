SUMMARY = "Cloudnova edge agent and its runtimes"
SUMMARY:cnova-runtime-wasm = "Runs precompiled WebAssembly for the Cloudnova agent"
SUMMARY:cnova-runtime-wasm-nn = "Runs models (wasi-nn) for WebAssembly: CPU, HailoRT, OpenVINO"
SUMMARY:cnova-runtime-container = "Runs OCI images for the Cloudnova agent"
SUMMARY:cnova-runtime-ebpf = "Loads eBPF programs for the Cloudnova agent"
SUMMARY:cnova-appliance = "What makes a whole machine the Cloudnova agent's: budget of memory, boot check, restart in an emergency, watchdog"
DESCRIPTION = "The agent keeps its signed twin in SQLite, schedules it locally and runs WebAssembly, eBPF and container workloads whether or not anyone above it can be reached. Each runtime is a package of its own."

require cnova.inc

inherit systemd

# A node's runtimes, and whether its keys are in a TPM.
CNOVA_RUNTIMES ??= "wasm container ebpf"
PACKAGECONFIG ??= "${CNOVA_RUNTIMES} tpm"
PACKAGECONFIG[wasm] = ""
PACKAGECONFIG[wasm-nn] = ""
PACKAGECONFIG[container] = ",,libseccomp"
PACKAGECONFIG[ebpf] = ""
PACKAGECONFIG[tpm] = ",,tpm2-tss,libtss2-tcti-device"

CNOVA_CARGO_BUILDS = "\
    -p,cnova-agent${@bb.utils.contains('PACKAGECONFIG', 'tpm', '', ',--no-default-features', d)} \
    ${@bb.utils.contains('PACKAGECONFIG', 'wasm', '-p,cnova-runtime-wasm', '', d)} \
    ${@bb.utils.contains('PACKAGECONFIG', 'wasm-nn', '-p,cnova-wasm-nn', '', d)} \
    ${@bb.utils.contains('PACKAGECONFIG', 'container', '-p,cnova-runtime-container', '', d)} \
    ${@bb.utils.contains('PACKAGECONFIG', 'ebpf', '-p,cnova-runtime-ebpf', '', d)} \
"

# What the agent and all that it starts may take of the machine's memory, MiB.
CNOVA_AGENT_MIB ??= "128"

SYSTEMD_PACKAGES = "${PN} cnova-appliance"
SYSTEMD_SERVICE:${PN} = "cnova-agent.service"
SYSTEMD_SERVICE:cnova-appliance = "cnova-boot-check.service"

do_install () {
    install -D -m 0755 ${CNOVA_BUILT}/cnova-agent ${D}${bindir}/cnova-agent
    for program in cnova-runtime-wasm cnova-wasm-nn cnova-runtime-container cnova-runtime-ebpf; do
        if [ -x ${CNOVA_BUILT}/$program ]; then
            install -D -m 0755 ${CNOVA_BUILT}/$program ${D}${libexecdir}/cnova/$program
        fi
    done

    install -D -m 0644 ${S}/edge-agent/daemon/systemd/cnova-agent.service \
        ${D}${systemd_system_unitdir}/cnova-agent.service
    install -D -m 0644 ${S}/edge-agent/daemon/agent.toml ${D}${sysconfdir}/cnova/agent.toml
    install -d -m 0755 ${D}${sysconfdir}/cnova/agent.d
    if ! ${@bb.utils.contains('PACKAGECONFIG', 'tpm', 'true', 'false', d)}; then
        sed -i 's/^root = "tpm" .*/root = "soft"/' ${D}${sysconfdir}/cnova/agent.toml
        grep -q '^root = "soft"$' ${D}${sysconfdir}/cnova/agent.toml || bbfatal "agent.toml names no root of trust any more"
    fi

    # The same files that images without Yocto have.
    install -D -m 0755 ${S}/firmware-images/rootfs/usr/lib/cnova/boot-check ${D}${nonarch_libdir}/cnova/boot-check
    install -D -m 0644 ${S}/firmware-images/rootfs/etc/systemd/system/cnova-boot-check.service \
        ${D}${systemd_system_unitdir}/cnova-boot-check.service
    install -D -m 0644 ${S}/firmware-images/rootfs/etc/systemd/system/cnova.slice ${D}${systemd_system_unitdir}/cnova.slice
    sed -i 's/@AGENT_MIB@/${CNOVA_AGENT_MIB}/' ${D}${systemd_system_unitdir}/cnova.slice
    install -D -m 0644 ${S}/firmware-images/rootfs/etc/systemd/system/cnova-agent.service.d/board.conf \
        ${D}${systemd_system_unitdir}/cnova-agent.service.d/board.conf
    install -D -m 0644 ${S}/firmware-images/rootfs/etc/systemd/system/emergency.service.d/restart.conf \
        ${D}${systemd_system_unitdir}/emergency.service.d/restart.conf
    install -D -m 0644 ${S}/firmware-images/rootfs/etc/systemd/system.conf.d/watchdog.conf \
        ${D}${systemd_unitdir}/system.conf.d/10-cnova-watchdog.conf
    # Workloads are counted in the same budget.
    printf '[runtime]\ncgroup_parent = "cnova.slice/workloads"\n' > ${D}${sysconfdir}/cnova/agent.d/00-appliance.toml
    chmod 0644 ${D}${sysconfdir}/cnova/agent.d/00-appliance.toml
}

PACKAGES =+ "cnova-appliance cnova-runtime-wasm cnova-runtime-wasm-nn cnova-runtime-container cnova-runtime-ebpf"

FILES:cnova-appliance += "\
    ${nonarch_libdir}/cnova \
    ${sysconfdir}/cnova/agent.d/00-appliance.toml \
    ${systemd_system_unitdir}/cnova-agent.service.d \
    ${systemd_system_unitdir}/cnova.slice \
    ${systemd_system_unitdir}/emergency.service.d \
    ${systemd_unitdir}/system.conf.d \
"
FILES:cnova-runtime-wasm += "${libexecdir}/cnova/cnova-runtime-wasm"
FILES:cnova-runtime-wasm-nn += "${libexecdir}/cnova/cnova-wasm-nn"
FILES:cnova-runtime-container += "${libexecdir}/cnova/cnova-runtime-container"
FILES:cnova-runtime-ebpf += "${libexecdir}/cnova/cnova-runtime-ebpf"

CONFFILES:${PN} = "${sysconfdir}/cnova/agent.toml"

RDEPENDS:cnova-appliance = "cnova-agent"
RDEPENDS:cnova-runtime-wasm-nn = "cnova-runtime-wasm"
# In the kernel or beside it.
RRECOMMENDS:cnova-runtime-container = "kernel-module-overlay kernel-module-veth"
