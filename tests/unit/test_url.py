"""URLs of servers: what is read, what is refused, and that nothing of a password is ever shown."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.pretty import pretty_repr

from scheduler.errors import InvalidInput, without_credentials
from scheduler.url import parse_url

SECRET_WORDS = ("Wonder7", "t41SZq", "Xk3yXX")
passwords = st.lists(st.sampled_from("@/#?:%&+= \\'\"[]$!é"), min_size=2, max_size=2).map(
    lambda signs: signs[0].join([SECRET_WORDS[0], signs[1].join(SECRET_WORDS[1:])])
)
AT = "127.0.0.1:1"
FORMS = [
    f"redis://:{{}}@{AT}/0",
    f"redis://me:{{}}@{AT}",
    f"rediss://:{{}}@{AT}/0",
    f"redis://{{}}:x@{AT}/0",
    f"redis://{{}}@{AT}/0",
    "redis://me:{}@[::1]:1/0",
    "redis://me:{}@",
    "redis://me:{}",
    "unix://:{}@/run/none.sock",
    "unix:///run/none.sock?db=1&password={}",
    f"redis://{AT}/0?password={{}}",
    f"redis://{AT}?username=me&password={{}}",
    f"rediss://{AT}/0?ssl_password={{}}",
    f"redis://{AT}/0?ssl_password={{}}",
    f"redis://{AT}/0?pasword={{}}",
    f"redis://{AT}/{{}}",
    f"redis://{AT}/0#{{}}",
    f"redis://{AT}:{{}}/0",
    f"http://:{{}}@{AT}/",
    f"reddis://me:{{}}@{AT}/0",
    f"me:{{}}@{AT}",
    "{}",
]

HOSTLESS = ("redis://me:{}", f"redis://{AT}:{{}}/0")


def shown_of(text: str) -> str:
    """All that a URL gives to see: its refusal, or each of its texts."""
    try:
        url = parse_url(text, "SCHED_REDIS_URL")
    except InvalidInput as error:
        return f"{error} {error!r}"
    return f"{url} {url!r} {pretty_repr(url)} {'%s' % url} {[url]}"  # noqa: UP031


def leaked(text: str) -> list[str]:
    """Parts of the password in a text."""
    return [word for word in SECRET_WORDS if word in text]


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=30)
@given(passwords)
def test_nothing_of_a_password_is_shown(form: str, password: str) -> None:
    """Wherever it stands, encoded or not, whether the URL is taken or refused; also in a text of somebody else's."""
    assert leaked(shown_of(form.format(quote(password, safe="")))) == []
    if form in HOSTLESS and "@" in password:
        return  # by all rules of URLs a host stands behind it
    assert leaked(shown_of(form.format(password))) == []


@pytest.mark.parametrize("form", [form for form in FORMS if "://" in form and ("@" in form or "password=" in form)])
@settings(max_examples=30)
@given(passwords)
def test_nothing_of_a_password_stays_in_the_texts_of_others(form: str, password: str) -> None:
    """A library's error or log line has a whole URL in it at times."""
    if form.endswith(("{}@", "{}")) and "password=" not in form:
        return  # no host follows, so nothing says what it is
    if " " in password or ("&" in password and "password={}" in form):
        return  # where it ends is not to be seen
    assert leaked(without_credentials(f"failed: {form.format(password)}: no")) == []


@given(passwords, st.sampled_from(["redis://{}:{}@h:1/2", "rediss://{}:{}@h:1/2", "unix://{}:{}@/run/s"]))
def test_what_is_encoded_is_read_as_it_was(password: str, form: str) -> None:
    """Any text can be a user or a password."""
    url = parse_url(form.format(quote(password, safe=""), quote(password[::-1], safe="")))
    assert (url.username, url.password) == (password, password[::-1])
    whole = parse_url(f"redis://h:1/2?username={quote(password, safe='')}&password={quote(password[::-1], safe='')}")
    assert (whole.username, whole.password) == (password, password[::-1])


@pytest.mark.parametrize(
    ("text", "shown", "fields"),
    [
        ("redis://h", "redis://h:6379/0", {"host": "h", "port": 6379, "db": 0}),
        ("redis://h:1", "redis://h:1/0", {"port": 1}),
        ("redis://h:1/", "redis://h:1/0", {}),
        ("redis://h:1/15", "redis://h:1/15", {"db": 15}),
        ("redis://h:1/15/", "redis://h:1/15", {"db": 15}),
        ("redis://h:1?db=15", "redis://h:1/15", {"db": 15}),
        ("redis://h:1/15?db=15", "redis://h:1/15", {"db": 15}),
        ("  redis://h:1/0\n", "redis://h:1/0", {"whole": "redis://h:1/0"}),
        ("REDIS://h:1", "redis://h:1/0", {"scheme": "redis"}),
        ("redis://", "redis://localhost:6379/0", {}),
        ("redis:///3", "redis://localhost:6379/3", {"db": 3}),
        ("redis://:@h", "redis://h:6379/0", {"username": "", "password": ""}),
        ("redis://me@h", "redis://h:6379/0", {"username": "me", "password": ""}),
        ("redis://:a:b@h", "redis://h:6379/0", {"password": "a:b"}),
        ("redis://redis_1.local-net:1/0", "redis://redis_1.local-net:1/0", {}),
        ("redis://[::1]", "redis://[::1]:6379/0", {"host": "::1"}),
        ("redis://u:p@[fd00::1]:7/3", "redis://[fd00::1]:7/3", {"host": "fd00::1", "port": 7, "password": "p"}),
        ("redis://[fe80::1%25eth0]:7", "redis://[fe80::1%eth0]:7/0", {"host": "fe80::1%eth0"}),
        ("unix:///run/r.sock", "unix:///run/r.sock", {"path": "/run/r.sock", "host": "", "port": 0}),
        ("unix:///run/r%20s.sock?db=2", "unix:///run/r s.sock (db 2)", {"path": "/run/r s.sock", "db": 2}),
        ("unix://u:p@/run/r@1.sock", "unix:///run/r@1.sock", {"username": "u", "password": "p"}),
        ("redis://h?password=&db=", "redis://h:6379/0", {"password": "", "db": 0}),
        (
            "rediss://h:1/0?ssl_ca_certs=/etc/ca.pem&ssl_cert_reqs=optional&ssl_check_hostname=No&ssl_min_version=TLSv1.3",
            "rediss://h:1/0",
            {
                "tls": {
                    "ssl_ca_certs": "/etc/ca.pem",
                    "ssl_cert_reqs": "optional",
                    "ssl_check_hostname": False,
                    "ssl_min_version": "TLSv1_3",
                }
            },
        ),
    ],
)
def test_a_url_is_read_and_shown_in_one_form(text: str, shown: str, fields: dict[str, Any]) -> None:
    """Scheme, host, port and database, with what was left out; or the path of a socket."""
    url = parse_url(text)
    assert (str(url), repr(url)) == (shown, f"ServerUrl({shown})")
    assert {name: getattr(url, name) for name in fields} == fields
    assert parse_url(url) is url


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty: expected redis://host:port/0, rediss://host:port/0 or unix:///path"),
        (" \n", "it is empty"),
        ("localhost", "it has no scheme"),
        ("localhost:6379", "it has no scheme"),
        ("redis:/h", "it has no scheme"),
        ("redis:h", "it has no scheme"),
        ("http://h", "its scheme is not known: expected redis://host:port/0"),
        ("reddis://h", "its scheme is not known, the nearest is redis: expected"),
        ("redisss://h", "its scheme is not known, the nearest is rediss: expected"),
        ("unx:///run/s", "its scheme is not known, the nearest is unix: expected"),
        ("redis://h/mydb", "its database is no number: expected one of the server's numbers"),
        ("redis://h/-1", "its database is no number"),
        ("redis://h/1.5", "its database is no number"),
        ("redis://h/٣", "its database is no number"),
        ("redis://h//1", "its database is no number"),
        ("redis://h/0/1", "its database is no number"),
        ("redis://h?db=x", "its database is no number"),
        ("redis://h/1?db=2", "it names two databases"),
        ("redis://h/1?db=1&db=1", "its option db stands in it twice"),
        ("redis://h:port/0", "its port is no number from 1 to 65535"),
        ("redis://h:0", "its port is no number from 1 to 65535"),
        ("redis://h:65536", "its port is no number from 1 to 65535"),
        ("redis://h:-1", "its port is no number from 1 to 65535"),
        ("redis://h:1:2", "its port is no number from 1 to 65535"),
        ("redis://a/b@h", "as if a password was not percent-encoded: expected user and password with @ written as %40"),
        ("redis://:a#b@h", "as if a password was not percent-encoded"),
        ("redis://:a?b@h", "as if a password was not percent-encoded"),
        ("redis://:a@b@h", "as if a password was not percent-encoded"),
        ("redis://:a/b", "its port is no number from 1 to 65535, as if a password was not percent-encoded"),
        ("unix://:a/b@/run/s", "as if a password was not percent-encoded"),
        ("redis://::1", "its host is an IPv6 address without brackets: expected one such as redis://[::1]:6379/0"),
        ("redis://fd00::1", "its host is an IPv6 address without brackets"),
        ("redis://[::1", "its host is no IPv6 address in brackets"),
        ("redis://[h]", "its host is no IPv6 address in brackets"),
        ("redis://[::1]6379", "its host is no IPv6 address in brackets"),
        ("redis://a b", "its host is no name or address"),
        ("redis://a..b", "its host is no name or address"),
        (f"redis://{'a' * 64}.b", "its host is no name or address"),
        ("redis://h\x00", "it has a character that cannot be printed"),
        ("redis://h\n.evil", "it has a character that cannot be printed"),
        ("redis://h%0a", "its host has a character that cannot be printed"),
        ("redis://u%1b[31m@h", "its user has a character that cannot be printed"),
        ("redis://:%ff@h", "its password is no UTF-8 text"),
        ("unix://run/s", "it names no socket: expected an absolute path after two slashes, unix:///path"),
        ("unix://", "it names no socket"),
        ("unix:///", "it names no socket"),
        ("unix:///run/s%00", "its path has a character that cannot be printed"),
        (f"unix:///{'s' * 107}", "its path is too long for a socket: expected at most 107 bytes"),
        ("redis://h?socket_timeout=1", "its option socket_timeout is not known, the nearest is "),
        ("redis://h?decode_responses=True", "its option decode_responses is not known, the nearest is "),
        ("redis://h?max_connections=1", "its option max_connections is not known, the nearest is "),
        ("redis://h?pasword=x", "its option pasword is not known, the nearest is password: expected one of db, "),
        ("redis://h?Password=x", "its option Password is not known, the nearest is password"),
        ("redis://h?x", "one of its options is not known"),
        ("redis://h?password=a&b=c", "one of its options is not known"),
        ("rediss://h?ssl_password=a&b=c", "one of its options is not known"),
        ("rediss://h?ssl_ca_cert=x", "its option ssl_ca_cert is not known, the nearest is ssl_ca_certs"),
        ("redis://h?ssl_ca_certs=x", "its option ssl_ca_certs is for TLS: expected it with rediss:// only"),
        ("unix:///s?ssl_ca_certs=x", "its option ssl_ca_certs is for TLS"),
        (
            "rediss://h?ssl_cert_reqs=maybe",
            "its option ssl_cert_reqs has a value that is not known: expected none, opt",
        ),
        (
            "rediss://h?ssl_check_hostname=2",
            "its option ssl_check_hostname has a value that is not known: expected true",
        ),
        (
            "rediss://h?ssl_min_version=SSLv3",
            "its option ssl_min_version has a value that is not known: expected TLSv1.2",
        ),
        ("redis://u:p@h?password=x", "user or password stand in it twice"),
        (b"redis://h", "it is of type bytes: expected text"),
        (None, "it is of type NoneType: expected text"),
        (6379, "it is of type int: expected text"),
    ],
)
def test_what_cannot_be_used_is_refused_in_words(text: Any, message: str) -> None:
    """By what it is, never by its text."""
    with pytest.raises(InvalidInput) as refused:
        parse_url(text, "--redis-url")
    assert str(refused.value).startswith("--redis-url: ")
    assert message in str(refused.value)
    assert refused.value.__cause__ is None


@given(
    st.text()
    | st.text().map("redis://".__add__)
    | st.text(alphabet="redis:/@[]?=&%#0123456789.ab").map("rediss://".__add__)
)
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing else is raised, and what is shown is one line."""
    try:
        shown = str(parse_url(text))
    except InvalidInput as error:
        shown = str(error)
    assert shown.isprintable()


def test_a_long_text_is_searched_in_linear_time() -> None:
    """A log line or an error can be large."""
    assert len(without_credentials("a://" * 250_000)) == 1_000_000
    assert len(without_credentials("redis://a:" * 100_000)) > 0
