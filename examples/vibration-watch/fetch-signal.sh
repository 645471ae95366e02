#!/bin/sh
# Gets the recorded signal: examples/vibration-watch/fetch-signal.sh OUTDIR writes OUTDIR/signal.gse2.
# It comes from the wheel of obspy on PyPI and is not part of this repository; see NOTICE.md.
# A wheel that is already there is used: OBSPY_WHEEL=FILE, or any obspy wheel in OUTDIR.
set -eu

version=1.5.1
member=obspy/io/gse2/tests/data/loc_RJOB20050831023349.z
sha256=45032de12054800f4f5f48142bcc3ba09a33ba324863d0ff8e271e0d48a6e00c

if [ $# -ne 1 ]; then
    echo "usage: $0 OUTDIR" >&2
    exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
signal=$out/signal.gse2

matches() {
    [ -f "$1" ] && echo "$sha256  $1" | sha256sum --check --status
}

if matches "$signal"; then
    echo "$signal"
    exit 0
fi
if ! command -v python3 >/dev/null 2>&1; then
    echo "error: python3 is needed to get the signal" >&2
    exit 1
fi

wheel=${OBSPY_WHEEL:-$(find "$out" -maxdepth 1 -name "obspy-$version-*.whl" | head -n 1)}
if [ -z "$wheel" ]; then
    log=$out/pip.log
    if ! python3 -m pip download --no-deps --only-binary :all: --dest "$out" "obspy==$version" >"$log" 2>&1; then
        tail -n 3 "$log" >&2
        echo "error: could not download obspy $version from PyPI (is there a network and pip?)." >&2
        echo "Get its wheel elsewhere and run: OBSPY_WHEEL=obspy-$version-....whl $0 $1" >&2
        exit 1
    fi
    rm -f "$log"
    wheel=$(find "$out" -maxdepth 1 -name "obspy-$version-*.whl" | head -n 1)
fi

python3 - "$wheel" "$member" "$signal.part" <<'END'
import sys, zipfile
wheel, member, target = sys.argv[1:]
try:
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(member)
except (OSError, KeyError, zipfile.BadZipFile) as problem:
    sys.exit(f"error: {wheel}: {problem}")
with open(target, "wb") as out:
    out.write(data)
END
if ! matches "$signal.part"; then
    rm -f "$signal.part"
    echo "error: $member in $wheel does not have the SHA-256 $sha256" >&2
    exit 1
fi
mv "$signal.part" "$signal"
echo "$signal"
