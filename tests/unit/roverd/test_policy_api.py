"""A bundle comes over the control socket in pieces; what does not fit together is refused and changes nothing."""

from __future__ import annotations

import base64
import hashlib
from types import SimpleNamespace

import pytest

from protocol.bundle import BundleError
from protocol.node.socket import Request, RequestError
from roverd.policies import PolicyStoreError
from roverd.policy_api import PolicyApi

CONTENT = bytes(range(256)) * 10


class Policies:
    """Takes what is installed, or refuses it."""

    def __init__(self) -> None:
        self.installed: list[tuple[bytes, bool]] = []
        self.error: Exception | None = None
        self.driving_id, self.active = "old", 0

    async def install(self, content: bytes, *, now: bool) -> str:
        if self.error is not None:
            raise self.error
        self.installed.append((content, now))
        return "new"

    def reload(self, *, now: bool) -> str:
        raise PolicyStoreError("no policy is known here")

    def rollback(self, *, now: bool) -> str:
        return f"back {now}"

    def slot_name(self, slot: int) -> str:
        return "old"

    def report(self) -> dict:
        return {"transaction": {"stage": "none"}}


@pytest.fixture
def policies() -> Policies:
    return Policies()


@pytest.fixture
def api(policies) -> PolicyApi:
    return PolicyApi(SimpleNamespace(policies=policies, store=None))


async def upload(api: PolicyApi, content: bytes = CONTENT, piece: int = 1000) -> None:
    for offset in range(0, len(content), piece):
        text = base64.b64encode(content[offset : offset + piece]).decode()
        await api.upload(Request(body={"offset": offset, "content": text}))


def request(content: bytes = CONTENT, **more) -> Request:
    return Request(body={"name": "/tmp/x.bundle", "sha256": hashlib.sha256(content).hexdigest(), **more})


async def test_the_pieces_of_a_bundle_are_put_together_and_installed(api, policies) -> None:
    await upload(api)
    assert await api.install(request(now=True)) == {"policy_id": "new", "already_driving": False}
    assert policies.installed == [(CONTENT, True)]


async def test_a_new_upload_begins_anew(api, policies) -> None:
    await upload(api, b"something else")
    await upload(api)
    await api.install(request())
    assert policies.installed == [(CONTENT, False)]


async def test_a_bundle_is_installed_once(api) -> None:
    await upload(api)
    await api.install(request())
    with pytest.raises(RequestError, match="upload it first"):
        await api.install(request())


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"offset": 5, "content": ""}, "0 bytes are here, not 5"),
        ({"offset": "0", "content": ""}, "whole number"),
        ({"offset": 0, "content": 3}, "base64"),
        ({"offset": 0, "content": "a"}, "not base64"),
        ({"offset": 0, "content": "\u00e4\u00e4\u00e4\u00e4"}, "not base64"),
        ({}, "whole number"),
    ],
)
async def test_a_piece_that_makes_no_sense_is_refused(api, body, words) -> None:
    with pytest.raises(RequestError, match=words):
        await api.upload(Request(body=body))


async def test_more_than_a_bundle_may_have_is_refused(api, monkeypatch) -> None:
    monkeypatch.setattr("roverd.policy_api.MAX_BUNDLE_BYTES", 1500)
    with pytest.raises(RequestError, match="more than 1500 bytes"):
        await upload(api)


async def test_other_bytes_than_announced_are_refused(api) -> None:
    await upload(api, CONTENT[:-1])
    with pytest.raises(RequestError, match="was announced") as caught:
        await api.install(request())
    assert caught.value.status == 409


@pytest.mark.parametrize("error", [BundleError("manifest: no"), OSError("no space")])
async def test_a_refused_bundle_is_one_error_that_names_the_file_and_what_to_do(api, policies, error) -> None:
    policies.error = error
    await upload(api)
    with pytest.raises(RequestError, match=r"/tmp/x\.bundle: .*nothing was changed; give a bundle that was exported"):
        await api.install(request())


async def test_now_must_be_true_or_false(api) -> None:
    await upload(api)
    with pytest.raises(RequestError, match="not true or false"):
        await api.install(request(now="yes"))


async def test_reload_and_rollback_pass_on_the_reason_of_a_refusal(api) -> None:
    with pytest.raises(RequestError, match="no policy is known"):
        await api.reload(Request())
    assert await api.rollback(Request(body={"now": True})) == {"policy_id": "back True"}


async def test_the_transaction_is_shown_with_what_drives(api) -> None:
    assert await api.transaction(Request()) == {"driving": "old", "transaction": {"stage": "none"}}
