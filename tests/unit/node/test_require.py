"""Missing extras and shadowed packages."""

from __future__ import annotations

import importlib.metadata
import re
from importlib.machinery import ModuleSpec

import pytest

from protocol.node import require as module
from protocol.node.require import MissingExtraError, ShadowedPackageError, check_ownership, require


def test_an_installed_module_is_given() -> None:
    assert require("json", "sim").loads("1") == 1


def test_a_missing_module_names_the_extra_that_brings_it() -> None:
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'roverloop[sim]'")):
        require("no_such_module_anywhere", "sim")


def test_the_packages_of_this_checkout_are_ours() -> None:
    check_ownership()


def test_another_distribution_with_the_same_name_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    owners = {"protocol": ["roverloop", "protocol"], "plugins": ["roverloop"]}
    monkeypatch.setattr(
        importlib.metadata, "packages_distributions", lambda: {**owners, "protocol": ["roverloop", "evil"]}
    )
    with pytest.raises(ShadowedPackageError, match="package protocol: the distribution evil has one of the same name"):
        check_ownership()


def test_a_folder_that_shadows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    origins = {"protocol": "/ours/protocol", "plugins": "/theirs/plugins", "roverd": "/ours/roverd"}

    def find_spec(name: str) -> ModuleSpec:
        return ModuleSpec(name, None, origin=f"{origins[name]}/__init__.py")

    monkeypatch.setattr(importlib.metadata, "packages_distributions", dict)
    monkeypatch.setattr(module.importlib.util, "find_spec", find_spec)
    with pytest.raises(ShadowedPackageError, match="package plugins: found /theirs/plugins"):
        check_ownership()
