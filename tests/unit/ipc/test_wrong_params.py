"""Every method of the socket, every parameter, every kind of value that it is not: refused by name, and nothing done."""

from __future__ import annotations

import math

import pytest

from rondevud.ipc.methods import TABLE

VALUES = [
    True, 7, -1, 2**63, 1.5, math.nan, math.inf, -math.inf, "", "x" * 2_000, "conn-a", "connected", "out", "\0",
    b"", b"x", b"x" * 2_000, [], [None], [1], ["x"], [[]], {}, {"x": 1}, {b"x": {}},
]  # fmt: skip
CASES = [(method.name, key) for method in TABLE.methods.values() for key in method.parameters]


def right(parameter):
    """A value that fits; a parameter that takes none of these needs one more."""
    fitting = [value for value in VALUES if parameter.check(value) is None]
    assert fitting, f"no value for a parameter that must be {parameter.check(None)}"
    return fitting[0]


def kind(value):
    return type(value).__name__


@pytest.mark.parametrize(("name", "key"), CASES)
async def test_a_value_of_a_wrong_type_is_refused_by_method_and_parameter(client, name, key):
    method = TABLE.methods[name]
    needed = {other: right(one) for other, one in method.parameters.items() if one.required and other != key}
    wrong = [value for value in VALUES if method.parameters[key].check(value) is not None]
    taken = {kind(value) for value in VALUES} - {kind(value) for value in wrong}
    assert len({kind(value) for value in wrong}) >= 5, f"{name}: {key} takes nearly anything: {taken}"
    for value in wrong:
        error = await client.refused(name, **needed, **{key: value})
        assert error["code"] == "bad_params", (value, error)
        assert error["message"].startswith(f"{name}: {key} must be "), (value, error)
        assert error["data"] == {"parameter": key}
    assert await client.result("ping") == {}


@pytest.mark.parametrize("name", TABLE.methods)
async def test_a_parameter_that_is_missing_or_unknown_is_named(client, name):
    method = TABLE.methods[name]
    needed = {key: right(one) for key, one in method.parameters.items() if one.required}
    for key in needed:
        error = await client.refused(name, **{other: value for other, value in needed.items() if other != key})
        assert (error["code"], error["message"]) == ("bad_params", f"{name} lacks the parameter {key}")
    if name == "hello":  # in which a newer library may say more
        return
    error = await client.refused(name, **needed, colour="red")
    assert error["code"] == "bad_params"
    assert f"{name} has no parameter 'colour'" in error["message"]
