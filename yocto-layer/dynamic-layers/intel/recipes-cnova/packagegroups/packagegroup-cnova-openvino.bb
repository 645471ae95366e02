SUMMARY = "OpenVINO for Cloudnova workloads"
DESCRIPTION = "The inference worker opens libopenvino_c.so at run time, so nothing is linked against it."
HOMEPAGE = "https://cnova.example/edge"
BUGTRACKER = "https://cnova.example/edge/issues"
SECTION = "base"

PACKAGE_ARCH = "${MACHINE_ARCH}"

inherit packagegroup

# The -dev package holds the name that is opened, libopenvino_c.so.
RDEPENDS:${PN} = "\
    cnova-runtime-wasm-nn \
    openvino-inference-engine \
    openvino-inference-engine-dev \
"
