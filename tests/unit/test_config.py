"""Settings: read once, checked as a whole, and refused with the key, the value and what was expected."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from scheduler.config import DEFAULTS, NOT_SETTINGS, Settings, check_settings, read_settings
from scheduler.errors import InvalidConfig, InvalidInput

COUNTS = [field.name for field in msgspec.structs.fields(Settings) if field.type is int]


def refusal(environment: dict[str, str]) -> InvalidConfig:
    """How an environment is refused."""
    with pytest.raises(InvalidConfig) as refused:
        read_settings(environment)
    return refused.value


def test_without_variables_the_defaults_are_in_force() -> None:
    """They are valid by themselves; what belongs to others, and what is no setting, is passed over."""
    check_settings(DEFAULTS)
    others = {"PATH": "/bin", "REDIS_URL": "redis://x", "sched_lease_ms": "5"} | dict.fromkeys(NOT_SETTINGS, "x")
    assert (read_settings({}), read_settings(others)) == (DEFAULTS, DEFAULTS)


def test_a_variable_sets_what_it_names() -> None:
    """Numbers and words, and nothing else changes."""
    settings = read_settings({"SCHED_LEASE_MS": "20000", "SCHED_NAMESPACE": "live", "SCHED_STRATEGY": "spread"})
    assert settings == msgspec.structs.replace(DEFAULTS, lease_ms=20_000, namespace="live", strategy="spread")


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("SCHED_LEASE", "SCHED_LEASE_MS"),
        ("SCHED_PARTITION", "SCHED_PARTITIONS"),
        ("SCHED_HEARTBEAT_SECONDS", "SCHED_HEARTBEAT_MS"),
        ("SCHED_ATTEMPT_MAX", "SCHED_ATTEMPTS_MAX"),
        ("SCHED_XYZ", "SCHED_"),
    ],
)
def test_an_unknown_variable_is_told_the_nearest(variable: str, nearest: str) -> None:
    """A misspelt setting must not be passed over in silence; what it was set to may be a password."""
    error = refusal({variable: "s3cret"})
    assert (error.key, error.value) == (variable, None)
    assert error.expected.startswith(f"a known setting; the nearest is {nearest}")
    assert str(error) == f"{variable}: expected {error.expected}"


def service_links(service: str, address: str, port: int, protocol: str = "tcp") -> dict[str, str]:
    """What Kubernetes puts into each pod of the namespace of a service; service: as a part of a variable."""
    port_links = f"{service}_PORT_{port}_{protocol.upper()}"
    host = f"[{address}]" if ":" in address else address
    return {
        f"{service}_SERVICE_HOST": address,
        f"{service}_SERVICE_PORT": str(port),
        f"{service}_SERVICE_PORT_CLIENT": str(port),
        f"{service}_PORT": f"{protocol}://{host}:{port}",
        port_links: f"{protocol}://{host}:{port}",
        f"{port_links}_PROTO": protocol,
        f"{port_links}_PORT": str(port),
        f"{port_links}_ADDR": address,
    }


@pytest.mark.parametrize(
    "service", ["SCHED", "SCHED_REDIS", "SCHED_LEASE", "SCHED_API_V2", "SCHED_PORT", "SCHED_LEASE_MS"]
)
@pytest.mark.parametrize("where", [("10.0.0.1", 6379, "tcp"), ("fd00::1", 53, "udp"), ("10.0.0.1", 9, "sctp")])
def test_service_links_of_kubernetes_are_no_settings(service: str, where: tuple[str, int, str]) -> None:
    """A service called sched, or sched-redis, stops nobody; settings beside its variables are read."""
    links = service_links(service, *where)
    assert len(links) == 8
    assert read_settings({**links, "SCHED_LEASE_MS": "20000"}).lease_ms == 20_000


@pytest.mark.parametrize(
    "variable",
    ["SCHED_PORT", "SCHED_REDIS_PORT", "SCHED_LEASE_PORT", "SCHED_SERVICE_PORT", "SCHED_SERVICE", "SCHED_HOST"],
)
def test_what_only_looks_like_a_service_link_is_refused(variable: str) -> None:
    """Whoever means a setting names no address, and no host of a service beside it."""
    assert refusal({variable: "6379"}).key == variable


def test_the_url_of_the_server_is_a_known_word() -> None:
    """It is no setting, but the nearest of what is often tried."""
    assert "the nearest is SCHED_REDIS_URL" in str(refusal({"SCHED_REDIS_URI": "redis://:s3cret@host"}))


@pytest.mark.parametrize("text", ["", " ", "\n"])
@pytest.mark.parametrize("variable", ["SCHED_LEASE_MS", "SCHED_NAMESPACE", "SCHED_STRATEGY", "SCHED_LEASE"])
def test_an_empty_variable_counts_as_not_set(variable: str, text: str) -> None:
    """Templates and compose files leave such behind, also of words that are none."""
    assert read_settings({variable: text}) == DEFAULTS


@pytest.mark.parametrize("wrong", [{}, None, "SCHED_LEASE_MS=5", Settings])
def test_settings_of_another_type_are_refused(wrong: Any) -> None:
    """In words, before anything looks into them."""
    with pytest.raises(InvalidInput, match="expected Settings"):
        check_settings(wrong)


@pytest.mark.parametrize("value", [True, 1.5, float("nan"), "5", None, [5], 10**13, 10**400])
def test_a_number_of_the_settings_is_a_whole_one(value: Any) -> None:
    """No truth value, no fraction, no text, and none that a script cannot hold."""
    with pytest.raises(InvalidConfig) as refused:
        check_settings(msgspec.structs.replace(DEFAULTS, run_ms_max=value))
    assert refused.value.key == "run_ms_max"


@pytest.mark.parametrize("value", [None, 5, b"sched", ["sched"]])
def test_a_name_of_the_settings_is_a_text(value: Any) -> None:
    """Also where it is used as a key only later."""
    with pytest.raises(InvalidInput, match="namespace = "):
        check_settings(msgspec.structs.replace(DEFAULTS, namespace=value))


@pytest.mark.parametrize("text", ["ten", "1.5", "1e3", "0x10", "5s"])
def test_a_number_must_be_one(text: str) -> None:
    """The refusal shows what was given."""
    error = refusal({"SCHED_LEASE_MS": text})
    assert (error.key, error.value, error.expected) == ("SCHED_LEASE_MS", text, "a whole number")


@pytest.mark.parametrize("text", ["²", "--5", "9" * 5_000])
def test_what_only_looks_like_a_number_is_refused_as_well(text: str) -> None:
    """A superscript, two signs, or more digits than a number can have."""
    assert refusal({"SCHED_LEASE_MS": text}).key == "SCHED_LEASE_MS"


@pytest.mark.parametrize("name", COUNTS)
def test_every_number_is_above_zero(name: str) -> None:
    """Each of them bounds something, or is a time."""
    for value in (0, -1):
        error = refusal({f"SCHED_{name.upper()}": str(value)})
        assert (error.key, error.value, error.expected) == (f"SCHED_{name.upper()}", value, "a whole number above 0")


@pytest.mark.parametrize(
    ("changed", "key", "value", "expected"),
    [
        pytest.param({"strategy": "random"}, "strategy", "random", "affinity, spread or least_loaded", id="strategy"),
        pytest.param({"cells": 2}, "cells", 2, "1: there is one cell so far", id="cells"),
        pytest.param({"partitions": 4097}, "partitions", 4097, "at most 4096", id="too many partitions"),
        pytest.param({"batch_max": 129}, "batch_max", 129, "at most 128 jobs of one script call", id="batch"),
        pytest.param(
            {"margin_ms": 2_501},
            "margin_ms",
            2_501,
            "at most half of start_ms (5000)",
            id="a margin above half of the first lease",
        ),
        pytest.param(
            {"lease_ms": 1_999}, "lease_ms", 1_999, "at least twice margin_ms (1000)", id="a lease below two margins"
        ),
        pytest.param(
            {"candidates_max": 17},
            "candidates_max",
            17,
            "at most 16 nodes, each of which costs two keys of a script call",
            id="more candidates than a call has space for",
        ),
        pytest.param(
            {"heartbeat_ms": 2_501}, "heartbeat_ms", 2_501, "at most half of silence_ms (5000)", id="rare heartbeats"
        ),
        pytest.param({"silence_ms": 1_999}, "silence_ms", 1_999, "at least twice heartbeat_ms (1000)", id="silence"),
        pytest.param(
            {"sessions_max": 255},
            "sessions_max",
            255,
            "at least 256, the sessions of two calls of batch_max jobs",
            id="fewer sessions than calls",
        ),
        *[
            pytest.param(
                {name: 999}, name, 999, "at least 1000, or some would miss what others tell", id=f"short {name}"
            )
            for name in ("heartbeats_max", "results_max", "freed_max")
        ],
        pytest.param(
            {"result_bytes_max": 2**20 + 1},
            "result_bytes_max",
            2**20 + 1,
            "at most 1048576, for all results are kept in memory",
            id="larger results than the scripts take",
        ),
        pytest.param({"lease_ms": "15"}, "lease_ms", "15", "a whole number above 0", id="a number as text"),
    ],
)
def test_values_that_cannot_work_together_are_refused(
    changed: dict[str, Any], key: str, value: object, expected: str
) -> None:
    """The key is as the caller knows it: a field here, a variable when it came from the environment."""
    with pytest.raises(InvalidConfig) as refused:
        check_settings(msgspec.structs.replace(DEFAULTS, **changed))
    assert (refused.value.key, refused.value.value, refused.value.expected) == (key, value, expected)
    if not isinstance(changed.get("lease_ms"), str):
        environment = {f"SCHED_{name.upper()}": str(each) for name, each in changed.items()}
        assert refusal(environment).key == f"SCHED_{key.upper()}"


@pytest.mark.parametrize("namespace", ["a b", "{a}", "a" * 65])
def test_a_namespace_that_cannot_stand_in_a_key_is_refused(namespace: str) -> None:
    """With the reason."""
    with pytest.raises(InvalidInput, match="SCHED_NAMESPACE = "):
        read_settings({"SCHED_NAMESPACE": namespace})


def test_settings_are_frozen() -> None:
    """Nothing changes them after the start."""
    with pytest.raises(AttributeError):
        DEFAULTS.lease_ms = 1  # type: ignore[misc]
