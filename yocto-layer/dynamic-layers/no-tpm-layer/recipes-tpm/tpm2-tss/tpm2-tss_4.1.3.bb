SUMMARY = "TPM 2.0 software stack"
DESCRIPTION = "libtss2: the TCG's system, enhanced system and marshalling APIs, and the way to the kernel's TPM device. Only here where meta-tpm of meta-security, which has the same version, is not."
HOMEPAGE = "https://github.com/tpm2-software/tpm2-tss"
BUGTRACKER = "https://github.com/tpm2-software/tpm2-tss/issues"
SECTION = "libs"
LICENSE = "BSD-2-Clause"
LIC_FILES_CHKSUM = "file://LICENSE;md5=500b2e742befc3da00684d8a1d5fd9da"
CVE_PRODUCT = "tpm2_software_stack"

# autoconf-archive: macros that its configure.ac uses.
DEPENDS = "autoconf-archive-native openssl"

# The tagged source as Debian's signed index names it; mirrors.bbclass knows where Debian's pool is kept for good.
SRC_URI = "${DEBIAN_MIRROR}/main/t/tpm2-tss/tpm2-tss_${PV}.orig.tar.gz"
SRC_URI[sha256sum] = "8a389bda64690910e7af7deaf64703a3faed416dc538c9c3e4f893f24893524d"
UPSTREAM_CHECK_URI = "https://github.com/tpm2-software/tpm2-tss/releases"

S = "${UNPACKDIR}/tpm2-tss-${PV}"

inherit autotools pkgconfig useradd

# A device talks to its own TPM through the kernel; the way to a software TPM is for virtual boards.
PACKAGECONFIG ??= ""
PACKAGECONFIG[swtpm] = "--enable-tcti-swtpm,--disable-tcti-swtpm"

EXTRA_OECONF += "\
    --disable-doxygen-doc \
    --disable-fapi \
    --disable-policy \
    --disable-static \
    --disable-tcti-cmd \
    --disable-tcti-i2c-ftdi \
    --disable-tcti-i2c-helper \
    --disable-tcti-libtpms \
    --disable-tcti-mssim \
    --disable-tcti-pcap \
    --disable-tcti-spi-ftdi \
    --disable-tcti-spi-helper \
    --disable-tcti-spi-ltt2go \
    --disable-tcti-spidev \
    --runstatedir=/run \
    --with-crypto=ossl \
    --with-sysusersdir=no \
    --with-tmpfilesdir=no \
    --with-udevrulesdir=${nonarch_base_libdir}/udev/rules.d \
    --with-udevrulesprefix=60- \
"
# The user is made by this recipe: what the build machine has for that does not matter.
CACHED_CONFIGUREVARS += "ac_cv_prog_useradd=yes ac_cv_prog_groupadd=yes"

# What `bootstrap` makes beside autoconf's files: the version (which it would ask git for) and the lists of sources.
do_configure:prepend () {
    (
        cd ${S}
        printf '%s' '${PV}' > VERSION
        sed -e '/^git describe/d' -e '/^if grep/,$d' bootstrap > ${WORKDIR}/bootstrap-lists
        AUTORECONF=true sh ${WORKDIR}/bootstrap-lists
    )
}

# Folders of the feature API, which is not built.
do_install:append () {
    rm -rf ${D}/run ${D}${localstatedir}
}

USERADD_PACKAGES = "${PN}"
GROUPADD_PARAM:${PN} = "--system tss"
USERADD_PARAM:${PN} = "--system --no-create-home --home-dir / --shell /sbin/nologin --gid tss tss"

PACKAGES =+ "libtss2-tcti-device libtss2-tcti-swtpm libtss2-mu libtss2"
FILES:libtss2-tcti-device += "${libdir}/libtss2-tcti-device.so.*"
FILES:libtss2-tcti-swtpm += "${libdir}/libtss2-tcti-swtpm.so.*"
FILES:libtss2-mu += "${libdir}/libtss2-mu.so.*"
FILES:libtss2 += "${libdir}/libtss2*.so.*"
# Who may open /dev/tpmrm0, and the user.
FILES:${PN} += "${nonarch_base_libdir}/udev/rules.d"
RDEPENDS:libtss2-tcti-device = "${PN}"

BBCLASSEXTEND = "native nativesdk"
