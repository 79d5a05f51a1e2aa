"""Draw the learning curve of a demo run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

BLUE, ORANGE, GRAY = "#2563eb", "#d97706", "#6b7280"


def draw(figures: dict[str, Any], path: Path) -> None:
    """Write a PNG of success over decisions, with the final result and the references where they were measured."""
    import matplotlib as mpl  # noqa: PLC0415 - half a second that a run without a picture need not pay

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    from trainerd.lab.statistics import wilson  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=150, layout="constrained")
    history = figures["success"]
    thousands = [each["decision"] / 1000 for each in history]
    rates = [100 * each["rate"] for each in history]
    bounds = [wilson(min(each["n"], round(each["rate"] * each["n"])), each["n"]) for each in history]
    low, high = [100 * b.low for b in bounds], [100 * b.high for b in bounds]
    axes.fill_between(thousands, low, high, color=BLUE, alpha=0.15, linewidth=0)
    axes.plot(thousands, rates, color=BLUE, linewidth=1.8, label="while learning (explores), 95 % interval")
    end = max([*thousands, figures["decisions"] / 1000, 0.001])
    _references(axes, figures)
    if figures["final"]:
        _final(axes, figures["final"], end)
    axes.set(xlim=(0, end * 1.04), ylim=(0, 100))
    axes.set_xlabel("decisions of the policy (thousands)")
    axes.set_ylabel("episodes that succeed (%)")
    minutes = figures["wall_seconds"] / 60
    axes.set_title(f"Task {figures['task']}, seed {figures['seed']}: {minutes:.1f} minutes of learning", loc="left")
    axes.grid(visible=True, color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, loc="upper left" if not rates or rates[-1] < 50 else "lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": "roverloop"})
    plt.close(figure)


def _references(axes: Any, figures: dict[str, Any]) -> None:
    for key, color, style in (("reactive", ORANGE, "--"), ("random", GRAY, ":")):
        if figures[key]:
            rate = 100 * figures[key]["success"]
            label = f"{key}: {rate:.1f} %" + (" (hand-written controller)" if key == "reactive" else "")
            axes.axhline(rate, color=color, linestyle=style, linewidth=1.4, label=label)


def _final(axes: Any, final: dict[str, Any], end: float) -> None:
    rate, low, high = (100 * final[key] for key in ("success", "low", "high"))
    label = f"final policy, {final['n']} unseen arenas: {rate:.1f} %"
    bars = [[max(0.0, rate - low)], [max(0.0, high - rate)]]
    axes.errorbar([end], [rate], yerr=bars, fmt="o", color="#111827", capsize=4, markersize=6, label=label, zorder=5)
