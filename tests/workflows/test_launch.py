"""The start of commands: devices, and the share of a worker."""

from itertools import chain
import logging
import math

from dipy.utils.logging import configure_logger
from processes import fresh_loggers
import pytest

from dipy_ldm._utils.cluster import Cluster
from dipy_ldm.workflows import _launch as launch


@pytest.mark.parametrize("n", range(1, 6))
def test_the_first_of_several_workers_always_has_work(n):
    workers = [Cluster(("a:1", "b:1", "c:1"), i) for i in range(3)]
    parts = [launch.share_of_worker(worker, range(n)) for worker in workers]
    assert [*chain(*parts)] == [*range(n)]
    assert len(parts[0]) == math.ceil(n / 3)


def test_the_console_of_the_first_worker_has_the_level_that_was_chosen(
    tmp_path, capsys
):
    with fresh_loggers():
        configure_logger(level=logging.ERROR)
        launch.log_to_file(Cluster(("a:1", "b:1"), 0), tmp_path / "out")
        logging.getLogger("dipy_ldm").warning("for the file alone")
    assert not capsys.readouterr().out
    assert "for the file alone" in (tmp_path / "out.worker-0.log").read_text()
