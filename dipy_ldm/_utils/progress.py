"""Progress bars, which log messages don't tear, and filters of such messages."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
import logging
from pathlib import Path
import sys
import warnings

from tqdm import TqdmWarning

from dipy_ldm._utils.values import listed

with warnings.catch_warnings():
    # Bars of notebooks are made of widgets; without, they are those of a terminal.
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm as usual


class tqdm(usual):  # noqa: N801  # the name that everybody knows
    """A bar of tqdm above which what is logged is written."""

    _handler: "_AboveBars | None" = None

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        consoles = [h for h in logging.root.handlers if _is_console(h)]
        if consoles and not self.disable:
            self._handler = _AboveBars(consoles)
            rest = [h for h in logging.root.handlers if h not in consoles]
            logging.root.handlers = [*rest, self._handler]

    def close(self) -> None:
        """Close the bar, and let handlers of logs write again."""
        super().close()
        # A bar that an error has left may be closed much later, when they are others.
        handlers = logging.root.handlers
        if self._handler in handlers:
            rest = [h for h in handlers if h is not self._handler]
            logging.root.handlers = rest + self._handler.consoles
        self._handler = None


class _AboveBars(logging.StreamHandler):
    """Writes above bars, in place of handlers that write to the console."""

    def __init__(self, consoles: list) -> None:
        super().__init__(consoles[0].stream)
        self.consoles = consoles
        self.setLevel(consoles[0].level)
        self.setFormatter(consoles[0].formatter)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message."""
        usual.write(self.format(record), file=self.stream)


def _is_console(handler):
    stream = getattr(handler, "stream", None)
    return stream is not None and stream in (sys.stdout, sys.stderr)


@contextmanager
def log_filter(name: str, accept: Callable[[logging.LogRecord], bool]) -> Iterator:
    """Within this context, let a logger pass on accepted records only."""
    logger = logging.getLogger(name)
    # Before those of contexts around it.
    logger.filters.insert(0, accept)
    try:
        yield
    finally:
        logger.removeFilter(accept)


def reworded(name: str, reword: Callable[[str], str]) -> AbstractContextManager:
    """Let a logger say things otherwise, and leave out what becomes empty."""

    def accept(record):
        record.msg, record.args = reword(record.getMessage()), ()
        return bool(record.msg)

    return log_filter(name, accept)


@contextmanager
def warning_once(name: str) -> Iterator[None]:
    """Within this context, let a logger warn of all files at once, not of each."""
    warnings_of: dict[str, list[logging.LogRecord]] = {}

    def collect(record):
        if is_warning := record.levelno == logging.WARNING:
            warnings_of.setdefault(record.msg, []).append(record)
        return not is_warning

    try:
        with log_filter(name, collect):
            yield
    finally:
        for records in warnings_of.values():
            # Threads warn in any order.
            first, *further = sorted(records, key=logging.LogRecord.getMessage)
            text = first.getMessage()
            if further:
                files = [
                    x for r in further for x in r.args or () if isinstance(x, Path)
                ]
                text += f" The same holds for {len(further)} more: {listed(files, 5)}."
            logging.getLogger(name).warning("%s", text)
