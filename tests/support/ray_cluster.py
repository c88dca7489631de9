"""Ray's simulated cluster, also on a crowded machine: Ray gives a node 30 seconds to start, whatever the load."""

import time
from collections.abc import Callable
from typing import Any

from crowding import limit

STARTS = 30.0
"""Ray's own limit."""


def start_cluster(**head: Any) -> Any:
    """A cluster with its head. Import Ray, and set its environment variables, before."""
    from ray._private import services
    from ray.cluster_utils import Cluster

    services.get_node = patient(services.get_node)
    plain_wait = services.wait_for_node
    services.wait_for_node = lambda address, name, timeout=STARTS: plain_wait(address, name, limit(timeout))
    return Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **head})


def patient(find: Callable[..., Any]) -> Callable[..., Any]:
    """`find`, which raises RuntimeError while a node has not started, tried again for as long as the load asks."""

    def wait(*arguments: Any) -> Any:
        end = time.monotonic() + limit(STARTS)
        while True:
            try:
                return find(*arguments)
            except RuntimeError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)

    return wait
