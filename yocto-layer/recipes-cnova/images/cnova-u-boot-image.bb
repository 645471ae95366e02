SUMMARY = "A Cloudnova node for boards with U-Boot"
DESCRIPTION = "Agent, the runtimes in CNOVA_RUNTIMES, two slots with dm-verity, U-Boot with boot counting, RAUC."
HOMEPAGE = "https://cnova.example/edge"
BUGTRACKER = "https://cnova.example/edge/issues"
SECTION = "base"
LICENSE = "Apache-2.0"

inherit cnova_image

# `rpi` is an override of meta-raspberrypi.
# nooelint: oelint.vars.specific
COMPATIBLE_MACHINE:rpi = "null"

python () {
    if d.getVar('CNOVA_BOOT') != 'u-boot':
        raise bb.parse.SkipRecipe('the image is for boards with U-Boot: CNOVA_BOOT is "%s"' % d.getVar('CNOVA_BOOT'))
}

IMAGE_BOOT_FILES = "${KERNEL_IMAGETYPE} ${@' '.join(os.path.basename(tree) for tree in (d.getVar('KERNEL_DEVICETREE') or '').split())}"
