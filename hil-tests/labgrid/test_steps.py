"""What steps.py does, tried without labgrid and without a board: `make bridge-test`, which is part of `make test`."""

import os
import pathlib
import pty
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import unittest

import steps

HERE = pathlib.Path(__file__).resolve().parent
# Longest that a program of a test may take, seconds.
PATIENCE = 30
# Reads one request, asks a person as labgrid does, reads the next request.
ASKS = textwrap.dedent("""
    import steps
    requests = steps.take_requests()
    print(requests.readline().strip())
    try:
        print("a person said", input("Turn it ON and press enter"))
    except EOFError:
        print("nobody is there")
    print(requests.readline().strip())
""")


class FlashPlan(unittest.TestCase):
    def test_every_way_ends_with_the_board_off(self):
        ways = [
            {"copy": "disk.img"}, {"storage": True}, {"command": "dd"}, {"before": "net", "command": "dd"},
            {"before": "net", "command": "dd", "after": "disk"},
        ]
        for how in ways:
            power = [verb for verb, _ in steps.flash_plan(how, True) if verb in ("on", "off")]
            self.assertEqual(power[-1], "off", how)
            self.assertNotIn("on", [verb for verb, _ in steps.flash_plan(how, False)], how)
            self.assertNotIn("off", [verb for verb, _ in steps.flash_plan(how, False)], how)

    def test_a_card_is_taken_from_a_board_that_is_off(self):
        self.assertEqual(steps.flash_plan({"storage": True}, True), [("off", None), ("storage", True)])
        self.assertEqual(steps.flash_plan({"copy": "d"}, True), [("off", None), ("copy", "d")])

    def test_a_rescue_system_that_is_up_stays_up_until_the_image_is_there(self):
        self.assertEqual(steps.flash_plan({"command": "dd"}, True), [("command", "dd"), ("off", None)])

    def test_before_brings_up_the_rescue_system_and_after_takes_it_away(self):
        plan = steps.flash_plan({"before": "net", "command": "dd", "after": "disk"}, True)
        wanted = [("off", None), ("command", "net"), ("on", None), ("command", "dd"), ("off", None), ("command", "disk")]
        self.assertEqual(plan, wanted)
        self.assertEqual(steps.flash_plan({"before": "net", "command": "dd"}, False), [("command", "net"), ("command", "dd")])

    def test_what_is_wrong_is_refused(self):
        with self.assertRaisesRegex(steps.Unsupported, "options: flash"):
            steps.flash_plan({}, True)
        with self.assertRaisesRegex(ValueError, "befor"):
            steps.flash_plan({"command": "dd", "befor": "net"}, True)
        with self.assertRaisesRegex(ValueError, "before"):
            steps.flash_plan({"storage": True, "before": "net"}, True)
        with self.assertRaisesRegex(ValueError, "copy"):
            steps.flash_plan({"command": "dd", "copy": "d"}, True)


class Pause(unittest.TestCase):
    def test_what_is_left_of_it(self):
        self.assertEqual(steps.pause_before_on(None, 100.0, 5.0), 0.0)
        self.assertEqual(steps.pause_before_on(100.0, 102.0, 5.0), 3.0)
        self.assertEqual(steps.pause_before_on(100.0, 200.0, 5.0), 0.0)
        self.assertEqual(steps.pause_before_on(100.0, 100.0, 0.0), 0.0)


class Commands(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)

    def test_a_command_gets_the_image(self):
        image = self.root / "an image.img"
        image.write_bytes(b"image")
        steps.run_command(f"cat < {{image}} > '{self.root}/disk'", image)
        self.assertEqual((self.root / "disk").read_bytes(), b"image")

    def test_a_command_that_fails_says_what_it_said(self):
        with self.assertRaisesRegex(RuntimeError, "ended with 3: no such disk"):
            steps.run_command("echo no such disk >&2; exit 3", "image")

    def test_a_command_that_hangs_is_ended(self):
        begin = time.monotonic()
        with self.assertRaisesRegex(RuntimeError, "did not end within 0.2 s"):
            steps.run_command("exec sleep 20", "image", seconds=0.2)
        self.assertLess(time.monotonic() - begin, 10)

    def test_an_image_that_is_packed_is_unpacked(self):
        plain = self.root / "board.wic"
        plain.write_bytes(os.urandom(5000) + bytes(100000))
        with steps.unpacked(plain) as image:
            self.assertEqual(image, plain)
        tried = 0
        for suffix, program in steps.UNPACK.items():
            if not shutil.which(program):
                continue
            tried += 1
            packed = self.root / f"board.wic{suffix}"
            with open(packed, "wb") as out:
                subprocess.run([program, "-c", plain], stdout=out, check=True)
            with steps.unpacked(packed) as image:
                self.assertEqual(image.name, "board.wic")
                self.assertEqual(image.read_bytes(), plain.read_bytes())
            self.assertFalse(image.exists())
            packed.write_bytes(packed.read_bytes()[:-40])
            with self.assertRaisesRegex(RuntimeError, "cannot be unpacked"), steps.unpacked(packed):
                pass
        self.assertGreater(tried, 0, "none of what unpacks is installed")


class StandardInput(unittest.TestCase):
    def asks(self, **options):
        return subprocess.Popen(
            [sys.executable, "-c", ASKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=HERE, **options
        )

    def test_without_a_terminal_nobody_reads_the_requests_and_nothing_hangs(self):
        child = self.asks(start_new_session=True)
        said, _ = child.communicate("first\nsecond\n", timeout=PATIENCE)
        self.assertEqual([line.removeprefix("Turn it ON and press enter") for line in said.splitlines()], ["first", "nobody is there", "second"])

    def test_a_person_answers_on_the_terminal(self):
        screen, terminal = pty.openpty()
        self.addCleanup(os.close, screen)
        name = os.ttyname(terminal)

        def take_terminal():
            os.setsid()
            # The first terminal that the leader of a session opens is its own.
            os.close(os.open(name, os.O_RDWR))

        child = self.asks(preexec_fn=take_terminal)
        os.close(terminal)
        os.write(screen, b"done\n")
        said, _ = child.communicate("first\nsecond\n", timeout=PATIENCE)
        self.assertEqual(said.replace("Turn it ON and press enter", "").split("\n"), ["first", "a person said done", "second", ""])


if __name__ == "__main__":
    unittest.main()
