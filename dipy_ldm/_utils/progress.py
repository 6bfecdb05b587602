"""Progress bars that keep log messages readable, and filters of log messages."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
import logging
from pathlib import Path
import sys
import warnings

from tqdm import TqdmWarning

from dipy_ldm._utils.values import listed

with warnings.catch_warnings():
    # Without ipywidgets, notebooks get text bars and a warning.
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm as standard_tqdm


class tqdm(standard_tqdm):  # noqa: N801  # its usual name
    """A tqdm bar that writes log messages above itself."""

    _handler: "_AboveBars | None" = None

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        consoles = [h for h in logging.root.handlers if _is_console(h)]
        if consoles and not self.disable:
            self._handler = _AboveBars(consoles)
            rest = [h for h in logging.root.handlers if h not in consoles]
            logging.root.handlers = [*rest, self._handler]

    def close(self) -> None:
        """Close the bar and restore the log handlers."""
        super().close()
        # After an error, a bar may be closed much later, when handlers have changed.
        handlers = logging.root.handlers
        if self._handler in handlers:
            rest = [h for h in handlers if h is not self._handler]
            logging.root.handlers = rest + self._handler.consoles
        self._handler = None


class _AboveBars(logging.StreamHandler):
    """Writes log messages above bars, in place of console handlers."""

    def __init__(self, consoles: list) -> None:
        super().__init__(consoles[0].stream)
        self.consoles = consoles
        self.setLevel(consoles[0].level)
        self.setFormatter(consoles[0].formatter)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message."""
        standard_tqdm.write(self.format(record), file=self.stream)


def _is_console(handler: logging.Handler):
    stream = getattr(handler, "stream", None)
    return stream is not None and stream in (sys.stdout, sys.stderr)


@contextmanager
def log_filter(name: str, accept: Callable[[logging.LogRecord], bool]) -> Iterator:
    """Within this context, drop records of a logger that are not accepted."""
    logger = logging.getLogger(name)
    # Before the filters of enclosing contexts.
    logger.filters.insert(0, accept)
    try:
        yield
    finally:
        logger.removeFilter(accept)


def reworded(name: str, reword: Callable[[str], str]) -> AbstractContextManager:
    """Return a context that rewords a logger's messages, and drops empty ones."""

    def accept(record: logging.LogRecord):
        record.msg, record.args = reword(record.getMessage()), ()
        return bool(record.msg)

    return log_filter(name, accept)


def without_repeats(name: str, start: str = "") -> AbstractContextManager:
    """Return a context that shows each message of a logger once, after a start."""
    earlier = set()

    def reword(message: str):
        text = "" if message in earlier else f"{start}{message}"
        earlier.add(message)
        return text

    return reworded(name, reword)


@contextmanager
def warning_once(name: str) -> Iterator[None]:
    """Within this context, merge a logger's equal warnings about several files."""
    warnings_of: dict[str, list[logging.LogRecord]] = {}

    def collect(record: logging.LogRecord):
        if is_warning := record.levelno == logging.WARNING:
            warnings_of.setdefault(record.msg, []).append(record)
        return not is_warning

    try:
        with log_filter(name, collect):
            yield
    finally:
        for records in warnings_of.values():
            # Sorted, since threads warn in any order.
            first, *further = sorted(records, key=logging.LogRecord.getMessage)
            text = first.getMessage()
            if further:
                files = [
                    x for r in further for x in r.args or () if isinstance(x, Path)
                ]
                text += f" The same holds for {len(further)} more: {listed(files, 5)}."
            logging.getLogger(name).warning("%s", text)
