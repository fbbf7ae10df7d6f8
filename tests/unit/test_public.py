"""The public face: complete, documented, and with the signatures that were promised."""

from __future__ import annotations

import inspect
import re
from importlib.metadata import version
from pathlib import Path

import pytest
from support.bad_input import CASES, Case

import torrelque
from torrelque import Torrelque, errors, model

ROOT = Path(__file__).parent.parent.parent
PUBLIC_METHODS = [name for name in vars(Torrelque) if not name.startswith("_") and callable(getattr(Torrelque, name))]

#: The documented signatures of the published package, without annotations; ours may add keyword-only parameters.
DOCUMENTED = {
    "enqueue": "(self, task, *, task_timeout=None, delay=None, pipeline=None)",
    "dequeue": "(self, timeout=None, *, max_tasks=1)",
    "requeue": "(self, task_id, delay=None, *, task_timeout=None, pipeline=None)",
    "release": "(self, task_id, *, result=None, result_ttl=None, status=COMPLETED, pipeline=None)",
    "watch": "(self, task_id, *, timeout=None)",
    "sweep": "(self)",
    "schedule_sweep": "(self, interval=None)",
    "unschedule_sweep": "(self)",
    "get_queue_stats": "(self)",
    "get_task_state": "(self, task_id)",
    "__init__": "(self, client, *, queue='trq', serialiser=JSON)",
}


def test_all_is_complete() -> None:
    """Every error and every word of the model is exported, and every exported name exists and is documented."""
    defined = {
        name
        for module in (errors, model)
        for name, value in vars(module).items()
        if name.startswith("Torrelque") and inspect.isclass(value)
    }
    assert defined <= set(torrelque.__all__)
    assert torrelque.__all__ == sorted(torrelque.__all__)
    for name in torrelque.__all__:
        assert inspect.getdoc(getattr(torrelque, name)), name


def test_every_error_is_a_torrelque_error() -> None:
    """One except clause catches whatever this library raises."""
    for name in torrelque.__all__:
        value = getattr(torrelque, name)
        if inspect.isclass(value) and issubclass(value, BaseException):
            assert issubclass(value, torrelque.TorrelqueError), name


@pytest.mark.parametrize("name", PUBLIC_METHODS)
def test_methods_are_documented(name: str) -> None:
    """A public method tells what it does and each of its parameters."""
    method = getattr(Torrelque, name)
    text = inspect.getdoc(method) or ""
    assert text.splitlines()[0].endswith(".") or "``" in text.splitlines()[0]
    for parameter in inspect.signature(method).parameters.values():
        if parameter.name not in {"self", "queue", "serialiser", "task_status"}:
            assert f":param {parameter.name}:" in text, parameter.name


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.what}-{case.parameter}")
def test_refusals_are_documented(case: Case) -> None:
    """A method that refuses values or types of a parameter says that it raises these errors."""
    text = inspect.getdoc(getattr(Torrelque, case.what)) or ""
    assert not case.values or ":raises TorrelqueValueError:" in text
    assert not case.types or ":raises TorrelqueTypeError:" in text


@pytest.mark.parametrize("name", DOCUMENTED)
def test_signatures_are_the_documented_ones(name: str) -> None:
    """Names, order, kinds and defaults of parameters are kept; what is added is keyword-only."""
    documented = re.findall(r"(\*|\w+)(?:=('[^']*'|\w+))?", DOCUMENTED[name])
    parameters = dict(inspect.signature(getattr(Torrelque, name)).parameters)
    keyword_only = False
    for parameter, default in documented:
        if parameter == "*":
            keyword_only = True
            continue
        ours = parameters.pop(parameter)
        assert (ours.kind is inspect.Parameter.KEYWORD_ONLY) == keyword_only
        assert (ours.default is inspect.Parameter.empty) == (default == "")
        if default in {"None", "1", "'trq'"}:
            assert repr(ours.default) == default
    assert all(ours.kind is inspect.Parameter.KEYWORD_ONLY for ours in parameters.values())


def test_version_is_said_once() -> None:
    """The installed version, the module's and the changelog's newest are one."""
    assert version("torrelque") == torrelque.__version__
    assert f"## {torrelque.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert (ROOT / "torrelque/py.typed").exists()
