require ${@bb.utils.contains('DISTRO_FEATURES', 'cnova', 'linux-cnova.inc', '', d)}
