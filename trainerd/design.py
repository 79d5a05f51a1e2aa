"""The design of the network: which encoder sees what of a robot, and on which device it learns."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protocol.node.config import validate_table
from protocol.transform import InputTransform

if TYPE_CHECKING:
    from plugins.manager import PluginManager
    from protocol.spec import RobotSpec, TaskSpec
    from trainerd.settings import Settings


class Design:
    """What of the network is fixed before a robot is known. Any thread may call it."""

    def __init__(self, settings: Settings, plugins: PluginManager) -> None:
        """Choose encoder and device; raises RoverError where the plugin, its settings or the device cannot be had."""
        devices = settings.devices or (settings.device,)
        self._wanted_device = devices[0]
        if any(name.startswith("cuda") for name in devices):
            _check(devices)
        self._encoder = plugins.encoder(settings.network.encoder)
        table = settings.plugins.get(self._encoder.name, {})
        self._settings = validate_table(self._encoder.settings, table, f"plugins.{self._encoder.name}")

    @cached_property
    def device(self) -> str:
        """The torch device; asking for it the first time imports torch, which takes a second."""
        from trainerd.learning.learner import choose_device  # noqa: PLC0415 - see above

        return choose_device(self._wanted_device)

    @property
    def may_be_gpu(self) -> bool:
        """True unless the CPU was asked for or this machine has no device file of a GPU (NVIDIA's or AMD's)."""
        return self._wanted_device != "cpu" and (Path("/dev/kfd").exists() or any(Path("/dev").glob("nvidia[0-9]*")))

    @property
    def encoder(self) -> tuple[str, dict[str, Any]]:
        """Name and settings of the encoder plugin, for another process to make the same one."""
        return self._encoder.name, dict(vars(self._settings))

    def transform(self, robot: RobotSpec, task: TaskSpec) -> InputTransform:
        """Return what the network sees of a robot; raises SpecError where the encoder cannot read its cameras."""
        return InputTransform.of(robot, task, self._encoder.planes(robot, self._settings))

    def build_encoder(self, shape: tuple[int, int, int]) -> Any:
        """Return the encoder's module for input planes of (C, H, W)."""
        return self._encoder.build(shape, self._settings)


def _check(devices: tuple[str, ...]) -> None:
    from trainerd.learning.learner import choose_device  # noqa: PLC0415 - it imports torch, which takes a second
    from trainerd.learning.ranks import check_devices  # noqa: PLC0415 - as above

    if len(devices) == 1:
        choose_device(devices[0])  # says what to set where there is no GPU at all
    check_devices(devices)
