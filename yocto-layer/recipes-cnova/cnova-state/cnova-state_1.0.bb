SUMMARY = "The state partition of a Cloudnova node"
DESCRIPTION = "Mounts the partition `state` at /var/lib: the only place of the device that keeps what is written. Grown to its partition and checked at boot."
HOMEPAGE = "https://cnova.example/edge"
BUGTRACKER = "https://cnova.example/edge/issues"
SECTION = "base"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${CNOVA_LAYERDIR}/LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

SRC_URI = "\
    file://cnova-state.conf \
    file://var-lib.mount \
"

S = "${UNPACKDIR}"

inherit allarch systemd features_check

REQUIRED_DISTRO_FEATURES = "systemd"

SYSTEMD_SERVICE:${PN} = "var-lib.mount"

INHIBIT_DEFAULT_DEPS = "1"
do_compile[noexec] = "1"
do_configure[noexec] = "1"

do_install () {
    install -D -m 0644 ${UNPACKDIR}/var-lib.mount ${D}${systemd_system_unitdir}/var-lib.mount
    install -D -m 0644 ${UNPACKDIR}/cnova-state.conf ${D}${nonarch_libdir}/tmpfiles.d/cnova-state.conf
}

FILES:${PN} += "${nonarch_libdir}/tmpfiles.d"

RDEPENDS:${PN} = "e2fsprogs-e2fsck"
