SUMMARY = "An update of a Cloudnova node"
DESCRIPTION = "A signed RAUC bundle: the root with its hash tree, and what boots it from either slot."
HOMEPAGE = "https://cnova.example/edge"
BUGTRACKER = "https://cnova.example/edge/issues"
SECTION = "base"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${CNOVA_LAYERDIR}/LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

SRC_URI = "file://slot-hook"

inherit bundle

CNOVA_BOOT ??= "systemd-boot"
CNOVA_COMPATIBLE ??= "cloudnova-${MACHINE}"
CNOVA_BUNDLE_VERSION ??= "${DISTRO_VERSION}"
# The image whose root is in it.
CNOVA_BUNDLE_IMAGE ??= "${CNOVA_IMAGE_OF_BOOT}"
CNOVA_IMAGE_OF_BOOT = "${@{'systemd-boot': 'cnova-plc-image', 'tryboot': 'cnova-pi5-image', 'u-boot': 'cnova-u-boot-image'}.get(d.getVar('CNOVA_BOOT'), '')}"
CNOVA_BUNDLE_FILES = "${CNOVA_BUNDLE_IMAGE}${IMAGE_MACHINE_SUFFIX}${IMAGE_NAME_SUFFIX}.cnova"

# Absolute paths: who signs. The certificate must lead to CNOVA_RAUC_KEYRING, which devices hold.
CNOVA_RAUC_KEY ??= ""
CNOVA_RAUC_CERTIFICATE ??= ""
RAUC_KEY_FILE = "${CNOVA_RAUC_KEY}"
RAUC_CERT_FILE = "${CNOVA_RAUC_CERTIFICATE}"

RAUC_BUNDLE_FORMAT = "verity"
RAUC_BUNDLE_COMPATIBLE = "${CNOVA_COMPATIBLE}"
RAUC_BUNDLE_VERSION = "${CNOVA_BUNDLE_VERSION}"
RAUC_BUNDLE_HOOKS[file] = "slot-hook"

RAUC_BUNDLE_SLOTS = "rootfs ${@'' if d.getVar('CNOVA_BOOT') == 'systemd-boot' else 'boot'}"

RAUC_SLOT_rootfs = "${CNOVA_BUNDLE_IMAGE}"
RAUC_SLOT_rootfs[file] = "${CNOVA_BUNDLE_FILES}-root.verity"
RAUC_SLOT_rootfs[rename] = "root.img"

RAUC_SLOT_boot = "${CNOVA_BUNDLE_IMAGE}"
RAUC_SLOT_boot[file] = "${CNOVA_BUNDLE_FILES}-boot.vfat"
RAUC_SLOT_boot[rename] = "boot.vfat"
RAUC_SLOT_boot[hooks] = "post-install"

python () {
    missing = [name for name in ('CNOVA_RAUC_KEY', 'CNOVA_RAUC_CERTIFICATE') if not os.path.isabs(d.getVar(name) or '')]
    if missing:
        raise bb.parse.SkipRecipe('%s: the absolute paths of the PEM files that a bundle is signed with' % ' and '.join(missing))
    if d.getVar('CNOVA_BOOT') == 'systemd-boot':
        d.setVarFlag('RAUC_SLOT_rootfs', 'hooks', 'post-install')
}

# A unified kernel image names its slot on its command line, inside of what is signed: the bundle has one for each.
python do_configure:append () {
    import shutil
    if d.getVar('CNOVA_BOOT') == 'systemd-boot':
        for slot in ('a', 'b'):
            made = '%s/%s-slot-%s.efi' % (d.getVar('DEPLOY_DIR_IMAGE'), d.getVar('CNOVA_BUNDLE_FILES'), slot)
            shutil.copyfile(made, '%s/slot-%s.efi' % (d.getVar('BUNDLE_DIR'), slot))
}
