"""Real daemons for tests: what runs is stopped and looked at afterwards, and its log stands beside a failure."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.daemon.daemons import OPEN, TAIL_LINES, Site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.daemon.daemons import Daemon

TIMEOUT_S = 180


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Daemons take seconds to start, more on a busy machine."""
    for item in items:
        if "tests/daemon" in item.nodeid and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give the tests of one file to one worker: they share daemons."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Put the end of each log into the report of a failure."""
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for site in OPEN:
            report.sections += [(f"log of {each.log.stem}", _tail(each)) for each in site.daemons]


def _tail(daemon: Daemon) -> str:
    lines = daemon.log_text().splitlines()
    first = next((index for index, line in enumerate(lines) if "Traceback" in line), len(lines))
    return "\n".join(
        [*(line[:300] for line in lines[-TAIL_LINES:]), *(line[:4000] for line in lines[first : first + 40])]
    )


@contextmanager
def opened(folder: Any, *, curve: bool = True, **env: str) -> Iterator[Site]:
    site = Site(folder, curve=curve, **env)
    OPEN.append(site)
    try:
        yield site
    finally:
        try:
            wrong = site.close()
        finally:
            OPEN.remove(site)
        if wrong:
            logs = "\n".join(f"--- {each.log.stem}\n{_tail(each)}" for each in site.daemons)
            pytest.fail("; ".join(wrong) + "\n" + logs, pytrace=False)


@pytest.fixture
def site(tmp_path, request) -> Iterator[Site]:
    """A place for the daemons of one test; a file with ``CURVE = False`` has third parties on its link."""
    with opened(tmp_path, curve=getattr(request.module, "CURVE", True)) as made:
        yield made


@pytest.fixture(scope="module")
def shared_site(tmp_path_factory, request) -> Iterator[Site]:
    """A place for the daemons that all tests of a file share."""
    folder = tmp_path_factory.mktemp(request.module.__name__.rpartition(".")[2])
    with opened(folder, curve=getattr(request.module, "CURVE", True)) as made:
        yield made


@pytest.fixture
def record_figure(record_property) -> Callable[[str, float], None]:
    """Note a measured figure beside a test's result."""

    def note(name: str, value: float) -> None:
        record_property(name, value)
        print(f"{name} = {value:.3f}")

    return note
