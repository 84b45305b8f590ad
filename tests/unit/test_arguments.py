"""Arguments of the SDK that cannot be used are refused in words, before anything is sent."""

from __future__ import annotations

import asyncio
import functools
import inspect
import re
from typing import Any

import msgspec
import pytest

from scheduler import Node, Producer
from scheduler.config import DEFAULTS, Settings
from scheduler.errors import InvalidInput, Retry
from scheduler.node.handlers import Job
from scheduler.producer import Request
from scheduler.protocol.documents import JobDocument
from scheduler.url import parse_url

URL = "redis://me:s3cret@127.0.0.1:1"
NAN, INFINITY, HUGE = float("nan"), float("inf"), 10**400
SURROGATE = "\ud800"


class Rude:
    """An object that cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


class Called:
    """An object to be called with one job."""

    def __call__(self, job: Job) -> None:
        """Nothing."""


class CalledWithNone:
    """An object to be called with nothing."""

    def __call__(self) -> None:
        """Nothing."""


def yields(job: Job) -> Any:
    """A generator."""
    yield job


async def yields_later(job: Job) -> Any:
    """An asynchronous generator."""
    yield job


def refused(message: str) -> None:
    """What every refusal is: a line that names the thing and what was expected, and no secret."""
    assert re.search(r"expected|= .*: ", message)
    assert "s3cret" not in message
    assert message.isprintable()
    assert len(message) < 500


# ---- what is wrong --------------------------------------------------------------------------------------------------

NOT_TEXT = [None, 5, b"x", ["x"], {"x": 1}, True, Rude()]
NOT_TEXTS = ["asr", b"asr", {"asr": 1}, None, 5, [5], [None], [b"asr"], [["asr"]], [SURROGATE], Rude()]
NOT_WHOLE = [None, "5", 1.5, NAN, INFINITY, True, HUGE, [5], Rude()]
NOT_TIME = ["5", NAN, INFINITY, -1, -0.5, True, HUGE, [5], Rude()]

NODE: list[dict[str, Any]] = [
    *({"url": each} for each in [None, 5, b"redis://h", "", "h", "http://me:s3cret@h", "redis://me:s3cret/@h"]),
    *({"node_id": each} for each in [*NOT_TEXT, "", "a b", "a" * 65, SURROGATE, "{a}"]),
    *({"capacity": each} for each in [*NOT_WHOLE, 0, -1, 1_000_001]),
    *({"features": each} for each in NOT_TEXTS),
    *({"pairs": each} for each in [("en", "zh"), "en:zh", ["en:zh"], {"en": "zh"}, None, 5, [("en",)], [("en", 5)]]),
    *({"pairs": each} for each in [[("en", "zh", "de")], [("en", "")], [("e n", "zh")], [None], [("en", SURROGATE)]]),
    *({"labels": each} for each in [["zone"], "zone=eu", {"zone": 1}, {1: "eu"}, {"zone": None}, {"z": SURROGATE}]),
    {"labels": {"zone": "x" * 300_000}},
    {"version": "x" * 300_000},
    {"pairs": [(f"a{number}", "b") for number in range(30_000)]},
    *({"pool": each} for each in [*NOT_TEXT, "a b", "a" * 65]),
    *({"version": each} for each in [*NOT_TEXT, SURROGATE]),
    *({"drain_ms_max": each} for each in [None, *NOT_TIME]),
    *({"handler": each} for each in [None, "h:h", 5, dict, Called, CalledWithNone(), yields, yields_later]),
    *({"handler": each} for each in [lambda: 0, lambda a, b: 0, lambda *, job: 0]),
    *({"settings": each} for each in [{}, "x", 5, Settings]),
    *({"observer": each} for each in [5, "x", print]),
    *({"host": each} for each in [5, "host", {}]),
]
PRODUCER: list[dict[str, Any]] = [
    *({"url": each} for each in [None, 5, b"redis://h", "", "h", "http://me:s3cret@h", "redis://me:s3cret/@h"]),
    *({"patience_ms": each} for each in NOT_TIME),
    *({"reply_to": each} for each in [*NOT_TEXT, "a b", "a" * 65, SURROGATE]),
    *({"settings": each} for each in [{}, "x", 5, Settings, msgspec.structs.replace(DEFAULTS, lease_ms="5")]),
    *({"host": each} for each in [5, "host", {}]),
]
SUBMIT: list[dict[str, Any]] = [
    *({"session_id": each} for each in [*NOT_TEXT, "", "a b", "a" * 129, SURROGATE]),
    *({"payload": each} for each in [None, 5, 1.5, {"a": 1}, ["a"], True, SURROGATE, Rude()]),
    *({"job_id": each} for each in [*NOT_TEXT, "a b", "~a", "a" * 129, SURROGATE]),
    *(
        {name: each}
        for name in ("tenant_id", "routing_key", "reply_to", "preferred_node")
        for each in [*NOT_TEXT, "a b"]
    ),
    *({"src_lang": each, "tgt_lang": "zh"} for each in [*NOT_TEXT, "", "e n", "e:n"]),
    *({"src_lang": "en", "tgt_lang": each} for each in [*NOT_TEXT, "", "z h", "z:h"]),
    *({"features": each} for each in [*NOT_TEXTS, ["a b"], ["a"] * 33]),
    *({"priority": each} for each in NOT_WHOLE),
    *({"deadline_ms": each} for each in [*[each for each in NOT_WHOLE if each is not None], 0, -1]),
]
DOCUMENT = JobDocument("s")
REQUESTS: list[Any] = [
    *(None, 5, "s", b"s", DOCUMENT, Request(DOCUMENT), [None], ["s"], [DOCUMENT], {"session_id": "s"}, Rude()),
    *([Request(each)] for each in (None, "s", {"session_id": "s"})),  # type: ignore[arg-type]
    *([Request(DOCUMENT, each)] for each in (None, 5, {"a": 1}, SURROGATE)),  # type: ignore[arg-type]
    *(
        [Request(msgspec.structs.replace(DOCUMENT, **{name: each}))]
        for name, wrong in {
            "session_id": (None, 5, b"s", "", SURROGATE),
            "job_id": (None, 5, SURROGATE),
            "reply_to": (None, 5),
            "features": ("asr", None, 5, [5], [Rude()]),
            "priority": (None, "5", 1.5, NAN, True, HUGE),
            "deadline_ms": ("5", 1.5, NAN, INFINITY, True, HUGE, 0),
            "tenant_id": (None, 5),
        }.items()
        for each in wrong
    ),
]
WAIT: list[dict[str, Any]] = [
    *({"job_id": each} for each in [None, 5, b"x", SURROGATE]),
    *({"job_id": "j", "timeout_ms": each} for each in NOT_TIME),
]


def shown(wrong: dict[str, Any]) -> str:
    """An id for a test, the same in each process: without addresses."""
    return "-".join(f"{name}={_shown(value)}" for name, value in wrong.items())


def _shown(value: object) -> str:
    plain = isinstance(value, str | int | float) or value is None
    return ascii(value)[:30] if plain and value != HUGE else type(value).__name__


def test_there_are_many() -> None:
    """As many as it takes to meet each check."""
    assert len(NODE) + len(PRODUCER) + len(SUBMIT) + len(REQUESTS) + len(WAIT) > 250


@pytest.mark.parametrize("wrong", NODE, ids=shown)
def test_a_node(wrong: dict[str, Any]) -> None:
    """Refused when it is made."""
    right: dict[str, Any] = {"url": URL, "node_id": "n1", "capacity": 1, "handler": print, "settings": DEFAULTS}
    with pytest.raises(InvalidInput) as error:
        Node(**{**right, **wrong})
    refused(str(error.value))


@pytest.mark.parametrize("wrong", PRODUCER, ids=shown)
def test_a_producer(wrong: dict[str, Any]) -> None:
    """Refused when it is made."""
    with pytest.raises(InvalidInput) as error:
        Producer(**{"url": URL, "settings": DEFAULTS, **wrong})
    refused(str(error.value))


@pytest.mark.parametrize(
    "after", [None, 5, b"0", "", "x", "-1", "1-2-3", "0 ", "(1-0", "+", str(2**64), "\x1b", "\u0661"]
)
async def test_a_place_in_the_feed(after: Any) -> None:
    """A wrong one would be asked for again and again, in silence."""
    with pytest.raises(InvalidInput) as error:
        await anext(Producer(URL, settings=DEFAULTS).results(after))
    refused(str(error.value))
    assert "after = " in str(error.value)


@pytest.mark.parametrize("wrong", SUBMIT, ids=shown)
def test_a_job(wrong: dict[str, Any]) -> None:
    """Refused before anything is sent, so that no server is needed; the argument is named."""
    producer = Producer(URL, settings=DEFAULTS)
    with pytest.raises(InvalidInput) as error:
        asyncio.run(producer.submit(**({"session_id": "s"} | wrong)))
    refused(str(error.value))
    assert any(name.removesuffix("s") in str(error.value) for name in wrong)


@pytest.mark.parametrize("number", range(len(REQUESTS)))
def test_jobs(number: int) -> None:
    """Refused before anything is sent, also where a document was made with values of other types."""
    producer = Producer(URL, settings=DEFAULTS)
    with pytest.raises(InvalidInput) as error:
        asyncio.run(producer.submit_many(REQUESTS[number]))
    assert "not entered" not in str(error.value)
    refused(str(error.value))


@pytest.mark.parametrize("wrong", WAIT, ids=shown)
@pytest.mark.parametrize("call", ["result", "outcome"])
def test_waiting(call: str, wrong: dict[str, Any]) -> None:
    """Refused at once, and not after a wait."""
    producer = Producer(URL, settings=DEFAULTS)
    with pytest.raises(InvalidInput) as error:
        asyncio.run(getattr(producer, call)(**wrong))
    assert "not entered" not in str(error.value)
    refused(str(error.value))


@pytest.mark.parametrize("delay_ms", ["5", NAN, INFINITY, HUGE, True, [5]])
def test_a_delay(delay_ms: Any) -> None:
    """Of another attempt."""
    with pytest.raises(InvalidInput, match="Retry: delay_ms = "):
        Retry("later", delay_ms)


# ---- what is right --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "handler",
    [
        print,
        len,
        yields.__get__,
        Called(),
        lambda job, more=1: 0,
        lambda *jobs: 0,
        functools.partial(lambda a, b: 0, 1),
    ],
)
def test_a_handler_can_be_whatever_takes_a_job(handler: Any) -> None:
    """A function of Python or C, a method, an object, a function with more arguments that need not be given."""
    Node(URL, "n1", capacity=1, handler=handler, settings=DEFAULTS)


def test_lists_can_be_of_any_kind() -> None:
    """Tuples, sets and generators give their texts one by one."""
    for features in (["b", "a"], ("a", "b"), {"a", "b"}, (each for each in "ab"), dict.fromkeys("ab").keys()):
        node = Node(URL, "n1", capacity=1, handler=print, features=features, settings=DEFAULTS)
        assert node._beat_document.features == ("a", "b")
    for pairs in ([("en", "zh")], (("en", "zh"),), {("en", "zh")}, [["en", "zh"]], iter([("en", "zh")])):
        node = Node(URL, "n1", capacity=1, handler=print, pairs=pairs, settings=DEFAULTS)  # type: ignore[arg-type]
        assert node._beat_document.pairs == (("en", "zh"),)


@pytest.mark.parametrize("payload", [b"\xc3\xa9", "é", bytearray(b"\xc3\xa9"), memoryview(b"\xc3\xa9")])
def test_a_payload_can_be_bytes_or_text(payload: Any) -> None:
    """Text is sent as UTF-8."""
    assert Producer(URL, settings=DEFAULTS)._checked(Request(DOCUMENT, payload))[2] == b"\xc3\xa9"


@pytest.mark.parametrize("field", JobDocument.__struct_fields__)
def test_each_field_of_a_document_can_be_submitted_and_is_seen_by_the_handler(field: str) -> None:
    """A new field is forgotten in neither place."""
    submitted = inspect.signature(Producer.submit).parameters[field]
    of_document = next(each for each in msgspec.structs.fields(JobDocument) if each.name == field)
    assert submitted.default in (inspect.Parameter.empty, of_document.default)
    assert field in Job.__slots__ or isinstance(getattr(Job, field), property)
    assert field in (inspect.getdoc(Job) or "")
    assert field in (inspect.getdoc(Producer.submit) or "")


def test_objects_do_not_show_credentials() -> None:
    """Logs and debuggers print them."""
    node = Node(URL, "n1", capacity=1, handler=print, settings=DEFAULTS)
    assert [repr(node), repr(Producer(URL, settings=DEFAULTS)), repr([parse_url(URL)])] == [
        "Node('n1', redis://127.0.0.1:1/0)",
        "Producer(redis://127.0.0.1:1/0)",
        "[ServerUrl(redis://127.0.0.1:1/0)]",
    ]
