SUMMARY = "Whom a Cloudnova node trusts, and where it begins"
DESCRIPTION = "The signed trust bundle and the bootstrap that an image is flashed with. They are the owner's, and are given by variables when the image is built; without them there is no image."
HOMEPAGE = "https://cnova.example/edge"
BUGTRACKER = "https://cnova.example/edge/issues"
SECTION = "base"
LICENSE = "CLOSED"

# Absolute paths on the building machine:
#   CNOVA_TRUST_BUNDLE      what `cnova trust init` made (trust-bundle.cose); required
#   CNOVA_BOOTSTRAP         TOML with [parent], and [enrolment] or none, for the agent; required
#   CNOVA_GATEWAY_BOOTSTRAP the same for a gateway; only where the image has one
#   CNOVA_ENROLMENT_TOKEN   what `cnova enroll token` made; not needed where the hub knows the TPMs
CNOVA_TRUST_BUNDLE ??= ""
CNOVA_BOOTSTRAP ??= ""
CNOVA_GATEWAY_BOOTSTRAP ??= ""
CNOVA_ENROLMENT_TOKEN ??= ""

PACKAGE_ARCH = "${MACHINE_ARCH}"

INHIBIT_DEFAULT_DEPS = "1"
do_configure[noexec] = "1"
do_compile[noexec] = "1"

def cnova_given(d):
    """The files that are given, with where each goes and its mode."""
    return [(name, d.getVar(name), target, mode) for name, target, mode in (
        ('CNOVA_TRUST_BUNDLE', 'trust-bundle.cose', '0644'),
        ('CNOVA_BOOTSTRAP', 'agent.d/10-bootstrap.toml', '0644'),
        ('CNOVA_GATEWAY_BOOTSTRAP', 'gateway.d/10-bootstrap.toml', '0644'),
        ('CNOVA_ENROLMENT_TOKEN', 'enrolment-token', '0600'),
    ) if d.getVar(name)]

python () {
    missing = [name for name in ('CNOVA_TRUST_BUNDLE', 'CNOVA_BOOTSTRAP') if not d.getVar(name)]
    if missing:
        raise bb.parse.SkipRecipe(
            '%s not set: an image is flashed with a trust bundle (`cnova trust init DIR` makes trust-bundle.cose) and a '
            'bootstrap (TOML with [parent] and [enrolment]). Put the absolute paths of both files into local.conf; '
            'docs/YOCTO.md shows them' % ' and '.join(missing))
    for name, path, _, _ in cnova_given(d):
        if not os.path.isabs(path):
            raise bb.parse.SkipRecipe('%s = "%s": an absolute path is needed' % (name, path))
        if not os.path.isfile(path):
            raise bb.parse.SkipRecipe('%s = "%s": there is no such file' % (name, path))
        for task in ('do_check_given', 'do_install'):
            d.appendVarFlag(task, 'file-checksums', ' %s:True' % path)
}

python do_check_given () {
    # Of Python 3.11; releases build on older ones, too.
    try:
        import tomllib
    except ImportError:
        tomllib = None
    # CBOR tag 98: COSE_Sign (RFC 9052, section 2). Whether its signatures hold is the agent's to judge.
    cose_sign = b'\xd8\x62'
    with open(d.getVar('CNOVA_TRUST_BUNDLE'), 'rb') as bundle:
        if bundle.read(len(cose_sign)) != cose_sign:
            bb.fatal('CNOVA_TRUST_BUNDLE: %s is no trust bundle (no COSE_Sign message): take the trust-bundle.cose that '
                     '`cnova trust init` made' % d.getVar('CNOVA_TRUST_BUNDLE'))
    for name in ('CNOVA_BOOTSTRAP', 'CNOVA_GATEWAY_BOOTSTRAP'):
        path = d.getVar(name)
        if not path:
            continue
        if 'PRIVATE KEY' in open(path).read():
            bb.fatal('%s: %s holds a private key: keys are made on the device' % (name, path))
        if tomllib is None:
            bb.warn('%s: %s is not looked at: that takes Python 3.11' % (name, path))
            continue
        try:
            with open(path, 'rb') as file:
                settings = tomllib.load(file)
        except tomllib.TOMLDecodeError as error:
            bb.fatal('%s: %s: %s' % (name, path, error))
        for key in ('node', 'address'):
            if not isinstance(settings.get('parent', {}).get(key), str):
                bb.fatal('%s: %s: [parent] %s is missing: a node must know whom it hangs below' % (name, path, key))
}
addtask check_given after do_fetch before do_install

def cnova_install_given(d):
    """What puts the files into the package."""
    import shlex
    return '\n    '.join('install -D -m %s %s ${D}${sysconfdir}/cnova/%s' % (mode, shlex.quote(path), target)
                         for _, path, target, mode in cnova_given(d))

do_install () {
    ${@cnova_install_given(d)}
}

FILES:${PN} += "${sysconfdir}/cnova"
