SUMMARY = "A Cloudnova node for PLCs and industrial PCs with UEFI"
DESCRIPTION = "Agent, the runtimes in CNOVA_RUNTIMES, two slots with dm-verity, systemd-boot with boot counting, RAUC."
HOMEPAGE = "https://cnova.example/edge"
BUGTRACKER = "https://cnova.example/edge/issues"
SECTION = "base"
LICENSE = "Apache-2.0"

inherit cnova_image

COMPATIBLE_HOST = "(x86_64|aarch64).*-linux"
# `rpi` is an override of meta-raspberrypi.
# nooelint: oelint.vars.specific
COMPATIBLE_MACHINE:rpi = "null"

python () {
    if d.getVar('CNOVA_BOOT') != 'systemd-boot':
        raise bb.parse.SkipRecipe('the image is for machines with UEFI: CNOVA_BOOT is "%s"' % d.getVar('CNOVA_BOOT'))
}
