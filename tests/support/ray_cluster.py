"""Ray's simulated cluster, also on a crowded machine: Ray gives a node 30 seconds to start, whatever the load."""

import contextlib
import functools
import inspect
import os
import socket
import time
from collections.abc import Callable
from typing import Any

from crowding import limit

STARTS = 30.0
"""Ray's own limit."""

AGENTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
"""The ports of a node's agents (github.com/ray-project/ray/issues/65983)."""


def start_cluster(**head: Any) -> Any:
    """A cluster with its head. Import Ray, and set its environment variables, before."""
    from ray.cluster_utils import Cluster

    class Patient(Cluster):
        """Its nodes get their agents' ports: Ray ends a node whose agents have chosen none 15 s after its start."""

        def add_node(self, **node: Any) -> Any:
            return super().add_node(**dict(zip(AGENTS, free_ports(len(AGENTS)))), **node)

    os.environ.setdefault("RAY_worker_register_timeout_seconds", f"{limit(60):.0f}")  # 60: Ray's own
    make_patient()
    return Patient(initialize_head=True, head_node_args={"include_dashboard": False, **head})


@functools.cache
def make_patient() -> None:
    """Let Ray's own start of a node take longer. Once for all clusters of this process: the changes wrap each other."""
    from ray._private import services

    services.start_raylet = after_port(services.start_raylet)
    services.get_node = patient(services.get_node)
    plain_wait = services.wait_for_node
    services.wait_for_node = lambda address, name, timeout=STARTS: plain_wait(address, name, limit(timeout))


def after_port(start: Callable[..., Any]) -> Callable[..., Any]:
    """`start_raylet` after the agent's HTTP port is noted as "none" (-1), for which Ray waits even if it is given."""
    from ray._raylet import DASHBOARD_AGENT_LISTEN_PORT_NAME, persist_port

    def started(*arguments: Any, **options: Any) -> Any:
        given = inspect.signature(start).bind(*arguments, **options).arguments
        persist_port(given["session_dir"], given["node_id"], DASHBOARD_AGENT_LISTEN_PORT_NAME, -1)
        return start(*arguments, **options)

    return started


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


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
