"""How commands start: which part of the work is a worker's."""

from itertools import chain
import math

import pytest

from dipy_ldm._utils.cluster import Cluster
from dipy_ldm.workflows import _launch as launch


@pytest.mark.parametrize("n", range(1, 6))
def test_the_first_of_several_workers_always_has_work(n):
    workers = [Cluster(("a:1", "b:1", "c:1"), i) for i in range(3)]
    parts = [launch.part_of(worker, range(n)) for worker in workers]
    assert [*chain(*parts)] == [*range(n)]
    assert len(parts[0]) == math.ceil(n / 3)
