# Builds programs of the Cloudnova workspace with a Rust that is new enough, each by itself: where several packages are
# built at once cargo joins their features, and a runtime on a node would hold a compiler.
#
# CNOVA_CARGO_BUILDS: one word for each run of `cargo build`, its arguments with commas for blanks:
#     "-p,cnova-agent,--no-default-features -p,cnova-runtime-wasm"

# What the workspace says as rust-version; `make test` compares.
CNOVA_RUST_MINIMUM = "1.95"

# Prebuilt toolchains of meta-rust-bin where that layer is, else the release's own.
CNOVA_RUST_CLASS ?= "${@bb.utils.contains('BBFILE_COLLECTIONS', 'rust-bin-layer', 'cargo_bin', 'cargo', d)}"
# Not deferred: what follows changes what the class sets.
# nooelint: oelint.var.inherit.inherit_defer
inherit ${CNOVA_RUST_CLASS} pkgconfig

# The toolchain's version, found out from what is preferred. Say it where a toolchain comes some other way.
CNOVA_RUST_VERSION ?= "${@cnova_rust_version(d)}"

def cnova_version_key(version):
    import re
    return [int(number) for number in re.findall(r'\d+', version)[:3]]

def cnova_rust_version(d):
    """The version of Rust that would be built with; empty when nothing says it."""
    import glob
    if d.getVar('CNOVA_RUST_CLASS') != 'cargo_bin':
        return (d.getVar('PREFERRED_VERSION_rust-native') or d.getVar('RUSTVERSION') or '').rstrip('%')
    preferred = d.getVar('PREFERRED_VERSION_rust-bin-cross-%s' % d.getVar('TARGET_ARCH'))
    if preferred:
        return preferred.rstrip('%')
    found = []
    for folder in d.getVar('BBPATH').split(':'):
        for recipe in glob.glob(os.path.join(folder, 'recipes-devtools/rust/rust-bin-cross_*.bb')):
            version = os.path.basename(recipe)[len('rust-bin-cross_'):-len('.bb')]
            if version[0].isdigit():
                found.append(version)
    return max(found, key=cnova_version_key, default='')

python () {
    version, least = d.getVar('CNOVA_RUST_VERSION'), d.getVar('CNOVA_RUST_MINIMUM')
    if version and cnova_version_key(version) < cnova_version_key(least):
        raise bb.parse.SkipRecipe(
            'needs Rust >= %s, and this build has %s: add the layer meta-rust-bin '
            '(https://github.com/rust-embedded/meta-rust-bin) or any layer that provides Rust >= %s; if a toolchain comes '
            'some other way, say its version in CNOVA_RUST_VERSION' % (least, version, least))
}

# Crates are unpacked below UNPACKDIR by bitbake. `cargo` sets itself up for them, `cargo_bin` does not.
export CARGO_HOME = "${UNPACKDIR}/cargo_home"
EXTRA_CARGO_FLAGS = "--frozen"
CARGO_BUILD_FLAGS:append = " $cnova_cargo_arguments"

# Debug symbols are split off by bitbake.
export CARGO_PROFILE_RELEASE_STRIP = "false"

CNOVA_BUILT = "${@d.getVar('CARGO_BINDIR' if d.getVar('CNOVA_RUST_CLASS') == 'cargo_bin' else 'CNOVA_BUILT_BY_CARGO')}"
CNOVA_BUILT_BY_CARGO = "${B}/target/${CARGO_TARGET_SUBDIR}"

cnova_vendor () {
    printf '[source.crates-io]\nreplace-with = "bitbake"\n\n[source.bitbake]\ndirectory = "%s"\n' \
        ${UNPACKDIR}/cargo_home/bitbake > ${CARGO_HOME}/config.toml
}

do_configure:append () {
    if [ "${CNOVA_RUST_CLASS}" = cargo_bin ]; then
        cnova_vendor
    fi
}

do_compile () {
    # What was tested is the SQLite that rusqlite brings: a database that nodes keep for years must not change with the
    # distribution. Its version is in the bill of materials as the crate libsqlite3-sys.
    export LIBSQLITE3_SYS_USE_PKG_CONFIG=0
    for build in ${CNOVA_CARGO_BUILDS}; do
        cnova_cargo_arguments="$(echo "$build" | tr ',' ' ')"
        ${CNOVA_RUST_CLASS}_do_compile
    done
}
