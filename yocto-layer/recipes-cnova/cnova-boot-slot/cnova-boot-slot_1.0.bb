SUMMARY = "Which slot of a Cloudnova node boots"
DESCRIPTION = "One interface to each boot loader, as RAUC calls it: get-primary, set-primary, get-state, set-state, get-current."
HOMEPAGE = "https://cnova.example/edge"
BUGTRACKER = "https://cnova.example/edge/issues"
SECTION = "base"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${CNOVA_LAYERDIR}/LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

SRC_URI = "\
    file://boot-slot-systemd-boot \
    file://boot-slot-tryboot \
    file://boot.mount.in \
"

S = "${UNPACKDIR}"

inherit systemd features_check

REQUIRED_DISTRO_FEATURES = "systemd"

CNOVA_BOOT ??= "systemd-boot"
PACKAGE_ARCH = "${MACHINE_ARCH}"

SYSTEMD_SERVICE:${PN} = "boot.mount"

INHIBIT_DEFAULT_DEPS = "1"
do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install () {
    install -d ${D}${libexecdir}/cnova-os
    case "${CNOVA_BOOT}" in
    systemd-boot | tryboot)
        install -m 0755 ${UNPACKDIR}/boot-slot-${CNOVA_BOOT} ${D}${libexecdir}/cnova-os/boot-slot
        ;;
    u-boot)
        # RAUC speaks to U-Boot's environment by itself.
        rmdir ${D}${libexecdir}/cnova-os
        ;;
    *)
        bbfatal "CNOVA_BOOT = ${CNOVA_BOOT}: it is one of systemd-boot, tryboot, u-boot"
        ;;
    esac
    install -d ${D}${systemd_system_unitdir}
    sed 's/@LABEL@/${@'esp' if d.getVar('CNOVA_BOOT') == 'systemd-boot' else 'boot'}/' ${UNPACKDIR}/boot.mount.in \
        > ${D}${systemd_system_unitdir}/boot.mount
    chmod 0644 ${D}${systemd_system_unitdir}/boot.mount
}

FILES:${PN} += "${libexecdir}/cnova-os"

RDEPENDS:${PN} = "${@'libubootenv-bin' if d.getVar('CNOVA_BOOT') == 'u-boot' else ''}"
