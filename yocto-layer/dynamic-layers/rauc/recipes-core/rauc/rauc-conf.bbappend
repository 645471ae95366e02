require ${@bb.utils.contains('DISTRO_FEATURES', 'cnova', 'rauc-conf-cnova.inc', '', d)}
