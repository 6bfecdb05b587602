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
from dipy_ldm._utils.checks import InputError, choose, write_options
from dipy_ldm._utils.progress import reworded
from dipy_ldm._utils.signals import Terminated, stop_deferred
from dipy_ldm.workflows._config import ConfigParser
from dipy_ldm.workflows._options import option_writer
from dipy_ldm.workflows._outputs import name_written

# Exit status 1: a check found something red, or an audit found copies.
_FAILED, _ERROR = 1, 2
_REQUIRED = inspect.Parameter.empty
_RESUME = "Add --resume to go on."
# Messages of oneDNN, JAX and PyTorch when memory is exhausted.
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
        _exit_with(verdict, _FAILED)


def _run(flow):
    """Run a workflow; explain errors that users can fix."""
    for library in ("matplotlib", "PIL", "h5py", "absl", "tensorflow", "jax"):
        logging.getLogger(library).setLevel(logging.WARNING)
    # DIPY's own returns INFO for every name; tests/test_upstream.py fails once it is
    # mended.
    flow_runner.get_level = _log_level
    base.add_default_args_to_docstring = _add_defaults
    flow_runner.IntrospectiveArgumentParser = ConfigParser
    options = inspect.signature(flow.run).parameters
    write_option = option_writer(options)
    reword = partial(write_options, write_option=write_option)
    reword_logs = reworded("dipy_ldm", reword)
    version = {"action": "version", "version": f"dipy_ldm {__version__}"}
    try:
        with stop_deferred(_stop), reword_logs:
            flow_runner.run_flow(flow, extra_args={"version": version})
    except ConnectionError as error:
        _exit_with(f"{error} {_RESUME}", _ERROR, at_once=True)
    except (InputError, OSError) as error:
        _exit_with(_describe(error, write_option), _ERROR)
    except Terminated as end:
        _exit_with(f"{end} {_RESUME}", end.code)
    except Exception as error:
        if not _lacks_memory(error):
            # As Python would, but for the status.
            sys.excepthook(type(error), error, error.__traceback__)
            sys.exit(_ERROR)
        _exit_with(_out_of_memory(options), _ERROR)
    except KeyboardInterrupt as error:
        describe = getattr(flow, "when_interrupted", lambda: "interrupted.")
        _leave_interrupted(describe(), error)


def _describe(error, write_option):
    """Return the message of an error, with names of options as the command has them."""
    if isinstance(error, InputError):
        return error.describe(write_option)
    return write_options(str(error), write_option)


def _log_level(name):
    """Return a log level by its name."""
    return choose("log_level", name.upper(), logging.getLevelNamesMapping())


def _add_defaults(description, run):
    """Add defaults to the help as DIPY does, except None, False and empty ones."""
    parameters = inspect.signature(run).parameters
    for name, _, text in description["Parameters"]:
        default = parameters[name].default
        if name == "out_dir":
            text.append("(default: current directory)")
        elif not any(default is empty for empty in (None, False, "", _REQUIRED)):
            text.append(f"(default: {default})")


class _Stopped(KeyboardInterrupt):
    """Raised on a signal that nothing else handles, such as a training's checkpoint."""


def _stop(number):
    raise _Stopped(number)


def _leave_interrupted(sentence, error):
    """Exit with the status of Ctrl-C or of a signal."""
    if isinstance(error, _Stopped):
        (number,) = error.args
        stopped = f"stopped by {signal.Signals(number).name}"
        _exit_with(sentence.replace("interrupted", stopped, 1), 128 + number)
    _exit_with(sentence, 130)


def _lacks_memory(error):
    """Return whether an error means that memory is exhausted, on any back-end."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ in ("ResourceExhaustedError", "OutOfMemoryError")
        or any(words in str(error) for words in _NO_MEMORY)
    )


def _out_of_memory(options):
    """Return the message, with the options of a command that reduce its memory."""
    names = [f"--{name}" for name in ("batch_size", "patch", "tile") if name in options]
    cure = f", or give a smaller {' or '.join(names)}" if names else ""
    return f"out of memory; free some{cure}."


def _exit_with(sentence, status, at_once=False):
    # The log file of each worker has the traceback.
    logging.getLogger("dipy_ldm").debug(sentence, exc_info=True)
    if error := sys.exception():
        # A progress bar that its frames hold would be redrawn below the message.
        traceback.clear_frames(error.__traceback__)
    with suppress(OSError):  # the terminal may be closed
        sys.stderr.write(f"\n{os.path.basename(sys.argv[0])}: {sentence}\n")
    if at_once:
        # TensorFlow's connections to a lost machine could crash or hang a normal exit.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
