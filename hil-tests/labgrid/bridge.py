"""Speaks for a board of a labgrid environment file: commands come as JSON objects, one a line, and so do the answers.

    bridge.py ENVIRONMENT-FILE

An answer is {"ok": VALUE}, {"unsupported": WHY} where the environment file names nothing that could do it, or {"failed": WHY}.
hil-tests/src/scenario/labgrid.rs is the other end; docs/HARDWARE.md says what an environment file may say.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
import time

from labgrid import Environment
from labgrid.driver import SSHDriver
from labgrid.exceptions import NoDriverFoundError
from pexpect import EOF, TIMEOUT

TARGET = "main"
# Longest a command in the board's shell may take, seconds.
COMMAND_SECONDS = 300
# Of a console, this many bytes are kept.
SAID_MAX = 1 << 20
# What Linux says last before it starts again.
LAST_WORDS = "reboot: |Restarting system"


class Unsupported(Exception):
    """The environment file names nothing that can do it."""


class Board:
    def __init__(self, file):
        self.env = Environment(file)
        self.target = self.env.get_target(TARGET)
        if self.target is None:
            raise Unsupported(f"{file} describes no target `{TARGET}`")
        self.options = self.env.config.data["targets"][TARGET].get("options", {})
        self.said_bytes = bytearray()
        self.power = self.driver("PowerProtocol")
        self.console = self.driver("ConsoleProtocol")
        self.shell = self.driver("CommandProtocol")
        if self.shell is None:
            raise Unsupported(f"{file} names no driver for a shell: ShellDriver (on a console) or SSHDriver")
        self.listening = None

    def driver(self, protocol):
        try:
            return self.target.get_driver(protocol, activate=False)
        except NoDriverFoundError:
            return None

    def seconds(self):
        return float(self.options.get("patience", 300))

    def listen(self):
        """The console from now on: all that it says is kept."""
        if self.console is None:
            return
        self.target.activate(self.console)
        if self.listening is not self.console:
            inner = self.console._read

            def read(*args, **kwargs):
                data = inner(*args, **kwargs)
                self.said_bytes.extend(data)
                del self.said_bytes[:-SAID_MAX]
                return data

            self.console._read = read
            self.listening = self.console

    def quiet(self):
        for driver in (self.shell, self.console):
            if driver is not None:
                self.target.deactivate(driver)

    # ---- commands

    def about(self):
        names = sorted({type(d).__name__ for d in self.target.drivers})
        features = self.target.get_features() if hasattr(self.target, "get_features") else set()
        return {"drivers": ", ".join(names), "features": ", ".join(sorted(features or []))}

    def describe(self):
        return self.options

    def flash(self, image):
        how = self.options.get("flash") or {}
        if "copy" in how:
            shutil.copyfile(image, self.env.config.resolve_path(how["copy"]))
        elif "command" in how:
            command = how["command"].replace("{image}", shlex.quote(image))
            done = subprocess.run(command, shell=True, capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(f"`{command}` ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        elif "storage" in how:
            self.flash_storage(image)
        else:
            raise Unsupported("the environment file does not say how the board is flashed (options: flash)")

    def flash_storage(self, image):
        """A stick or card that a multiplexer hands to this machine and back."""
        multiplexer = self.driver("USBSDMuxDriver") or self.driver("USBSDWireDriver") or self.driver("LXAUSBMuxDriver")
        storage = self.driver("USBStorageDriver")
        if storage is None:
            raise Unsupported("the environment file names no USBStorageDriver to flash with")
        if multiplexer is not None:
            self.target.activate(multiplexer)
            multiplexer.set_mode("host")
            time.sleep(2)
        self.target.activate(storage)
        storage.write_image(image)
        self.target.deactivate(storage)
        if multiplexer is not None:
            multiplexer.set_mode("dut")

    def need_power(self):
        if self.power is None:
            raise Unsupported("the environment file names no power switch (a driver with labgrid's PowerProtocol)")
        return self.power

    def on(self):
        power = self.need_power()
        self.said_bytes.clear()
        self.listen()
        self.target.activate(power)
        power.on()

    def off(self):
        power = self.need_power()
        self.target.activate(power)
        power.off()
        # A prompt that was still in a buffer must not be taken for one of the next boot.
        self.quiet()

    def wait_shell(self):
        self.listen()
        self.target.deactivate(self.shell)
        until = time.monotonic() + self.seconds()
        while True:
            try:
                return self.target.activate(self.shell)
            except Exception:
                # A board that is still booting; a serial line answers by itself (login_timeout), SSH refuses at once.
                if time.monotonic() > until:
                    raise
                time.sleep(2)

    def run(self, command):
        out, err, _ = self.shell.run(command, timeout=COMMAND_SECONDS)
        return "\n".join(list(out) + list(err))

    def restart(self):
        if isinstance(self.shell, SSHDriver):
            try:
                self.shell.run("systemctl reboot")
            except Exception:
                pass  # The connection goes with the system.
            self.target.deactivate(self.shell)
            time.sleep(float(self.options.get("shutdown_seconds", 30)))
            return
        self.said_bytes.clear()
        self.target.deactivate(self.shell)
        self.console.sendline("systemctl reboot")
        self.console.expect([LAST_WORDS], timeout=self.seconds())

    def wait_for(self, text):
        if self.console is None:
            raise Unsupported("the environment file names no console")
        until = time.monotonic() + self.seconds()
        while text.encode() not in self.said_bytes:
            if time.monotonic() > until:
                raise TIMEOUT(f"not within {self.seconds():.0f} s: {text}")
            try:
                self.console.expect([re.escape(text)], timeout=2)
            except TIMEOUT:
                pass

    def said(self):
        if self.console is not None and self.console.state.name == "active":
            try:
                self.console.expect(["a text that nobody says"], timeout=0.2)
            except (TIMEOUT, EOF):
                pass
        return self.said_bytes.decode(errors="replace").replace("\r", "")


COMMANDS = {"about", "describe", "flash", "on", "off", "wait_shell", "run", "restart", "wait_for", "said"}


def answer(board, request):
    name = request.pop("do")
    if name not in COMMANDS:
        return {"failed": f"there is no command {name}"}
    try:
        return {"ok": getattr(board, name)(**request)}
    except Unsupported as why:
        return {"unsupported": str(why)}
    except Exception as why:  # Whatever a driver raises: the other end decides.
        return {"failed": f"{name}: {type(why).__name__}: {why}"[:4000]}


def main():
    speak = sys.stdout
    # What drivers print is not an answer.
    sys.stdout = sys.stderr
    board, trouble = None, None
    try:
        board = Board(sys.argv[1])
    except Unsupported as why:
        trouble = {"unsupported": str(why)}
    except Exception as why:
        trouble = {"failed": f"{sys.argv[1]}: {type(why).__name__}: {why}"}
    for line in sys.stdin:
        said = trouble or answer(board, json.loads(line))
        speak.write(json.dumps(said, default=str) + "\n")
        speak.flush()
    if board is not None:
        board.env.cleanup()


if __name__ == "__main__":
    main()
