SUMMARY = "A Hailo accelerator for Cloudnova workloads"
DESCRIPTION = "HailoRT's library and, from meta-hailo-accelerator, the PCIe driver and the firmware. The inference worker opens libhailort.so at run time, so nothing is linked against it."
HOMEPAGE = "https://cnova.example/edge"
BUGTRACKER = "https://cnova.example/edge/issues"
SECTION = "base"

PACKAGE_ARCH = "${MACHINE_ARCH}"

inherit packagegroup

# libhailort-dev holds the name that is opened, libhailort.so.
# nooelint: oelint.vars.dependsordered
RDEPENDS:${PN} = "\
    cnova-runtime-wasm-nn \
    libhailort \
    libhailort-dev \
    ${@bb.utils.contains('BBFILE_COLLECTIONS', 'meta-hailo-accelerator', 'hailo-firmware hailo-pci', '', d)} \
"
