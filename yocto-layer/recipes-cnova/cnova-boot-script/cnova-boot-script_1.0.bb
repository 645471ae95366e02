SUMMARY = "U-Boot's choice among two slots"
DESCRIPTION = "boot.scr, which counts tries, and the place of U-Boot's environment for RAUC."
HOMEPAGE = "https://cnova.example/edge"
BUGTRACKER = "https://cnova.example/edge/issues"
SECTION = "bootloaders"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${CNOVA_LAYERDIR}/LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

DEPENDS = "u-boot-mkimage-native"

SRC_URI = "\
    file://boot.cmd.in \
    file://fw_env.config \
"

S = "${UNPACKDIR}"

inherit deploy

PACKAGE_ARCH = "${MACHINE_ARCH}"
INHIBIT_DEFAULT_DEPS = "1"

CNOVA_KERNEL_BOOTCMD ??= "${@'booti' if d.getVar('TARGET_ARCH') == 'aarch64' else 'bootz'}"

do_configure[noexec] = "1"

do_compile () {
    sed -e 's/@@KERNEL_IMAGETYPE@@/${KERNEL_IMAGETYPE}/' -e 's/@@KERNEL_BOOTCMD@@/${CNOVA_KERNEL_BOOTCMD}/' \
        ${UNPACKDIR}/boot.cmd.in > ${B}/boot.cmd
    mkimage -A ${UBOOT_ARCH} -T script -C none -n 'Cloudnova slots' -d ${B}/boot.cmd ${B}/boot.scr
}

do_install () {
    install -D -m 0644 ${UNPACKDIR}/fw_env.config ${D}${sysconfdir}/fw_env.config
}

do_deploy () {
    install -m 0644 ${B}/boot.scr ${DEPLOYDIR}/boot.scr
}
addtask deploy after do_compile before do_build
