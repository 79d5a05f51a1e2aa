"""Settings of the simulated rover."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.node.config import option


@dataclass(frozen=True)
class SimSettings:
    """Size the cameras, limits and timing of the simulated rover; the defaults are the demo's."""

    cameras: str = option(
        "front", help="RGB and depth pairs that the rover carries", choices=("front", "front_rear", "none")
    )
    image_height: int = option(60, help="rows of every image", low=8, high=1080)
    image_width: int = option(106, help="columns of every image", low=8, high=1920)
    horizontal_fov_deg: float = option(69.0, help="horizontal field of view", low=20.0, high=120.0)
    camera_height_m: float = option(0.20, help="camera above the floor", low=0.05, high=0.28)
    camera_ahead_m: float = option(0.12, help="camera ahead of (or, rear, behind) the axle", low=0.0, high=0.16)
    control_rate_hz: float = option(10.0, help="control ticks per second", low=1.0, high=50.0)
    action_repeat: int = option(3, help="ticks for which one decision is held", low=1, high=50)
    action_delay_ms: float = option(50.0, help="time from a tick to its actuation", low=0.0, high=1000.0)
    linear_low_mps: float = option(0.0, help="lowest linear command; negative allows reversing", low=-2.0, high=0.0)
    linear_high_mps: float = option(0.5, help="highest linear command", low=0.05, high=2.0)
    angular_limit_radps: float = option(1.5, help="highest angular command, either way", low=0.1, high=6.0)
    arena_m: float = option(6.0, help="side of the square room", low=4.0, high=7.0)
    obstacles_least: int = option(9, help="fewest obstacles asked for (crowded rooms hold fewer)", low=0, high=12)
    obstacles_most: int = option(12, help="most obstacles asked for", low=0, high=12)
    noise: float = option(1.0, help="scale of all sensor and motion noise and of slip; 0 is a perfect robot", low=0.0)
