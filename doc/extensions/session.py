"""Worked examples of the commands, run when the documentation is built.

``doc/commands/session.sh`` is one session at a terminal, in parts that begin with
``#: name``. It runs in the folder ``doc/commands/ran``, and again when that is gone,
which ``make doc`` sees to. ``.. ran:: name`` shows the commands of a part and what they
answered; pictures that they wrote are shown by ``.. figure:: ran/name.png``.
"""

import json
import os
from pathlib import Path
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time

from docutils import nodes
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "doc/commands/session.sh"
FOLDER = ROOT / "doc/commands/ran"
RECORD = FOLDER / "session.json"

log = logging.getLogger(__name__)


class Ran(SphinxDirective):
    """Show the commands of a part of the session, and their answers."""

    required_arguments = 1
    option_spec = {}

    def run(self):
        self.env.note_dependency(str(SCRIPT))
        self.env.note_dependency(str(RECORD))
        name = self.arguments[0]
        parts = read_parts(SCRIPT.read_text())
        if name not in parts:
            raise self.error(f"{SCRIPT.name} has no part {name}")
        answers = recorded()
        text = "\n".join(f"$ {c}\n{answers.get(c, '')}" for c in parts[name])
        text = text.rstrip()
        # Only where source and text are the same is it highlighted.
        shown = nodes.literal_block(text, text, language="console")
        shown["classes"].append("terminal")
        return [shown]


def run_session(app):
    """Run the session, unless it ran already."""
    # Where examples are left out of a build, so is what they answer.
    if RECORD.exists() or str(app.config.plot_gallery) == "0":
        return
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    (FOLDER / "doc").symlink_to(ROOT / "doc")  # as in the folder of the repository
    answers = {}
    for name, commands in read_parts(SCRIPT.read_text()).items():
        start = time.monotonic()
        answers |= {command: answer(command) for command in commands}
        log.info("session: %s took %.0f s", name, time.monotonic() - start)
    RECORD.write_text(json.dumps(answers))


def recorded():
    """Return the answer to each command, as far as they ran."""
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def read_parts(text):
    """Split a session into parts, by their names, and each of them into commands.

    A command goes on after a backslash, and within quotes.
    """
    _, *pieces = re.split(r"^#: (\w+)\n", text, flags=re.MULTILINE)
    return {
        name: list(_commands(body.strip()))
        for name, body in zip(pieces[::2], pieces[1::2])
    }


def _commands(body):
    command = ""
    for line in body.split("\n"):
        command += line
        try:
            shlex.split(command)
        except ValueError:  # a quote or a backslash is open
            command += "\n"
        else:
            yield command
            command = ""


def answer(command):
    """Run a command, and return what a terminal shows when it has ended."""
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=FOLDER,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    # A progress bar returns to the start of its line: its last state is what stays.
    # (Reading as text would make lines of these states.)
    told = done.stdout.decode().split("\n")
    lines = [line.split("\r")[-1].rstrip() for line in told]
    shown = "\n".join(lines).strip("\n")
    # Some shall be refused, which `||` forgives, but none shall break.
    if done.returncode or "Traceback" in shown:
        raise ExtensionError(f"{SCRIPT.name}: {command}\n{shown}")
    return f"{shown}\n" if shown else ""


def environment():
    """Return an environment with our commands, a terminal's width and a cache."""
    scripts = sysconfig.get_path("scripts"), str(Path(sys.executable).parent)
    return os.environ | {
        "PATH": os.pathsep.join([*scripts, os.environ["PATH"]]),
        "COLUMNS": "88",
        "XDG_CACHE_HOME": str(FOLDER / "cache"),
    }


def setup(app):
    """Add the directive, and run the session before pages are read."""
    app.add_directive("ran", Ran)
    app.connect("builder-inited", run_session)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
