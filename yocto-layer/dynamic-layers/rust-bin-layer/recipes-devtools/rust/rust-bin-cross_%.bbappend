# meta-rust-bin unpacks into WORKDIR, as releases before 5.1 did. Where sources have a folder of their own, look there.
S = "${UNPACKDIR}/rustc-${PV}-${RUST_BUILD_TARGET}"

do_install:prepend () {
    if [ "${UNPACKDIR}" != "${WORKDIR}" ] && [ -d ${UNPACKDIR}/rust-std ]; then
        ln -sfn ${UNPACKDIR}/rust-std ${WORKDIR}/rust-std
    fi
}
