SUMMARY = "Command line of Cloudnova Edge"
DESCRIPTION = "cnova: keys and trust bundles, manifests, artifacts, and what the fleet does. For the machines of people (it is in the SDK, too); nodes do not need it."

require cnova.inc

CNOVA_CARGO_BUILDS = "-p,cnova"

do_install () {
    install -D -m 0755 ${CNOVA_BUILT}/cnova ${D}${bindir}/cnova
}

BBCLASSEXTEND = "native nativesdk"
