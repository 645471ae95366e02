SUMMARY = "What a Cloudnova node carries"
DESCRIPTION = "The agent with the runtimes in CNOVA_RUNTIMES; with the package packagegroup-cnova-gateway also a gateway."

# Which runtimes a node has may be a matter of the machine.
PACKAGE_ARCH = "${MACHINE_ARCH}"

inherit packagegroup

CNOVA_RUNTIMES ??= "wasm container ebpf"

PACKAGES = "${PN} ${PN}-gateway"

RDEPENDS:${PN} = " \
    cnova-agent \
    ${@' '.join('cnova-runtime-' + runtime for runtime in d.getVar('CNOVA_RUNTIMES').split())} \
    tzdata-core \
"
RDEPENDS:${PN}-gateway = "cnova-gateway"
