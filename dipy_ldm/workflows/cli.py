"""The console scripts."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
import inspect
import logging
import os
import signal
import sys
import traceback

from dipy.workflows import base, flow_runner
from dipy.workflows.workflow import Workflow

from dipy_ldm import __version__
from dipy_ldm._utils.checks import InputError, choose
from dipy_ldm._utils.progress import reworded
from dipy_ldm._utils.signals import Terminated, stop_deferred
from dipy_ldm.workflows._config import ConfigParser
from dipy_ldm.workflows._options import as_command_line
from dipy_ldm.workflows._outputs import name_written

# 1 is the answer of a check that found something red, and of an audit, copies.
_BAD_NEWS, _ERROR = 1, 2
_REQUIRED = inspect.Parameter.empty
_RESUME = "Add --resume to go on."
# How oneDNN, JAX and PyTorch say that memory is used up.
_NO_MEMORY = (
    "could not create a primitive",
    "RESOURCE_EXHAUSTED",
    "DefaultCPUAllocator: can't allocate memory",
)


def _command(module: str) -> Callable[[], None]:
    """Return the function that runs the command of a module."""

    def main():
        flows = import_module(f"dipy_ldm.workflows.{module}")
        run(getattr(flows, f"{module.title()}LDMFlow")())

    return main


train = _command("train")
generate = _command("generate")
denoise = _command("denoise")
inpaint = _command("inpaint")
evaluate = _command("evaluate")
audit = _command("audit")


def check() -> None:
    """Run ``dipy_check_ldm``, which is ``dipy_train_ldm --check``."""
    sys.argv.append("--check")
    train()


def run(flow: Workflow) -> None:
    """Run a workflow on the command line; the status is 1 if it has a verdict.

    Parameters
    ----------
    flow : dipy.workflows.workflow.Workflow
        Its ``run`` defines the command line.
    """
    _run(flow)
    if outputs := getattr(flow, "outputs", ()):
        logging.getLogger(__name__).info("%s", name_written(outputs))
    if verdict := getattr(flow, "verdict", ""):
        _leave(verdict, _BAD_NEWS)


def _run(flow):
    """Run a workflow; explain errors that users can fix."""
    for talkative in ("matplotlib", "PIL", "h5py", "absl", "tensorflow", "jax"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    # DIPY's own answers every name with INFO; when this may go, tests/test_upstream.py
    # tells.
    flow_runner.get_level = _level
    base.add_default_args_to_docstring = _add_defaults
    flow_runner.IntrospectiveArgumentParser = ConfigParser
    options = inspect.signature(flow.run).parameters
    said = reworded("dipy_ldm", partial(as_command_line, options=options))
    version = {"action": "version", "version": f"dipy_ldm {__version__}"}
    try:
        with stop_deferred(_stop), said:
            flow_runner.run_flow(flow, extra_args={"version": version})
    except ConnectionError as error:
        _leave(f"{error} {_RESUME}", _ERROR, at_once=True)
    except (InputError, OSError) as error:
        _leave(as_command_line(str(error), options), _ERROR)
    except Terminated as end:
        _leave(f"{end} {_RESUME}", end.code)
    except Exception as error:
        if not _lacks_memory(error):
            # As Python would, but for the status.
            sys.excepthook(type(error), error, error.__traceback__)
            sys.exit(_ERROR)
        _leave(_give_less(options), _ERROR)
    except KeyboardInterrupt as error:
        say = getattr(flow, "when_interrupted", lambda: "interrupted.")
        _leave_interrupted(say(), error)


def _level(name):
    """Return a log level by its name."""
    return choose("log_level", name.upper(), logging.getLevelNamesMapping())


def _add_defaults(description, run):
    """Add defaults to the help as DIPY does, but for those that say nothing."""
    parameters = inspect.signature(run).parameters
    for name, _, text in description["Parameters"]:
        default = parameters[name].default
        if name == "out_dir":
            text.append("(default: current directory)")
        elif not any(default is nothing for nothing in (None, False, "", _REQUIRED)):
            text.append(f"(default: {default})")


class _Stopped(KeyboardInterrupt):
    """The end that a signal asks for where there is no better moment to wait for."""


def _stop(number):
    raise _Stopped(number)


def _leave_interrupted(sentence, error):
    """Exit with the status of Ctrl-C or of a signal."""
    if isinstance(error, _Stopped):
        (number,) = error.args
        stopped = f"stopped by {signal.Signals(number).name}"
        _leave(sentence.replace("interrupted", stopped, 1), 128 + number)
    _leave(sentence, 130)


def _lacks_memory(error):
    """Return whether an error is that memory is used up, whoever needed it."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ in ("ResourceExhaustedError", "OutOfMemoryError")
        or any(words in str(error) for words in _NO_MEMORY)
    )


def _give_less(options):
    """Name the options of a command that reduce its memory."""
    names = [f"--{name}" for name in ("batch_size", "patch", "tile") if name in options]
    return f"the memory is used up; free some, or give a smaller {' or '.join(names)}."


def _leave(sentence, status, at_once=False):
    # Of several workers, each keeps the whole story in a file of its own.
    logging.getLogger("dipy_ldm").debug(sentence, exc_info=True)
    if error := sys.exception():
        # A bar that its frames hold would be drawn once more, below the last word.
        traceback.clear_frames(error.__traceback__)
    with suppress(OSError):  # where the terminal is gone
        sys.stderr.write(f"\n{os.path.basename(sys.argv[0])}: {sentence}\n")
    if at_once:
        # What TensorFlow still has open to a machine that is gone would have the last
        # word, or none.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
