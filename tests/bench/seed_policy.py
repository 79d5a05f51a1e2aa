"""Policies as a trainer makes them before it has learned anything: the real network, with its golden inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from plugins.manager import PluginManager
from protocol.node.config import validate_table
from protocol.transform import InputTransform
from trainerd.learning.networks import PolicyNetwork
from trainerd.learning.settings import NetworkSettings
from trainerd.release.export import Exporter

if TYPE_CHECKING:
    from protocol.spec import RobotSpec, TaskSpec


def specs(robot: str, task: str, settings: dict) -> tuple[RobotSpec, TaskSpec]:
    """Return the specs of plugins with these settings."""
    plugins = PluginManager(groups=("robots", "tasks"))
    kind = plugins.robot(robot)
    made = kind.create(validate_table(kind.settings, settings, robot))
    of_task = plugins.task(task)
    return made.spec, of_task.create(validate_table(of_task.settings, {}, task), made.spec, 0).spec


def bundles(robot: RobotSpec, task: TaskSpec, count: int, *, encoder: str = "rgbd") -> list[bytes]:
    """Return so many bundles of networks that differ."""
    plugin = PluginManager(groups=("encoders",)).encoder(encoder)
    settings = validate_table(plugin.settings, {}, encoder)
    transform = InputTransform.of(robot, task, plugin.planes(robot, settings))
    shape = (transform.channels, transform.height, transform.width)
    made = []
    exporter = None
    for counter in range(1, count + 1):
        torch.manual_seed(counter)
        network = PolicyNetwork(
            plugin.build(shape, settings), shape, transform.size, len(robot.action), NetworkSettings()
        )
        if exporter is None:
            exporter = Exporter(network, robot=robot, task=task, transform=transform, run_id="bench")
        log_std = [-1.0] * len(robot.action)
        made.append(
            exporter.build(
                network.snapshot(), counter=counter, parent="", update=counter, decisions=counter, log_std=log_std
            )
        )
    return made
