"""The page in a real browser: keys, fingers, a tab that is left, a browser that hangs."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.browser.chromium import chromium, find_chromium
from tests.daemon.daemons import free_port, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not find_chromium(), reason="no chromium here; apt-get install chromium"),
]
LIVE = {
    "control.rate_hz": 20.0,
    "plugins.synthetic.control_rate_hz": 20.0,
    "plugins.synthetic.action_delay_ms": 20.0,
    "plugins.synthetic.goal_m": 2.0,
    "plugins.goal.time_limit_s": 3600,
    "plugins.goal.radius_m": 0.01,
    "control.safety_distance_m": 0,
    "control.slow_distance_m": 0,
}


@pytest.fixture
def rover(site):
    made = site.rover({**LIVE, "teleop.port": free_port()})
    wait_until(lambda: made.get("/web")["url"], what="the page is served")
    return made


def view(rover):
    return rover.get("/wheel")["view"]


def is_moving(rover):
    seen = view(rover)
    return seen["source"] == "human" and any(seen["action"].values())


def stands(rover, deadline_s=2.0):
    wait_until(lambda: not any(view(rover)["action"].values()), deadline_s, what="it stands")


async def take(page):
    """Wait until the page is there, and take the wheel."""
    await page.until("document.getElementById('rover').textContent === 'rover-1'")
    await page.click("#take")
    await page.until("document.getElementById('take').classList.contains('mine')")


async def test_keys_and_fingers_drive_and_a_page_that_is_left_stops_the_robot(rover, tmp_path):
    url = rover.get("/web")["url"]
    async with chromium(tmp_path / "profile") as browser:
        page = await browser.page(url)
        await take(page)
        assert "token" not in await page.evaluate("location.href"), "the token stays in the address bar"

        await page.key("w", is_down=True)
        wait_until(lambda: view(rover)["action"].get("linear_cmd") == 0.5, what="w drives")
        await page.key("a", is_down=True)
        wait_until(lambda: view(rover)["action"]["angular_cmd"] == 1.5, what="a turns left")
        await page.key("a", is_down=False)
        await page.key("w", is_down=False)
        stands(rover)
        assert view(rover)["wheel"]["state"] == "held", "the page is looked at, and pushes nothing"
        await page.until("!document.getElementById('camera').hidden && document.getElementById('camera').naturalWidth")

        x, y = await page.middle("#joystick")
        await page.touch("touchStart", (x, y - 60))
        wait_until(lambda: view(rover)["action"]["linear_cmd"] > 0.2, what="a finger drives")
        await page.touch("touchEnd")
        stands(rover)

        await page.evaluate("navigator.getGamepads = () => [{connected: true, id: 'pad', axes: [0, 0, -1, -0.05]}]")
        wait_until(lambda: view(rover)["action"]["angular_cmd"] == 1.5, what="the right stick turns left")
        await page.evaluate("navigator.getGamepads = () => [{connected: false, id: 'pad', axes: [0, 0, -1, 0]}]")
        stands(rover)

        await page.key("w", is_down=True)
        wait_until(lambda: is_moving(rover), what="w drives")
        left_s = time.monotonic()
        await browser.page("about:blank")  # in front of it
        stands(rover)
        assert time.monotonic() - left_s < 1.5
        wait_until(lambda: view(rover)["wheel"]["state"] == "locked", 2.0, what="locked")
        assert page.errors == []


async def test_the_stop_button_stops_and_a_browser_that_hangs_holds_nobody_up(rover, tmp_path):
    url = rover.get("/web")["url"]
    async with chromium(tmp_path / "profile") as browser:
        page = await browser.page(url)
        await take(page)
        await page.key("w", is_down=True)
        wait_until(lambda: is_moving(rover), what="w drives")
        await page.click("#stop")
        wait_until(lambda: view(rover)["mode"] == "e_stop", 2.0, what="stopped")
        await page.key("w", is_down=False)
        await page.until("document.getElementById('banner').textContent.includes('roverctl clear on the robot')")
        rover.post("/clear")  # nothing on the page does
        wait_until(lambda: view(rover)["mode"] == "teleop", 5.0, what="cleared")
        await page.key("w", is_down=True)
        wait_until(lambda: is_moving(rover), 5.0, what="w drives again")

        browser.stop()
        hung_s = time.monotonic()
        stands(rover)
        assert time.monotonic() - hung_s < 1.0
        assert view(rover)["wheel"]["state"] == "locked"
        before = rover.get()
        for _ in range(20):
            asked_s = time.monotonic()
            rover.get()
            assert time.monotonic() - asked_s < 1.0
            await asyncio.sleep(0.05)
        assert rover.get()["ticks"] - before["ticks"] >= 15
        browser.go_on()
        assert page.errors == []


async def test_without_the_token_the_page_shows_nothing(rover, tmp_path):
    url = rover.get("/web")["url"].partition("#")[0]
    async with chromium(tmp_path / "profile") as browser:
        for wrong in (url, f"{url}#token=wrong"):
            page = await browser.page(wrong)
            await page.until("document.getElementById('banner').textContent.startsWith('not logged in')")
            assert await page.evaluate("document.getElementById('camera').hidden")
    assert rover.get()["web"]["open"] == 0
