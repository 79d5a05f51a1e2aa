"""The design of the network: which encoder sees what of a robot, and on which device it learns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from protocol.node.config import validate_table
from protocol.transform import InputTransform
from trainerd.learning.learner import choose_device

if TYPE_CHECKING:
    from plugins.manager import PluginManager
    from protocol.spec import RobotSpec, TaskSpec
    from trainerd.settings import Settings


class Design:
    """What of the network is fixed before a robot is known. Any thread may call it."""

    def __init__(self, settings: Settings, plugins: PluginManager) -> None:
        """Choose encoder and device; raises RoverError where the plugin, its settings or the device cannot be had."""
        self.device = choose_device(settings.device)
        self._encoder = plugins.encoder(settings.network.encoder)
        table = settings.plugins.get(self._encoder.name, {})
        self._settings = validate_table(self._encoder.settings, table, f"plugins.{self._encoder.name}")

    def transform(self, robot: RobotSpec, task: TaskSpec) -> InputTransform:
        """Return what the network sees of a robot; raises SpecError where the encoder cannot read its cameras."""
        return InputTransform.of(robot, task, self._encoder.planes(robot, self._settings))

    def build_encoder(self, shape: tuple[int, int, int]) -> Any:
        """Return the encoder's module for input planes of (C, H, W)."""
        return self._encoder.build(shape, self._settings)
