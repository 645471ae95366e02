"""What bridge.py does that needs nothing of labgrid: in which order a board is flashed, how long its power stays off, images that
are packed, and who reads the standard input. test_steps.py tries it.
"""

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

# A supply's capacitors bridge a shorter cut, seconds.
OFF_SECONDS = 5.0
# Longest that a command of the environment file may take, seconds: an image goes over a slow line.
COMMAND_SECONDS = 3600
# Ways of flashing, and what may be said beside each.
WAYS = {"copy": set(), "command": {"before", "after"}, "storage": set()}
# What unpacks an image, by the end of its name.
UNPACK = {".zst": "zstd", ".xz": "xz", ".gz": "gzip", ".bz2": "bzip2"}


class Unsupported(Exception):
    """The environment file names nothing that can do it."""


def flash_plan(how, has_power):
    """The steps of flashing as `options.flash` describes it: pairs of a verb and what it is about. They end with the board off,
    where there is a power switch."""
    ways = [way for way in WAYS if how.get(way)]
    if not ways:
        raise Unsupported("the environment file does not say how the board is flashed (options: flash)")
    (way, *others), known = ways, {ways[0]} | WAYS[ways[0]]
    surplus = sorted(set(how) - known)
    if others or surplus:
        raise ValueError(f"options: flash: `{way}` goes with {sorted(WAYS[way]) or 'nothing'}, not with {', '.join(surplus)}")
    off = [("off", None)] if has_power else []
    if way != "command":
        # A card that is taken away from a board that runs, or a disk that changes below it, is a broken one.
        return [*off, (way, how[way])]
    if "before" not in how:
        # The system that takes the image is up, however that came about.
        return [("command", how["command"]), *off]
    on = [("on", None)] if has_power else []
    after = [("command", how["after"])] if "after" in how else []
    return [*off, ("command", how["before"]), *on, ("command", how["command"]), *off, *after]


def pause_before_on(off_at, now, off_seconds):
    """Seconds that a board that was switched off at `off_at` stays off yet."""
    return 0.0 if off_at is None else max(0.0, off_at + off_seconds - now)


def run_command(command, image, seconds=COMMAND_SECONDS):
    """Runs a command of the environment file."""
    command = command.replace("{image}", shlex.quote(str(image)))
    try:
        done = subprocess.run(command, shell=True, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"`{command}` did not end within {seconds} s") from None
    if done.returncode != 0:
        raise RuntimeError(f"`{command}` ended with {done.returncode}: {done.stderr.strip()[-500:]}")


@contextlib.contextmanager
def unpacked(image):
    """The image as it goes onto a disk: what Yocto makes is packed (`.wic.zst`)."""
    image = Path(image)
    program = UNPACK.get(image.suffix)
    if program is None:
        yield image
        return
    # Not /tmp, which may be memory.
    with tempfile.TemporaryDirectory(prefix="cnova-image-", dir=os.environ.get("TMPDIR", "/var/tmp")) as folder:
        plain = Path(folder) / image.stem
        with open(plain, "wb") as out:
            try:
                done = subprocess.run([program, "-dc", str(image)], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, text=True)
            except FileNotFoundError:
                raise RuntimeError(f"{image} is packed, and {program} is not installed") from None
        if done.returncode != 0:
            raise RuntimeError(f"{image} cannot be unpacked: {done.stderr.strip()[-500:]}")
        yield plain


def take_requests():
    """The standard input, for requests alone. Whatever else reads it then (labgrid's ManualPowerDriver asks a person, ssh reads
    what it finds) reads the terminal or, without one, nothing."""
    requests = os.fdopen(os.dup(0))
    try:
        other = os.open("/dev/tty", os.O_RDWR)
    except OSError:
        other = os.open(os.devnull, os.O_RDONLY)
    os.dup2(other, 0)
    os.close(other)
    sys.stdin = open(0, closefd=False)
    return requests
