# meta-rust-bin unpacks into WORKDIR, as releases before 5.1 did. Where sources have a folder of their own, look there.
python () {
    source = d.getVar('S', False)
    if source.startswith('${WORKDIR}/'):
        d.setVar('S', source.replace('${WORKDIR}', '${UNPACKDIR}', 1))
}
