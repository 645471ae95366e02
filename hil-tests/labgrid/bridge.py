"""Speaks for a board of a labgrid environment file: commands come as JSON objects, one a line, and so do the answers.

    bridge.py ENVIRONMENT-FILE

An answer is {"ok": VALUE}, {"unsupported": WHY} where the environment file names nothing that could do it, or {"failed": WHY}.
hil-tests/src/scenario/labgrid.rs is the other end; docs/HARDWARE.md says what an environment file may say.
"""

import json
import re
import shutil
import sys
import time

from labgrid import Environment
from labgrid.driver import SSHDriver
from labgrid.exceptions import NoDriverFoundError
from pexpect import EOF, TIMEOUT

from steps import OFF_SECONDS, Unsupported, flash_plan, pause_before_on, run_command, take_requests, unpacked

TARGET = "main"
# Longest a command in the board's shell may take, seconds.
COMMAND_SECONDS = 300
# Of a console, this many bytes are kept.
SAID_MAX = 1 << 20
# What Linux says last before it starts again.
LAST_WORDS = "reboot: |Restarting system"
# The same, where the output of a command is on the console, too: what then asks for an answer waits for none.
GOES_DOWN = re.compile(rb"reboot: Restarting system|Kernel panic - not syncing")
# How long a board that may be on its way up is looked at before the answer is no, seconds.
LOOK_SECONDS = 10
# Of a console, this much is looked through for GOES_DOWN beside what came new.
OVERLAP = 64


class WentDown(Exception):
    """The board restarted while it was asked."""


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
        # Whether a command is being run, whose answer the console brings.
        self.asking = False
        # When it was switched off; none while it is on, or nobody knows.
        self.off_at = None
        # The boot that was told to end.
        self.left_boot = None

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
                if self.asking and GOES_DOWN.search(self.said_bytes[-len(data) - OVERLAP :]):
                    self.asking = False
                    raise WentDown("the board restarted while it was asked")
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
        plan = flash_plan(self.options.get("flash") or {}, self.power is not None)
        with unpacked(image) as plain:
            for verb, about in plan:
                if verb == "on":
                    self.on()
                elif verb == "off":
                    self.off()
                elif verb == "command":
                    run_command(about, plain)
                elif verb == "copy":
                    shutil.copyfile(plain, self.env.config.resolve_path(about))
                elif verb == "storage":
                    self.flash_storage(plain)

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
        storage.write_image(str(image))
        self.target.deactivate(storage)
        if multiplexer is not None:
            multiplexer.set_mode("dut")

    def need_power(self):
        if self.power is None:
            raise Unsupported("the environment file names no power switch (a driver with labgrid's PowerProtocol)")
        return self.power

    def on(self):
        power = self.need_power()
        time.sleep(pause_before_on(self.off_at, time.monotonic(), float(self.options.get("off_seconds", OFF_SECONDS))))
        self.said_bytes.clear()
        self.listen()
        self.target.activate(power)
        power.on()
        self.off_at = None

    def off(self):
        power = self.need_power()
        # Whom a driver asks is not asked for what is done.
        if self.off_at is None:
            self.target.activate(power)
            power.off()
            self.off_at = time.monotonic()
        self.left_boot = None
        # A prompt that was still in a buffer must not be taken for one of the next boot.
        self.quiet()

    def wait_shell(self):
        self.listen()
        self.target.deactivate(self.shell)
        until = time.monotonic() + self.seconds()
        while True:
            try:
                self.target.activate(self.shell)
                if self.left_boot is None or self.boot() != self.left_boot:
                    self.left_boot = None
                    return
                why = TIMEOUT(f"the board did not restart within {self.seconds():.0f} s")
            except Exception as refused:
                # A board that is still booting; a serial line answers by itself (login_timeout), SSH refuses at once.
                why = refused
            self.target.deactivate(self.shell)
            if time.monotonic() > until:
                raise why
            time.sleep(2)

    def boot(self):
        """Which boot of the board this is."""
        out, _, code = self.shell.run("cat /proc/sys/kernel/random/boot_id", timeout=30)
        if code != 0 or not out:
            raise RuntimeError("the board does not say which boot it is (/proc/sys/kernel/random/boot_id)")
        return out[0].strip()

    def follow(self):
        """Whether a board that may start itself anew at any time can be asked now. It is not waited for."""
        self.listen()
        self.target.deactivate(self.shell)
        # Each driver has a patience of its own, for a boot; here the question is whether it is up already.
        of = "connection_timeout" if isinstance(self.shell, SSHDriver) else "login_timeout"
        patience = getattr(self.shell, of)
        setattr(self.shell, of, type(patience)(LOOK_SECONDS))
        try:
            self.target.activate(self.shell)
            return True
        except Exception:  # No prompt, no connection: it is on its way.
            return False
        finally:
            setattr(self.shell, of, patience)

    def run(self, command):
        if self.shell.state.name != "active" and not self.follow():
            raise RuntimeError("the board does not answer")
        self.asking = True
        try:
            out, err, _ = self.shell.run(command, timeout=COMMAND_SECONDS)
        except Exception:
            # What comes late must not be taken for the next answer.
            self.target.deactivate(self.shell)
            raise
        finally:
            self.asking = False
        return "\n".join(list(out) + list(err))

    def restart(self):
        if isinstance(self.shell, SSHDriver):
            return self.restart_by_ssh()
        self.said_bytes.clear()
        self.target.deactivate(self.shell)
        self.console.sendline("systemctl reboot")
        self.console.expect([LAST_WORDS], timeout=self.seconds())

    def restart_by_ssh(self):
        """Ends when the board does not answer any more, or as another boot."""
        self.left_boot = self.boot()
        try:
            self.shell.run("systemctl reboot", timeout=30)
        except Exception:
            pass  # The connection goes with the system.
        until = time.monotonic() + self.seconds()
        while self.is_left_boot():
            if time.monotonic() > until:
                raise TIMEOUT(f"the board did not restart within {self.seconds():.0f} s")
            time.sleep(1)
        self.target.deactivate(self.shell)

    def is_left_boot(self):
        """Whether the boot that was told to end still answers."""
        try:
            return self.follow() and self.boot() == self.left_boot
        except Exception:  # It went down between the two questions.
            return False

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


COMMANDS = {"about", "describe", "flash", "on", "off", "wait_shell", "follow", "run", "restart", "wait_for", "said"}


def answer(board, request):
    name = request.pop("do")
    if name not in COMMANDS:
        return {"failed": f"there is no command {name}"}
    try:
        return {"ok": getattr(board, name)(**request)}
    except Unsupported as why:
        return {"unsupported": str(why)}
    except EOFError:
        return {"failed": f"{name}: a person is asked, and there is no terminal: name a power switch, or run it in a terminal"}
    except Exception as why:  # Whatever a driver raises: the other end decides.
        return {"failed": f"{name}: {type(why).__name__}: {why}"[:4000]}


def main():
    speak, requests = sys.stdout, take_requests()
    # What drivers print is not an answer.
    sys.stdout = sys.stderr
    board, trouble = None, None
    try:
        board = Board(sys.argv[1])
    except Unsupported as why:
        trouble = {"unsupported": str(why)}
    except Exception as why:
        trouble = {"failed": f"{sys.argv[1]}: {type(why).__name__}: {why}"}
    for line in requests:
        said = trouble or answer(board, json.loads(line))
        speak.write(json.dumps(said, default=str) + "\n")
        speak.flush()
    if board is not None:
        board.env.cleanup()


if __name__ == "__main__":
    main()
