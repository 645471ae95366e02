#!/bin/sh
# Builds the object: examples/fieldbus-watch/build.sh OUTDIR writes OUTDIR/fieldbus_watch.o.
# The same sources and the same compiler give the same bytes, wherever the repository lies.
set -eu

if [ $# -ne 1 ]; then
    echo "usage: $0 OUTDIR" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)/fieldbus_watch.o

clang=${CLANG:-clang}
if ! command -v "$clang" >/dev/null 2>&1; then
    echo "error: to build the object, install:" >&2
    echo "  apt-get install --no-install-recommends clang" >&2
    exit 1
fi

# -g gives the types from which maps are declared (BTF); the path in them is relative.
cd "$here/src"
"$clang" -target bpf -O2 -g -Wall -Wextra -Werror -Wno-missing-field-initializers \
    -fdebug-compilation-dir=. -c -o "$out.part" fieldbus_watch.c
mv "$out.part" "$out"
echo "$out"
