"""The page's server, asked as a browser would and as one should not."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import time
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace

import aiohttp
import pytest

from protocol.node.socket import AuditLog
from protocol.spec import TaskSpec
from roverd.axes import Axes
from roverd.collect import Collecting
from roverd.settings import TeleopSettings
from roverd.telemetry import Picture, Telemetry
from roverd.teleop import Teleop
from roverd.web import server as serving
from roverd.web.server import WebPage
from roverd.wheel import HELD, LOCKED, Wheel
from tests.unit.roverd.steered import ROVER, Robot

pytestmark = pytest.mark.component
POST = b"POST /login HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\n"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def browser(cookies=None):
    """Keep cookies of addresses too, as browsers do."""
    return aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True), cookies=cookies)


class Site:
    """A page on a port of its own, a robot that notes what it is told, and a browser's way of asking."""

    def __init__(self, folder, *, port=None, refusal="", **settings):
        self.robot = Robot()
        axes = Axes(ROVER, (0.0, 0.0), max_speed_mps=1)
        self.wheel = Wheel(self.robot, axes, dead_man_s=0.25, refusal=refusal)
        self.teleop = Teleop(
            "rover-1",
            drive=self.robot,
            wheel=self.wheel,
            collecting=Collecting(self.robot, self.wheel, folder / "c", task="goal", controllers=list),
            telemetry=Telemetry(ROVER, TaskSpec("goal")),
            policies=SimpleNamespace(slot_name=lambda _: "abc", active=0),
            uplink=SimpleNamespace(state="linked", round_trip_ms=math.nan),
        )
        self.port = free_port() if port is None else port
        self.folder = folder
        audit = AuditLog(folder / "audit.jsonl")
        both = TeleopSettings(port=self.port, **settings)
        self.page = WebPage(both, self.teleop, token_file=folder / "web.token", audit=audit)
        self.base = f"http://127.0.0.1:{self.port}"
        self.headers = {"Origin": self.base}

    def audited(self):
        return [json.loads(line) for line in (self.folder / "audit.jsonl").read_text().splitlines()]

    def show(self, content):
        number = self.teleop.telemetry.picture.number + 1 if self.teleop.telemetry.picture else 1
        self.teleop.telemetry.picture = Picture(number, content, time.monotonic())

    async def log_in(self, session):
        async with session.post(f"{self.base}/login", json={"token": self.page.token}, headers=self.headers) as answer:
            assert answer.status == 200, await answer.text()
            return answer

    @asynccontextmanager
    async def opened(self, page="one"):
        """Log in and open a page's socket."""
        async with browser() as session:
            await self.log_in(session)
            async with session.ws_connect(f"{self.base}/drive?page={page}", headers=self.headers) as stream:
                hello = await stream.receive_json()
                assert hello["kind"] == "hello"
                yield Client(stream, hello)


class Client:
    def __init__(self, stream, hello):
        self.stream, self.hello = stream, hello
        self.pictures = []
        self.last = {}

    async def view(self):
        """Return the next view; pictures that come before it are noted and confirmed."""
        while True:
            message = await asyncio.wait_for(self.stream.receive(), 5)
            assert message.type in {aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY}, message
            if message.type is aiohttp.WSMsgType.TEXT:
                self.last = json.loads(message.data)
                return self.last
            self.pictures.append(message.data)

    async def until(self, condition):
        while not condition(view := await self.view()):
            pass
        return view

    async def say(self, kind, **more):
        await self.stream.send_json({"kind": kind, **more})

    async def drive(self, *axes, t=None):
        stamp = (await self.view())["t"] if t is None else t
        seen = int.from_bytes(self.pictures[-1][1:5], "big") if self.pictures else 0
        await self.say("drive", t=stamp, axes=list(axes), seen=seen)


@asynccontextmanager
async def serving_page(folder, **more):
    site = Site(folder, **more)
    running = asyncio.ensure_future(site.page.run())
    try:
        if not more.get("refusal") and more.get("port") != 0:
            await asyncio.wait_for(site.page.listening.wait(), 5)
        yield site
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


@pytest.fixture
async def site(tmp_path):
    async with serving_page(tmp_path) as made:
        yield made


async def until(condition):
    async def look():
        while not condition():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(look(), 5)


class TestAccess:
    """A stranger gets the empty page and nothing else."""

    @pytest.mark.parametrize("path", serving.FILES)
    async def test_the_files_are_served_with_a_strict_policy(self, site, path):
        async with browser() as session, session.get(site.base + path) as answer:
            assert answer.status == 200
            assert (await answer.read())[:1]
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            assert answer.headers["Cache-Control"] == "no-store"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"

    async def test_no_file_has_scripts_or_styles_of_its_own(self):
        html = serving._content("index.html").decode()
        assert "style=" not in html
        assert "onclick" not in html
        assert html.count("<script") == 1

    @pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1:1", ""])
    async def test_another_host_is_refused_even_for_files(self, site, host):
        headers = {"Host": host.format(port=site.port)}
        async with browser() as session, session.get(site.base, headers=headers) as answer:
            assert answer.status == 403

    @pytest.mark.parametrize("origin", [None, "http://evil.example", "null"])
    @pytest.mark.parametrize("path", ["/login", "/e_stop"])
    async def test_commands_of_other_pages_are_refused(self, site, path, origin):
        async with browser(self.cookie(site)) as session:
            headers = {"Origin": origin} if origin else {}
            async with session.post(site.base + path, json={"token": site.page.token}, headers=headers) as answer:
                assert answer.status == 403
        assert site.robot.e_stop == ""

    @pytest.mark.parametrize("path", ["/e_stop", "/drive", "/nothing", "/../web.token"])
    async def test_without_a_cookie_nothing_is_done(self, site, path):
        async with browser() as session:
            for method in ("get", "post"):
                async with getattr(session, method)(site.base + path, headers=site.headers) as answer:
                    assert answer.status in {403, 405}
        assert site.robot.e_stop == ""

    @pytest.mark.parametrize("origin", ["http://evil.example", "", "null"])
    async def test_a_socket_of_another_page_is_refused_although_the_browser_sends_the_cookie(self, site, origin):
        async with browser(self.cookie(site)) as session:
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await session.ws_connect(f"{site.base}/drive", headers={"Origin": origin})
            assert caught.value.status == 403

    @pytest.mark.parametrize("body", [{"token": "x" * 32}, {"token": ""}, {}, [], "x"])
    async def test_a_wrong_token_gives_no_cookie(self, site, body):
        asked = f"{site.base}/login"
        async with browser() as session, session.post(asked, json=body, headers=site.headers) as answer:
            assert answer.status == 403
            assert not answer.cookies

    async def test_a_large_body_is_refused(self, site):
        asked, body = f"{site.base}/login", b"x" * 100_000
        async with browser() as session, session.post(asked, data=body, headers=site.headers) as answer:
            assert answer.status == 413

    async def test_the_cookie_is_for_this_page_and_for_no_script(self, site):
        async with browser() as session:
            answer = await site.log_in(session)
            cookie = answer.cookies[f"roverd-{site.port}"]
            assert cookie["httponly"]
            assert cookie["samesite"] == "Strict"
            assert site.page.token not in cookie.value

    @pytest.mark.parametrize(
        "data",
        [
            b"garbage\r\n\r\n",
            bytes(range(256)) * 20,
            b"GET / HTTP/1.1\r\nA: " + b"x" * 20_000 + b"\r\n\r\n",
            POST + b"Content-Length: 99\r\n\r\nshort",
            POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        ],
        ids=["garbage", "bytes", "header", "short", "chunks"],
    )
    async def test_what_is_no_request_is_counted_and_leaves_no_trace_in_the_log(self, site, data, caplog):
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
        writer.write(data.replace(b"{host}", b"127.0.0.1:%d" % site.port))
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 5)
        assert not answer or answer.split()[1] in {b"400", b"403"}
        writer.close()
        assert not [record for record in caplog.records if record.exc_info]

    async def test_refusals_are_counted(self, site):
        async with browser() as session:
            await (await session.get(site.base, headers={"Host": "evil.example"})).read()
        assert site.page.status()["refused"] == 1

    def cookie(self, site):
        return {site.page._access.cookie_name: site.page._access.cookie}


class TestDriving:
    async def test_a_page_takes_the_wheel_drives_and_lets_go(self, site):
        async with site.opened() as client:
            assert (client.hello["rover_id"], len(client.hello["axes"])) == ("rover-1", 2)
            await client.say("take")
            view = await client.until(lambda view: view["wheel"]["owner"])
            assert view["wheel"]["owner"] == client.hello["you"] == "page one"
            await client.drive(1.0, -1.0)
            await until(lambda: site.robot.told[-1][0] == (0.5, -1.5))
            await client.say("release")
            await until(lambda: site.robot.told[-1] == "let go")
        assert [row["path"] for row in site.audited()] == ["/take", "/release"], "each command, and no push"

    async def test_a_page_that_has_not_taken_it_pushes_in_vain(self, site):
        async with site.opened("one") as one, site.opened("two") as two:
            await one.say("take")
            await one.until(lambda view: view["wheel"]["owner"] == "page one")
            told = len(site.robot.told)
            await two.drive(1.0, 0.0)
            await two.say("take")
            view = await two.until(lambda view: view["refusals"])
            assert "page one drives" in view["refusal"]
            assert len(site.robot.told) == told
            await two.say("take", force=True)
            await two.until(lambda view: view["wheel"]["owner"] == "page two")

    async def test_a_page_that_is_gone_stops_the_robot_at_once(self, site):
        async with site.opened() as client:
            await client.say("take")
            await client.drive(1.0, 0.0)
            await until(lambda: site.robot.told[-1][0] == (0.5, 0.0))
            site.robot.in_episode = True
            client.stream._response.connection.transport.abort()
            await until(lambda: site.wheel.state == LOCKED)
            assert site.robot.told[-1] == ((0.0, 0.0), 0.0, True)
        assert site.wheel.owner == "page one"

    async def test_a_page_that_comes_back_still_has_the_wheel(self, site):
        async with site.opened() as client:
            await client.say("take")
            await client.until(lambda view: view["wheel"]["owner"])
        await until(lambda: site.wheel.state == LOCKED)
        async with site.opened() as client:
            await client.drive(0.0, 0.0)
            await until(lambda: site.wheel.state == HELD)

    async def test_two_pages_of_one_number_are_two(self, site):
        async with site.opened("one") as first, site.opened("one") as second:
            assert [first.hello["you"], second.hello["you"]] == ["page one", "page one.2"]

    @pytest.mark.parametrize("page", ["", "%0a%0d", "x" * 500, "%F0%9F%90%8D", "a/../b"])
    async def test_a_page_cannot_choose_an_impossible_name(self, site, page):
        async with site.opened(page) as client:
            await client.say("take")
            await client.until(lambda view: view["wheel"]["owner"] == client.hello["you"])

    async def test_a_command_that_answers_a_view_older_than_the_dead_man_time_is_not_obeyed(self, site):
        async with site.opened() as client:
            await client.say("take")
            stamp = (await client.until(lambda view: view["wheel"]["owner"]))["t"]
            told = len(site.robot.told)
            await client.drive(1.0, 0.0, t=stamp - 250)
            await until(lambda: site.wheel.counts["stale"] == 1)
            assert len(site.robot.told) == told
            assert (await client.until(lambda view: view["lag_ms"] >= 250))["wheel"]["stale"] == 1

    async def test_a_command_counts_from_the_stamp_of_the_view_that_it_answers(self, site):
        async with site.opened() as client:
            await client.say("take")
            await client.until(lambda view: view["wheel"]["owner"])
            told = len(site.robot.told)
            stamp = (await client.view())["t"] - 100
            await client.drive(1.0, 0.0, t=stamp)
            await until(lambda: len(site.robot.told) > told)
            (action, seconds, _), now_ms = site.robot.told[-1], time.monotonic() * 1e3
            assert action == (0.5, 0.0)
            assert seconds <= 0.15
            assert now_ms + seconds * 1e3 >= stamp + 250 - 1, "it ends 250 ms after the view"

    @pytest.mark.parametrize(
        "text",
        ["", "x", "[]", "null", '{"kind": "drive"}', '{"kind": "drive", "t": "x"}', '{"kind": "__init__"}', "[" * 3000],
    )
    async def test_nonsense_changes_nothing(self, site, text):
        async with site.opened() as client:
            await client.stream.send_str(text)
            await client.say("take")
            await client.until(lambda view: view["wheel"]["owner"])

    @pytest.mark.parametrize("axes", [None, [1], ["a", "b"], [1, 2, 3], {"w": 1}])
    async def test_axes_that_are_none_are_refused_by_name(self, site, axes):
        async with site.opened() as client:
            await client.say("take")
            view = await client.until(lambda view: view["wheel"]["owner"])
            await client.say("drive", t=view["t"], axes=axes)
            assert "linear_cmd" in (await client.until(lambda view: view["refusals"]))["refusal"]

    async def test_a_message_that_is_too_large_ends_the_socket(self, site):
        async with site.opened() as client:
            await client.stream.send_str("x" * 10_000)
            with pytest.raises(AssertionError, match="CLOSE"):
                await client.until(lambda _: False)

    async def test_the_emergency_stop_needs_no_wheel_and_has_two_ways(self, site):
        async with site.opened("one") as client:
            await client.say("e_stop")
            await until(lambda: site.robot.e_stop)
        site.robot.clear_e_stop()
        async with browser() as session:
            await site.log_in(session)
            async with session.post(f"{site.base}/e_stop", headers=site.headers) as answer:
                assert answer.status == 200
        assert site.robot.e_stop

    async def test_no_page_clears_the_emergency_stop(self, site):
        async with site.opened() as client:
            await client.say("e_stop")
            await client.say("clear")
            await client.say("clear", sure=True)
            await client.say("take")
            view = await client.until(lambda view: view["wheel"]["owner"])
            assert view["e_stop"] == "page one"
        async with browser() as session:
            await site.log_in(session)
            async with session.post(f"{site.base}/clear", headers=site.headers) as answer:
                assert answer.status == 404
        assert site.robot.e_stop
        assert [row["path"] for row in site.audited()] == ["/e_stop", "/take"]
        page = b"".join(serving._content(name) for name, _ in serving.FILES.values()).decode()
        assert 'id="clear"' not in page
        assert "roverctl clear on the robot lets it drive again" in page

    async def test_episodes_are_begun_and_judged(self, site):
        site.teleop.collecting.start("teleop", 3, name="set")
        async with site.opened() as client:
            await client.say("next")
            view = await client.until(lambda view: not view["collection"]["is_waiting"])
            assert view["collection"]["kept"] == 0
            site.robot.in_episode = True
            await client.say("judge", verdict="discard")
            await until(lambda: site.robot.verdicts == [None])
            await client.say("judge", verdict=7)
            assert "not a text" in (await client.until(lambda view: view["refusals"]))["refusal"]


class TestPictures:
    async def test_a_page_gets_the_newest_picture_once(self, site):
        async with site.opened() as client:
            site.show(b"one")
            await client.until(lambda _: client.pictures)
            await client.view()
            assert client.pictures == [b"P\0\0\0\1one"]
            site.show(b"two")
            site.show(b"three")
            await client.until(lambda _: len(client.pictures) == 2)
            assert client.pictures[-1] == b"P\0\0\0\2three"

    async def test_a_page_that_confirms_none_gets_two(self, site):
        async with site.opened() as client:
            for number in range(6):
                site.show(b"%d" % number)
                await client.view()
                await client.view()
            assert len(client.pictures) == 2
            await client.say("drive", t=client.last["t"], seen=1)
            await client.until(lambda _: len(client.pictures) == 3)

    async def test_a_page_that_does_not_read_costs_the_others_nothing(self, site):
        async with site.opened("slow") as slow, site.opened("quick") as quick:
            slow.stream._response.connection.transport.pause_reading()
            began = time.monotonic()
            for _ in range(20):
                site.show(b"x" * 1_000_000)
                pictures = len(quick.pictures)
                while len(quick.pictures) == pictures:
                    await quick.drive()
            assert time.monotonic() - began < 4.0
            assert len(quick.pictures) >= 20
            sessions = site.page._sessions
            assert sessions["page slow"].transport.get_write_buffer_size() < 3_000_000
            slow.stream._response.connection.transport.abort()  # else its end waits for what is never read


class TestService:
    async def test_a_port_that_is_taken_is_told_and_taken_when_it_is_free(self, tmp_path, monkeypatch):
        monkeypatch.setattr(serving, "RETRY_S", 0.05)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            site = Site(tmp_path, port=taken.getsockname()[1])
            running = asyncio.ensure_future(site.page.run())
            await until(lambda: site.page.state == "failed")
            assert "Address already in use; set teleop.port" in site.page.causes[0]
        await asyncio.wait_for(site.page.listening.wait(), 5)
        assert (site.page.state, site.page.causes) == ("serving", [])
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    async def test_a_token_that_others_may_read_keeps_the_page_off_and_nothing_else(self, tmp_path):
        (tmp_path / "web.token").write_text("x" * 40)
        (tmp_path / "web.token").chmod(0o644)
        site = Site(tmp_path)
        running = asyncio.ensure_future(site.page.run())
        await until(lambda: site.page.state == "failed")
        assert "chmod 600" in site.page.causes[0]
        assert not running.done()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    @pytest.mark.parametrize("more", [{"port": 0}, {"refusal": "lock-step"}])
    async def test_it_is_off_without_a_port_and_in_lock_step(self, tmp_path, more):
        async with serving_page(tmp_path, **more) as site:
            await asyncio.sleep(0)
            assert (site.page.state, site.page.causes) == ("off", [])
            assert not (tmp_path / "web.token").exists()

    async def test_the_address_has_the_token_behind_the_hash(self, site):
        assert site.page.url == f"{site.base}/#token={site.page.token}"

    async def test_a_page_too_many_is_turned_away(self, site, monkeypatch):
        monkeypatch.setattr(serving, "MAX_PAGES", 1)
        async with site.opened("one"), browser() as session:
            await site.log_in(session)
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await session.ws_connect(f"{site.base}/drive", headers=site.headers)
            assert caught.value.status == 503

    async def test_idle_connections_make_room_and_open_pages_stay(self, site, monkeypatch):
        monkeypatch.setattr(serving, "MAX_CONNECTIONS", 4)
        async with site.opened("one") as client:
            streams = [await asyncio.open_connection("127.0.0.1", site.port) for _ in range(12)]
            await until(lambda: site.page.status()["turned_away"] >= 8)
            assert await asyncio.wait_for(streams[0][0].read(), 5) == b""
            await client.say("take")
            await client.until(lambda view: view["wheel"]["owner"])
            for _, writer in streams:
                writer.close()
        async with browser() as session, session.get(site.base) as answer:
            assert answer.status == 200

    async def test_it_ends_with_pages_open(self, tmp_path):
        site = Site(tmp_path)
        running = asyncio.ensure_future(site.page.run())
        await site.page.listening.wait()
        async with site.opened():
            began = time.monotonic()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            assert time.monotonic() - began < 3.0


@pytest.mark.parametrize(
    ("bind", "is_exposed"),
    [("127.0.0.1", False), ("127.1.2.3", False), ("::1", False), ("0.0.0.0", True), ("::", True)],
)
def test_loopback_is_no_exposure(bind, is_exposed):
    assert TeleopSettings(bind=bind).is_exposed == is_exposed
