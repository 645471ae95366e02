# An image of a Cloudnova node: a read-only root (squashfs) that the kernel opens by dm-verity, two slots of it, and a state
# partition. Every slot's root hash is on the kernel's command line, and that is inside of what boots.
#
# CNOVA_BOOT chooses how a slot boots, CNOVA_SLOT_SIZE and CNOVA_STATE_SIZE (MiB) how large partitions are.

inherit core-image

CNOVA_BOOT ??= "systemd-boot"
CNOVA_SLOT_SIZE ??= "256"
CNOVA_STATE_SIZE ??= "512"
CNOVA_BOOT_SIZE ??= "96"
CNOVA_CONSOLE ??= "${@' '.join('console=%s,%s' % tuple(reversed(c.split(';')[:2])) for c in (d.getVar('SERIAL_CONSOLES') or '').split()[:1])}"
# Seconds after a panic, a corrupt root among them, until the next try; the boot loader counts those.
CNOVA_PANIC_SECONDS ??= "5"
CNOVA_KERNEL_ARGUMENTS ??= "quiet"

# No package under these is in an image: a device that only boots what its owner signed must not carry them. For the image
# alone; recipes with such packages beside others (systemd's needs tar, for one) are built.
INCOMPATIBLE_LICENSE ?= "GPL-3.0* LGPL-3.0* AGPL-3.0*"

IMAGE_FEATURES += "read-only-rootfs"
IMAGE_LINGUAS = ""

IMAGE_INSTALL = "\
    packagegroup-core-boot \
    packagegroup-cnova \
    cnova-appliance \
    cnova-boot-slot \
    cnova-provision \
    cnova-state \
    rauc \
    ${CNOVA_IMAGE_EXTRA} \
"
# More for one product: packagegroup-cnova-gateway, drivers, an accelerator's libraries.
CNOVA_IMAGE_EXTRA ??= ""

IMAGE_FSTYPES = "squashfs-zst wic.zst wic.bmap"
WKS_FILE = "cnova-${CNOVA_BOOT}.wks.in"
# The layouts are put together from what is made here: no boot loader of wic's is needed.
WKS_FILE_DEPENDS = "${WKS_FILE_DEPENDS_DEFAULT}"
# Releases before 5.3 look for layouts elsewhere.
WKS_SEARCH_PATH .= ":${CNOVA_LAYERDIR}/files/wic"

python () {
    layers = d.getVar('BBFILE_COLLECTIONS').split()
    lacking = [text for layer, text in (
        ('openembedded-layer', 'meta-oe of meta-openembedded (cryptsetup, for dm-verity)'),
        ('rauc', 'meta-rauc (updates)'),
    ) if layer not in layers]
    if lacking:
        raise bb.parse.SkipRecipe('the image needs further layers: %s' % ', '.join(lacking))
    features = d.getVar('DISTRO_FEATURES').split()
    if 'cnova' not in features or 'systemd' not in features:
        raise bb.parse.SkipRecipe('the image needs `require conf/distro/include/cnova.inc` in local.conf or in your distro')
    if d.getVar('CNOVA_BOOT') not in ('systemd-boot', 'tryboot', 'u-boot'):
        raise bb.parse.SkipRecipe('CNOVA_BOOT = "%s": it is one of systemd-boot, tryboot, u-boot' % d.getVar('CNOVA_BOOT'))
    # Machines ask for the boot loaders of their own layouts, GRUB and SYSLINUX with their licences among them.
    depends = d.getVarFlag('do_image_wic', 'depends') or ''
    others = ('syslinux', 'grub-efi', 'grub')
    kept = [each for each in depends.split() if each.split(':')[0].removesuffix('-native') not in others]
    d.setVarFlag('do_image_wic', 'depends', ' '.join(kept))
}

# --- the slots -------------------------------------------------------------------------------------------------------

CNOVA_ROOT_IMAGE = "${IMGDEPLOYDIR}/${IMAGE_NAME}.squashfs-zst"
CNOVA_SLOT_DIR = "${WORKDIR}/cnova-slots"
CNOVA_SLOT_NAME = "${IMGDEPLOYDIR}/${IMAGE_LINK_NAME}.cnova"

# The salt of dm-verity. It is no secret: it keeps trees of two products apart. From what is built, so that the same inputs
# give the same image.
CNOVA_VERITY_SALT ?= "${@__import__('hashlib').sha256(('%s %s' % (d.getVar('PN'), d.getVar('MACHINE'))).encode()).hexdigest()}"

# What is the same in both slots: the root with its hash tree behind it.
cnova_verity () {
    root=${CNOVA_SLOT_DIR}/root.verity
    cp ${CNOVA_ROOT_IMAGE} $root
    block=4096
    size=$(stat -c %s $root)
    blocks=$(expr \( $size + $block - 1 \) / $block)
    truncate -s $(expr $blocks \* $block) $root
    veritysetup format --hash=sha256 --data-block-size=$block --hash-block-size=$block --salt=${CNOVA_VERITY_SALT} \
        --uuid=00000000-0000-0000-0000-000000000000 --hash-offset=$(expr $blocks \* $block) $root $root \
        > ${CNOVA_SLOT_DIR}/verity
    hash=$(sed -n 's/^Root hash:[[:space:]]*//p' ${CNOVA_SLOT_DIR}/verity)
    [ ${#hash} -eq 64 ] || bbfatal "veritysetup gave no root hash"
    limit=$(expr ${CNOVA_SLOT_SIZE} \* 1048576)
    [ $(stat -c %s $root) -le $limit ] || \
        bbfatal "the root needs $(stat -c %s $root) bytes and a slot has $limit: raise CNOVA_SLOT_SIZE (MiB) or install less"
    # The superblock takes the first block behind the data, the tree begins in the next.
    for slot in a b; do
        device=PARTLABEL=root-$slot
        printf '%s' "root=/dev/dm-0 rootfstype=squashfs ro rootwait rauc.slot=$(echo $slot | tr ab AB) ${CNOVA_CONSOLE}" \
            " panic=${CNOVA_PANIC_SECONDS} ${CNOVA_KERNEL_ARGUMENTS} dm-mod.waitfor=$device" \
            " dm-mod.create=\"root,,,ro,0 $(expr $blocks \* 8) verity 1 $device $device $block $block $blocks" \
            " $(expr $blocks + 1) sha256 $hash ${CNOVA_VERITY_SALT} 1 panic_on_corruption\"" \
            > ${CNOVA_SLOT_DIR}/cmdline-$slot.txt
        # printf puts its arguments together without blanks; the longest command line that x86 and arm64 take is 2048.
        [ $(stat -c %s ${CNOVA_SLOT_DIR}/cmdline-$slot.txt) -lt 2048 ] || bbfatal "the kernel's command line is too long"
    done
}

# ukify is Python and has modules of its own.
EXTRANATIVEPATH += "python3-native"

# A unified kernel image for each slot: kernel and command line in one file, measured and signed as one.
cnova_uki () {
    printf 'ID=cnova\nNAME="Cloudnova"\nPRETTY_NAME="Cloudnova"\n' > ${CNOVA_SLOT_DIR}/os-release
    for slot in a b; do
        ukify build --efi-arch ${EFI_ARCH} --stub ${DEPLOY_DIR_IMAGE}/linux${EFI_ARCH}.efi.stub \
            --linux ${DEPLOY_DIR_IMAGE}/${KERNEL_IMAGETYPE} \
            --cmdline @${CNOVA_SLOT_DIR}/cmdline-$slot.txt --os-release @${CNOVA_SLOT_DIR}/os-release \
            --tools ${RECIPE_SYSROOT_NATIVE}${prefix}/lib/systemd/tools \
            ${@cnova_secure_boot_arguments(d)} --output ${CNOVA_SLOT_DIR}/slot-$slot.efi
    done
}

# Secure Boot: the same key must sign systemd-boot. Needs sbsign on the building machine (sbsigntool-native, meta-secure-core).
CNOVA_SECURE_BOOT_KEY ??= ""
CNOVA_SECURE_BOOT_CERTIFICATE ??= ""

def cnova_secure_boot_arguments(d):
    key, certificate = d.getVar('CNOVA_SECURE_BOOT_KEY'), d.getVar('CNOVA_SECURE_BOOT_CERTIFICATE')
    if bool(key) != bool(certificate):
        bb.fatal('CNOVA_SECURE_BOOT_KEY and CNOVA_SECURE_BOOT_CERTIFICATE go together: one of them is not set')
    return '--secureboot-private-key %s --secureboot-certificate %s' % (key, certificate) if key else ''

# --- the boot partitions ---------------------------------------------------------------------------------------------

def cnova_boot_tree(d, target):
    """Puts what the board's firmware reads, as IMAGE_BOOT_FILES names it, into a folder."""
    import glob, shutil
    deploy = d.getVar('DEPLOY_DIR_IMAGE')
    for entry in (d.getVar('IMAGE_BOOT_FILES') or '').split():
        source, _, name = entry.partition(';')
        found = sorted(glob.glob(os.path.join(deploy, source)))
        if not found:
            bb.fatal('IMAGE_BOOT_FILES names %s, which is not in %s' % (source, deploy))
        for path in found:
            if '*' in source:
                to = os.path.join(target, name, os.path.relpath(path, os.path.join(deploy, os.path.dirname(source))))
            else:
                to = os.path.join(target, name or os.path.basename(path))
            bb.utils.mkdirhier(os.path.dirname(to))
            if os.path.isdir(path):
                shutil.copytree(path, to, dirs_exist_ok=True)
            else:
                shutil.copyfile(path, to)

python cnova_boot_trees () {
    import shutil
    slots, deploy = d.getVar('CNOVA_SLOT_DIR'), d.getVar('DEPLOY_DIR_IMAGE')
    def make(path, text):
        bb.utils.mkdirhier(os.path.dirname(path))
        with open(path, 'w') as file:
            file.write(text)
    boot = d.getVar('CNOVA_BOOT')
    if boot == 'systemd-boot':
        esp = os.path.join(slots, 'tree-esp')
        architecture = d.getVar('EFI_ARCH')
        loader = os.path.join(esp, 'EFI/BOOT/boot%s.efi' % architecture)
        bb.utils.mkdirhier(os.path.dirname(loader))
        shutil.copyfile(os.path.join(deploy, 'systemd-boot%s.efi' % architecture), loader)
        # No `default`: what boots is the first entry with a try left, and names say which is first (cnova-boot-slot).
        make(os.path.join(esp, 'loader/loader.conf'), 'timeout 0\neditor no\nauto-entries no\nauto-firmware no\n')
        bb.utils.mkdirhier(os.path.join(esp, 'EFI/Linux'))
        shutil.copyfile(os.path.join(slots, 'slot-a.efi'), os.path.join(esp, 'EFI/Linux/cnova-000001-A+3.efi'))
        return
    for slot in 'ab':
        tree = os.path.join(slots, 'tree-boot-' + slot)
        cnova_boot_tree(d, tree)
        shutil.copyfile(os.path.join(slots, 'cmdline-%s.txt' % slot), os.path.join(tree, 'cmdline.txt'))
        # An update brings one boot partition for either slot; its hook takes the command line of the slot it lands in.
        for each in 'ab':
            shutil.copyfile(os.path.join(slots, 'cmdline-%s.txt' % each), os.path.join(tree, 'cmdline-%s.txt' % each))
    first = os.path.join(slots, 'tree-boot')
    if boot == 'tryboot':
        make(os.path.join(first, 'autoboot.txt'), '[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n')
    else:
        bb.utils.mkdirhier(first)
        shutil.copyfile(os.path.join(deploy, 'boot.scr'), os.path.join(first, 'boot.scr'))
}

# A FAT file system of each tree, the same for the same contents.
cnova_boot_partitions () {
    for tree in ${CNOVA_SLOT_DIR}/tree-*; do
        name=$(basename $tree | sed 's/^tree-//')
        image=${CNOVA_SLOT_DIR}/$name.vfat
        find $tree -exec touch -h -d "@${SOURCE_DATE_EPOCH}" {} +
        rm -f $image
        truncate -s ${CNOVA_BOOT_SIZE}M $image
        mkfs.vfat --invariant -i 434e4f56 -n "$(echo $name | tr a-z A-Z)" $image
        (cd $tree && find . -mindepth 1 -maxdepth 1 | LC_ALL=C sort | xargs -I@ mcopy -s -p -m -i $image @ ::/) || \
            bbfatal "what boots does not fit into CNOVA_BOOT_SIZE = ${CNOVA_BOOT_SIZE} MiB"
    done
}

# What a bundle is made of, beside the image.
cnova_deploy_slots () {
    install -m 0644 ${CNOVA_SLOT_DIR}/root.verity ${CNOVA_SLOT_NAME}-root.verity
    install -m 0644 ${CNOVA_SLOT_DIR}/verity ${CNOVA_SLOT_NAME}-root.verity.txt
    if [ "${CNOVA_BOOT}" = systemd-boot ]; then
        for slot in a b; do
            install -m 0644 ${CNOVA_SLOT_DIR}/slot-$slot.efi ${CNOVA_SLOT_NAME}-slot-$slot.efi
        done
    else
        install -m 0644 ${CNOVA_SLOT_DIR}/boot-a.vfat ${CNOVA_SLOT_NAME}-boot.vfat
    fi
}

python do_cnova_slots () {
    bb.build.exec_func('cnova_verity', d)
    if d.getVar('CNOVA_BOOT') == 'systemd-boot':
        bb.build.exec_func('cnova_uki', d)
    bb.build.exec_func('cnova_boot_trees', d)
    bb.build.exec_func('cnova_boot_partitions', d)
    bb.build.exec_func('cnova_deploy_slots', d)
}
addtask cnova_slots after do_image_squashfs_zst before do_image_wic do_image_complete
do_cnova_slots[dirs] = "${CNOVA_SLOT_DIR}"
do_cnova_slots[cleandirs] = "${CNOVA_SLOT_DIR}"
do_cnova_slots[umask] = "022"
do_cnova_slots[doc] = "Makes the slots: root with its hash tree, kernels with its hash on their command line, boot partitions"
do_cnova_slots[depends] += "\
    cryptsetup-native:do_populate_sysroot \
    dosfstools-native:do_populate_sysroot \
    mtools-native:do_populate_sysroot \
    virtual/kernel:do_deploy \
    ${@cnova_boot_depends(d)} \
"

def cnova_boot_depends(d):
    boot = d.getVar('CNOVA_BOOT')
    if boot == 'systemd-boot':
        return 'systemd-boot:do_deploy systemd-boot-native:do_populate_sysroot virtual/cross-binutils:do_populate_sysroot'
    if boot == 'tryboot':
        return 'rpi-bootfiles:do_deploy rpi-config:do_deploy'
    return 'virtual/bootloader:do_deploy cnova-boot-script:do_deploy'

# In openembedded-core.
# nooelint: oelint.file.requirenotfound
require conf/image-uefi.conf
