SUMMARY = "What a Cloudnova node carries"
DESCRIPTION = "The agent with the runtimes in CNOVA_RUNTIMES; with the package packagegroup-cnova-gateway also a gateway."
HOMEPAGE = "https://cnova.example/edge"
BUGTRACKER = "https://cnova.example/edge/issues"
SECTION = "base"

# Which runtimes a node has may be a matter of the machine.
PACKAGE_ARCH = "${MACHINE_ARCH}"

inherit packagegroup

CNOVA_RUNTIMES ??= "wasm container ebpf"

PACKAGES = "${PN} ${PN}-gateway"

# nooelint: oelint.vars.dependsordered
RDEPENDS:${PN} = "\
    cnova-agent \
    tzdata-core \
    ${@' '.join('cnova-runtime-' + runtime for runtime in d.getVar('CNOVA_RUNTIMES').split())} \
"
RDEPENDS:${PN}-gateway = "cnova-gateway"
