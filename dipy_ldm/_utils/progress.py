"""Progress bars, which log messages don't tear, and filters of such messages."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
import logging
import sys
from typing import Any
import warnings

from tqdm import TqdmWarning

with warnings.catch_warnings():
    # Bars of notebooks are made of widgets; without, they are those of a terminal.
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm as usual
    from tqdm.contrib.logging import logging_redirect_tqdm


class tqdm(usual):  # noqa: N801  # the name that everybody knows
    """A bar of tqdm above which what is logged is written."""

    _redirected: ExitStack | None = None

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        consoles: list[Any] = [h for h in logging.root.handlers if _is_console(h)]
        if consoles and not self.disable:
            self._redirected = ExitStack()
            self._redirected.enter_context(logging_redirect_tqdm())
            redirect: Any = logging.root.handlers[-1]
            redirect.setLevel(consoles[0].level)
            redirect.setFormatter(consoles[0].formatter)
            redirect.stream = consoles[0].stream
            # That of DIPY is no console to tqdm, and would write everything again.
            logging.root.handlers = [
                h for h in logging.root.handlers if h not in consoles
            ]

    def close(self) -> None:
        """Close the bar, and let handlers of logs write again."""
        super().close()
        if self._redirected is not None:
            self._redirected.close()
            self._redirected = None


def _is_console(handler):
    stream = getattr(handler, "stream", None)
    return stream is not None and stream in (sys.stdout, sys.stderr)


@contextmanager
def log_filter(name: str, accept: Callable[[logging.LogRecord], bool]) -> Iterator:
    """Within this context, let a logger pass on accepted records only."""
    logger = logging.getLogger(name)
    logger.addFilter(accept)
    try:
        yield
    finally:
        logger.removeFilter(accept)
