"""Heartbeats of a flow run: the events by which an automation of Prefect notices that a run's process has gone.

Prefect's own thread for them sleeps in whole seconds and is joined at the end of the run, which costs a stage up to a
second. This one sends the same event, as often (PREFECT_FLOWS_HEARTBEAT_FREQUENCY), and ends at once.
"""

import contextvars
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect import Flow
from prefect.client.schemas.objects import FlowRun
from prefect.context import SettingsContext, get_settings_context
from prefect.events import emit_event


@contextmanager
def beating(flow: Flow[..., Any], run: FlowRun) -> Iterator[None]:
    """Send the heartbeats of a run while the body lasts."""
    period, ended = get_settings_context().settings.flows.heartbeat_frequency, threading.Event()
    resource = {"prefect.resource.id": f"prefect.flow-run.{run.id}", "prefect.resource.name": run.name}
    of_flow = {"prefect.resource.id": f"prefect.flow.{run.flow_id}", "prefect.resource.role": "flow"}
    of_tags = [{"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"} for tag in run.tags]
    related = [{**of_flow, "prefect.resource.name": flow.name}, *of_tags]

    def beat() -> None:
        while not ended.is_set():
            emit_event("prefect.flow-run.heartbeat", resource, related=related)
            ended.wait(period)

    with _without_prefects_own():
        if period is not None:
            threading.Thread(target=contextvars.copy_context().run, args=(beat,), daemon=True).start()
        try:
            yield
        finally:
            ended.set()


def _without_prefects_own() -> SettingsContext:
    """The settings in force, without heartbeats. Prefect's `temporary_settings` would validate all of them anew."""
    now = get_settings_context()
    flows = now.settings.flows.model_copy(update={"heartbeat_frequency": None})
    return SettingsContext(profile=now.profile, settings=now.settings.model_copy(update={"flows": flows}))
