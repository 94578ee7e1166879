"""A Ray cluster: connecting to it within a time limit, and what its nodes can run.

Ray's usage statistics are off, and so is the dashboard of a cluster that is started here. Knows
nodes and resources; does not know what is run on them.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Final

from stillhouse.core.errors import UserError
from stillhouse.core.optional import require
from stillhouse.core.recipe_asking import RaySection

FIELD: Final = "teacher.ray"
REACH_S: Final = 30.0
LOOK_S: Final = 120.0


class RayCluster:
    """A connection to a cluster, or a cluster of this machine alone. Close it when done.

    Where the process is connected already, that connection is used and left as it is.

    Raises:
        UserError: the cluster cannot be reached, or has no node that an actor fits on.
        MissingExtraError: Ray is not installed.
    """

    def __init__(self, section: RaySection) -> None:
        # Read by Ray when it is imported; a cluster that others started goes by their choice.
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        self.section = section
        self.ray: Any = require("ray", "ray", FIELD)
        require("ray.data", "ray", FIELD)
        require("ray.util.scheduling_strategies", "ray", FIELD)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        self._ours = not self.ray.is_initialized()
        if self._ours:
            self._connect()
        self.nodes = self._fitting()

    @property
    def resources(self) -> dict[str, float]:
        """What one actor takes, as Ray's options."""
        return {
            "num_cpus": self.section.cpus_per_actor,
            "num_gpus": self.section.gpus_per_actor,
        }

    def on_each_node(self, work: Callable[[Any], str], argument: Any) -> dict[str, str]:
        """What `work(argument)` gives on each node that an actor fits on, by its name.

        Raises:
            UserError: a node cannot run it at all, or does not answer.
        """
        pinned = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        task = self.ray.remote(num_cpus=0, max_retries=0)(work)
        asked = {
            name: task.options(scheduling_strategy=pinned(node_id, soft=False)).remote(argument)
            for node_id, name in self.nodes.items()
        }
        found = {}
        for name, answer in asked.items():
            try:
                found[name] = str(self.ray.get(answer, timeout=LOOK_S))
            except self.ray.exceptions.RayError as error:
                raise UserError(
                    FIELD,
                    f"node {name} cannot run Stillhouse: {last_line(error)}",
                    action="install the same stillhouse, ray and Python on every node",
                ) from None
        return found

    def beside_the_driver(self, kind: type) -> Any:
        """An actor of a class without arguments on the driver's own node: it lives as long."""
        pinned = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        here = self.ray.get_runtime_context().get_node_id()
        actor = self.ray.remote(num_cpus=0)(kind)
        return actor.options(scheduling_strategy=pinned(here, soft=False)).remote()

    def close(self) -> None:
        """Leave the cluster; stop it where it was started here."""
        if self._ours:
            self.ray.shutdown()

    def _connect(self) -> None:
        address = self.section.address
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address == "local":
            options["include_dashboard"] = False
        elif not _answers(address):
            raise UserError(
                f"{FIELD}.address",
                f"no Ray cluster answers within {REACH_S:.0f} s",
                value=address,
                action="start one with `ray start --head`, or check the address",
            )
        try:
            self.ray.init(address, **options)
        except Exception as error:
            raise UserError(
                f"{FIELD}.address",
                f"cannot join the cluster: {last_line(error)}",
                value=address,
                action="run on a machine of the cluster (`ray start --address=HOST:PORT`)",
            ) from None

    def _fitting(self) -> dict[str, str]:
        """The live nodes that an actor fits on when they are idle: id -> name."""
        wanted = {"CPU": self.section.cpus_per_actor, "GPU": self.section.gpus_per_actor}
        alive = [node for node in self.ray.nodes() if node["Alive"]]
        fitting = {
            node["NodeID"]: f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"
            for node in alive
            if all(node["Resources"].get(name, 0) >= count for name, count in wanted.items())
        }
        if not fitting:
            self.close()
            raise UserError(
                FIELD,
                f"none of the cluster's {len(alive)} nodes has {wanted['CPU']:g} CPUs and "
                f"{wanted['GPU']:g} GPUs for an actor",
                action="lower cpus_per_actor or gpus_per_actor, or add a node that has them",
            )
        return fitting


def last_line(error: BaseException) -> str:
    """The last line of an error's text, where Ray puts the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _answers(address: str) -> bool:
    """Whether a cluster is there. Asked in a process of its own: Ray tries for minutes, and cannot
    be told to stop.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--skip-version-check"]
    try:
        done = subprocess.run(
            [*command, "--address", address], capture_output=True, timeout=REACH_S, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
