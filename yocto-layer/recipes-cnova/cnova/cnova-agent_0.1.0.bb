SUMMARY = "Cloudnova edge agent and its runtimes"
SUMMARY:cnova-runtime-wasm = "Runs precompiled WebAssembly for the Cloudnova agent"
SUMMARY:cnova-runtime-wasm-nn = "Runs models (wasi-nn) for WebAssembly: CPU, HailoRT, OpenVINO"
SUMMARY:cnova-runtime-container = "Runs OCI images for the Cloudnova agent"
SUMMARY:cnova-runtime-ebpf = "Loads eBPF programs for the Cloudnova agent"
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

SYSTEMD_SERVICE:${PN} = "cnova-agent.service"

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
}

PACKAGES =+ "cnova-runtime-wasm cnova-runtime-wasm-nn cnova-runtime-container cnova-runtime-ebpf"

FILES:cnova-runtime-wasm += "${libexecdir}/cnova/cnova-runtime-wasm"
FILES:cnova-runtime-wasm-nn += "${libexecdir}/cnova/cnova-wasm-nn"
FILES:cnova-runtime-container += "${libexecdir}/cnova/cnova-runtime-container"
FILES:cnova-runtime-ebpf += "${libexecdir}/cnova/cnova-runtime-ebpf"

CONFFILES:${PN} = "${sysconfdir}/cnova/agent.toml"

RDEPENDS:cnova-runtime-wasm-nn = "cnova-runtime-wasm"
# In the kernel or beside it.
RRECOMMENDS:cnova-runtime-container = "kernel-module-overlay kernel-module-veth"
