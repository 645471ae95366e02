SUMMARY = "Cloudnova gateway"
DESCRIPTION = "Keeps the twins and artifacts of the nodes below it, relays what they say, and lets newcomers in. Gateways nest to any depth."

require cnova.inc

inherit systemd useradd

PACKAGECONFIG ??= "tpm"
PACKAGECONFIG[tpm] = ",,tpm2-tss,libtss2-tcti-device"

CNOVA_CARGO_BUILDS = "-p,cnova-gateway${@bb.utils.contains('PACKAGECONFIG', 'tpm', '', ',--no-default-features', d)}"

SYSTEMD_SERVICE:${PN} = "cnova-gateway.service"

# The group of the TPM's device is made by tpm2-tss, too; who comes first does not matter.
USERADD_PACKAGES = "${PN}"
GROUPADD_PARAM:${PN} = "--system cnova-gateway${@bb.utils.contains('PACKAGECONFIG', 'tpm', '; --system tss', '', d)}"
CNOVA_HOME = "${localstatedir}/lib/cnova-gateway"
USERADD_PARAM:${PN} = "--system --no-create-home --home-dir ${CNOVA_HOME} --shell /sbin/nologin --gid cnova-gateway ${@bb.utils.contains('PACKAGECONFIG', 'tpm', '--groups tss', '', d)} cnova-gateway"

do_install () {
    install -D -m 0755 ${CNOVA_BUILT}/cnova-gateway ${D}${bindir}/cnova-gateway
    install -D -m 0644 ${S}/gateway/daemon/systemd/cnova-gateway.service \
        ${D}${systemd_system_unitdir}/cnova-gateway.service
    install -D -m 0644 ${S}/gateway/daemon/gateway.toml ${D}${sysconfdir}/cnova/gateway.toml
    install -d -m 0755 ${D}${sysconfdir}/cnova/gateway.d
    if ! ${@bb.utils.contains('PACKAGECONFIG', 'tpm', 'true', 'false', d)}; then
        sed -i 's/^root = "tpm" .*/root = "soft"/' ${D}${sysconfdir}/cnova/gateway.toml
        grep -q '^root = "soft"$' ${D}${sysconfdir}/cnova/gateway.toml || bbfatal "gateway.toml names no root of trust any more"
    fi
}

CONFFILES:${PN} = "${sysconfdir}/cnova/gateway.toml"
