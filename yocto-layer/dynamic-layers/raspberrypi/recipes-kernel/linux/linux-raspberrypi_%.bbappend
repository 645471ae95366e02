# nooelint: oelint.file.requirenotfound
require ${@bb.utils.contains('DISTRO_FEATURES', 'cnova', '${CNOVA_LAYERDIR}/recipes-kernel/linux/linux-cnova.inc', '', d)}
