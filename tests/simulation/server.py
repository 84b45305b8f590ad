"""A Redis server on virtual time: fakeredis, which runs the scheduler's own Lua, and what it lacks.

It does one command after the other, as the real one, answers in RESP, and can be slow, stop, be full, become a replica,
lose its scripts, its last writes or everything, and have its clock stepped. Nothing here waits: a client that blocks is
remembered, and is answered when a command touched one of the streams that it reads.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, Final, Protocol

import hiredis
import msgpack
from fakeredis import FakeServer
from fakeredis import _msgs as msgs
from fakeredis._commands import COMMANDS_WITH_SUB, SUPPORTED_COMMANDS, Key
from fakeredis._commands import command as is_command
from fakeredis._core import CommandItem, _database, _server
from fakeredis._helpers import NoResponse, SimpleError, SimpleString
from fakeredis._socket import _base as socket_base
from fakeredis._socket._fakesocket import FakeSocket
from fakeredis._socket._resp import convert_to_resp2
from fakeredis.commands_mixins import scripting_mixin, server_mixin
from fakeredis.model import StreamEntryKey, XStream, _client_info, _hash, _stream
from redis.asyncio import Redis

from scheduler.store.scripts import load_scripts
from tests.simulation.mends import full_stream_info, keep_error_texts, monitor_line

WALL_ORIGIN_S: Final = 1_700_000_000.0
COMMAND_S: Final = 0.000_02
INFO: Final = b"redis_version:7.2.0\r\nrun_id:%040d\r\nmaxmemory_policy:noeviction\r\nrole:%b\r\n"
# What a server refuses when memory is full, and what a replica does, of the commands that clients send here.
_WRITES: Final = frozenset(
    (
        "set", "hset", "hdel", "sadd", "srem", "zadd", "zrem", "xadd", "xdel", "xtrim", "xack", "xgroup", "del",
        "pexpire", "persist", "flushall", "rename",
    )
)  # fmt: skip
_ADDS: Final = frozenset(("set", "hset", "sadd", "zadd", "xadd"))
_IN_TRANSACTIONS: Final = frozenset(("multi", "exec", "discard", "watch", "unwatch"))
_COMPOSITE: Final = frozenset((list, tuple, dict, float, str))
_OOM: Final = "OOM command not allowed when used memory > 'maxmemory'."
_READONLY: Final = "READONLY You can't write against a read only replica."
_LOADING: Final = "LOADING Redis is loading the dataset in memory"


class Time(Protocol):
    """Whose time passes: a world's, or that of the machine."""

    @property
    def now_s(self) -> float:
        """Seconds from an origin of its own."""

    def call_at(self, when_s: float, call: Callable[..., object], *arguments: object) -> object:
        """Call at that time, at the earliest."""


class _WallClock(ModuleType):
    """Stands in fakeredis for the module `time`, and says what the server in question thinks."""

    def __init__(self) -> None:
        super().__init__("time")
        self.now: Callable[[], float] = time.time

    def time(self) -> float:
        """Seconds since the epoch."""
        return self.now()


_WALL: Final = _WallClock()
for _module in (_server, socket_base, server_mixin, _client_info, _hash, _stream):
    if hasattr(_module, "time"):
        _module.time = _WALL  # type: ignore[attr-defined]


class _Database(_database.Database):
    """Remembers what was touched; who blocks on it is the server's business."""

    touched: dict[bytes, None]

    def notify_watch(self, key: bytes) -> None:
        self.touched[key] = None

    def wake_all(self) -> None:
        pass


class Client:
    """One connection as the server sees it. send: what becomes of a reply, as bytes. doubles: its next command is done
    twice.
    """

    def __init__(self, server: Server, send: Callable[[bytes], None]) -> None:
        self.server = server
        self.send = send
        self.is_open = True
        self.doubles = False
        self.socket = _Socket(server, self)
        self.waiting: deque[list[bytes]] = deque()
        self.blocked: _Blocked | None = None
        self._reader = hiredis.Reader()

    def feed(self, data: bytes) -> None:
        """Bytes of a client: whole commands are done in their order."""
        self._reader.feed(data)
        while (command := self._reader.gets()) is not False:
            self.server.enqueue(self, command)

    def close(self) -> None:
        """The client is gone; what it had sent before is done all the same."""
        self.is_open = False
        self.blocked = None


class _Blocked:
    """A read that waits for streams. until_s: virtual time, infinite for no end."""

    def __init__(
        self,
        read: Callable[[bool], Any],
        shape: Callable[[Any], Any] | None,
        streams: frozenset[bytes],
        until_s: float,
    ) -> None:
        self.read = read
        self.shape = shape or (lambda found: found)
        self.streams = streams
        self.until_s = until_s


@functools.cache
def _shape_of(signature: Any, count: int, version: Any) -> tuple[list[Any], list[Any]]:
    """How to read the arguments of a command, so many of them: (position, decoder) of values, (position, type, answer
    when it is missing) of keys. Raises: SimpleError for a number of arguments that it does not take.
    """
    signature.check_arity([None] * count, version)
    kinds = list(signature.fixed)
    kinds += [signature.repeat[i % len(signature.repeat)] for i in range(count - len(kinds))]
    keys = [(i, kind.type_, kind.missing_return) for i, kind in enumerate(kinds) if isinstance(kind, Key)]
    decoders = [(i, kind.decode) for i, kind in enumerate(kinds) if not isinstance(kind, Key) and kind is not bytes]
    return decoders, keys


class _Script:
    def __init__(self, function: Any, flags: frozenset[str]) -> None:
        self.function = function
        self.flags = flags


class _Socket(FakeSocket):
    """fakeredis's end of a connection, which does the commands."""

    def __init__(self, server: Server, client: Client) -> None:
        self._home = server
        self._client = client
        self.reply: Any = None
        super().__init__(server.fake, 0, client_class=Redis)

    def put_response(self, msg: Any) -> None:
        self.reply = msg

    def _decode_result(self, result: Any) -> Any:
        return result

    def _unknown_command(self, command: str, args: str | None = None) -> SimpleError:
        return SimpleError(f"ERR unknown command '{command}'")

    def _blocking(self, timeout: Any, func: Any, shape: Any = None) -> Any:
        found = func(True)
        if found is not None or self._in_transaction:
            return found if shape is None else shape(found)
        until_s = self._home.world.now_s + timeout if timeout else float("inf")
        streams = frozenset(name for name, _ in func.args[0])
        self._client.blocked = _Blocked(func, shape, streams, until_s)
        return NoResponse()

    # ---- commands, by a way that is as short as it can be: they are most of the time that a run takes ----

    def do(self, command: list[bytes]) -> Any:
        """The answer to a command."""
        found = self._home.command_of(command[0])
        if found is None or self._queueing or found[0] in _IN_TRANSACTIONS:
            self.reply = NoResponse()
            self._process_command(command)
            return self.reply
        self._db.time = self._home.wall_s()
        name, signature = found
        try:
            return self._run_command(getattr(self, name), signature, command[1:], False)
        except SimpleError as error:
            return error

    def _run_command(self, func: Any, sig: Any, args: list[Any], from_script: bool) -> Any:
        """As fakeredis does it, with what depends on the command alone looked up once."""
        if from_script and msgs.FLAG_NO_SCRIPT in sig.flags:
            return SimpleError(msgs.COMMAND_IN_SCRIPT_MSG)
        touched: list[Any] = []
        try:
            decoders, keys = _shape_of(sig, len(args), self.version)
            values = list(args)
            for i, decode in decoders:
                values[i] = decode(values[i])
            for i, kind, missing in keys:
                item = self._db.get(values[i])
                if item is None and missing is not Key.UNSPECIFIED:
                    return missing
                if kind is not None and item is not None and type(item.value) is not kind:
                    raise SimpleError(msgs.WRONGTYPE_MSG)
                makes = item is None and kind not in (None, bytes) and msgs.FLAG_DO_NOT_CREATE not in sig.flags
                values[i] = CommandItem(values[i], self._db, item, default=kind() if makes else None)
                touched.append(values[i])
            result = func(*values)
            if type(result) in _COMPOSITE:
                result = convert_to_resp2(result)
        except SimpleError as error:
            result = error
        for each in touched:
            each.writeback(remove_empty_val=msgs.FLAG_LEAVE_EMPTY_VAL not in sig.flags)
        return result

    def config_set(self, *args: bytes) -> SimpleString:
        super().config_set(*args)
        limit = dict(zip(args[::2], args[1::2], strict=True)).get(b"maxmemory")
        if limit is not None:
            self._home.is_full = limit != b"0"  # any limit is one that is reached
        return SimpleString(b"OK")

    def xinfo_stream(self, key: Any, *args: bytes) -> list[Any]:
        is_full = key.value is not None and args[:1] == (b"FULL",)
        answer: list[Any] = full_stream_info(key.value) if is_full else super().xinfo_stream(key, *args)
        return answer

    @is_command(name="XSETID", fixed=(Key(XStream), bytes), repeat=(bytes,), flags=msgs.FLAG_DO_NOT_CREATE)
    def xsetid(self, key: Any, identifier: bytes, *_: bytes) -> SimpleString:
        if key.value is None:
            raise SimpleError(msgs.NO_KEY_MSG)
        last_id = StreamEntryKey.parse_str(identifier)
        if last_id < max(key.value.max_deleted_id, *key.value._ids[-1:], StreamEntryKey(0, 0)):
            raise SimpleError("ERR The ID specified in XSETID is smaller than what the stream has or had")
        key.value._last_id = last_id
        key.updated()
        return SimpleString(b"OK")

    def xreadgroup(self, *args: Any) -> Any:
        try:
            return super().xreadgroup(*args)
        except AttributeError as error:  # what the key has is no stream
            raise SimpleError(msgs.WRONGTYPE_MSG) from error

    # ---- scripts, compiled once ----

    def script_load(self, *args: bytes) -> bytes:
        return self._home.load_script(args[0])

    def script_flush(self, *args: bytes) -> SimpleString:
        self._home.scripts.clear()
        return SimpleString(b"OK")

    def evalsha(self, sha1: bytes, numkeys: int, *keys_and_args: bytes) -> Any:
        home = self._home
        script = home.scripts.get(sha1)
        if script is None:
            raise SimpleError("NOSCRIPT No matching script. Please use EVAL.")
        if home.is_full and "allow-oom" not in script.flags:
            raise SimpleError(_OOM)
        if home.is_replica and "no-writes" not in script.flags:
            raise SimpleError(_READONLY)
        fake: Any = self._server
        runtime = self._get_server_runtime(fake)
        fake._lua_current_socket[0] = self
        self._script_resp = 2
        fake._lua_set_keys_argv(
            runtime.table_from(keys_and_args[:numkeys]), runtime.table_from(keys_and_args[numkeys:])
        )
        try:
            result = script.function()
        except SimpleError as error:
            raise SimpleError(f"{error.value} script: {sha1.decode()}, on @user_script:1.") from error
        except scripting_mixin.LUA_MODULE.LuaError as error:
            raise SimpleError(f"ERR {error} script: {sha1.decode()}, on @user_script:1.") from error
        finally:
            self._script_resp = None
        return self._convert_lua_result(result, nested=False)

    def _lua_redis_call(self, lua_runtime: Any, expected_globals: Any, op: bytes, *args: Any) -> Any:
        found = self._home.command_of(op)
        values = [value if type(value) is bytes else scripting_mixin._convert_redis_arg(value) for value in args]
        if self._home.monitors:
            self._home.tell(b"lua", [op, *values])
        if found is None:  # of two words, or none at all
            return super()._lua_redis_call(lua_runtime, expected_globals, op, *args)
        name, signature = found
        result = self._run_command(getattr(self, name), signature, values, True)
        return result if type(result) is bytes else self._convert_redis_result(lua_runtime, result)

    def _lua_redis_pcall(self, lua_runtime: Any, expected_globals: Any, op: bytes, *args: Any) -> Any:
        try:
            return self._lua_redis_call(lua_runtime, expected_globals, op, *args)
        except Exception as error:
            text = getattr(error, "value", None) or str(error)
            if op.upper() == b"XREADGROUP" and "requires the key to exist" in text:
                text = "NOGROUP no such stream"
            return lua_runtime.table_from({b"err": text.encode()})


PAST_MAX: Final = 100
ENDING: Final = frozenset({"release", "reject", "submit"})
"""Scripts of which a call that comes again, however late, changes nothing."""
SCRIPT_NAMES: Final = {script.sha.encode(): script.name for script in load_scripts().values()}


class Server:
    """One server.

    world: whose time passes. shift_s: of its wall clock. is_full, is_replica, is_loading: what it refuses. slow_s: what
    each command takes on top. on_touch: told the keys that a command of a client changed, after each. on_repeat: told
    of a script that was repeated, of both answers, and which of its keys it changed. commands: how many were done.
    past: calls that may come once more at any later time, the newest last.
    """

    def __init__(self, world: Time) -> None:
        self.world = world
        self.shift_s = 0.0
        self.is_full = False
        self.is_replica = False
        self.is_loading = False
        self.slow_s = 0.0
        self.commands = 0
        self.past: deque[list[bytes]] = deque(maxlen=PAST_MAX)
        self.touched: dict[bytes, None] = {}
        self.on_touch: Callable[[Iterable[bytes]], None] = lambda keys: None
        self.on_repeat: Callable[[list[bytes], Any, Any, list[bytes]], None] = lambda *_: None
        self.scripts: dict[bytes, _Script] = {}
        self.clients: list[Client] = []
        self.monitors: list[Client] = []
        self._commands: dict[bytes, tuple[str, Any] | None] = {}
        self._queue: deque[tuple[Client, list[bytes]]] = deque()
        self._busy = False
        self._paused_until_s = 0.0
        self._kept: dict[bytes, Any] | None = None
        self.lives = 1
        self._set_clock()
        self.fake: Any = FakeServer(version=(7, 2), server_type="redis")
        self.fake.dbs[0] = self._database = _Database(self.fake.lock)
        self._database.touched = self.touched
        self._inspector = Client(self, lambda reply: None)
        keep_error_texts(self._inspector.socket._get_server_runtime(self.fake))
        self._add_msgpack()

    # ---- time and scripts ----

    def wall_s(self) -> float:
        """What the server's clock says."""
        return WALL_ORIGIN_S + self.world.now_s + self.shift_s

    def _set_clock(self) -> None:
        _WALL.now = self.wall_s

    def load_script(self, source: bytes) -> bytes:
        """Compile a script, once for each server. Returns its SHA-1."""
        sha = hashlib.sha1(source, usedforsecurity=False).hexdigest().encode()
        if sha not in self.scripts:
            first = source.partition(b"\n")[0].decode()
            flags = frozenset(first.partition("flags=")[2].replace(",", " ").split())
            runtime = self._inspector.socket._get_server_runtime(self.fake)
            self.scripts[sha] = _Script(runtime.compile(b"--" + source), flags)
        return sha

    def command_of(self, op: bytes) -> tuple[str, Any] | None:
        """The method and the signature of a command of one word."""
        found = self._commands.get(op)
        if found is None and op not in self._commands:
            word = op.decode(errors="replace").lower()
            signature = None if word in COMMANDS_WITH_SUB else SUPPORTED_COMMANDS.get(word)
            found = self._commands[op] = None if signature is None else (signature.func_name, signature)
        return found

    def _add_msgpack(self) -> None:
        runtime = self._inspector.socket._get_server_runtime(self.fake)

        def unpack(data: bytes) -> tuple[Any, ...]:
            unpacker = msgpack.Unpacker(raw=True, strict_map_key=False)
            unpacker.feed(bytes(data))
            return tuple(
                runtime.table_from(each, recursive=True) if isinstance(each, list | dict) else each for each in unpacker
            )

        runtime.globals()[b"cmsgpack"] = runtime.table_from({b"unpack": unpack})
        self.fake._lua_expected_globals.add(b"cmsgpack")

    # ---- commands ----

    def connect(self, send: Callable[[bytes], None]) -> Client:
        """A new connection."""
        client = Client(self, send)
        self.clients.append(client)
        return client

    def enqueue(self, client: Client, command: list[bytes]) -> None:
        """A command of a client, to be done in its turn."""
        if client.blocked is not None:
            client.waiting.append(command)
            return
        self._queue.append((client, command))
        self._begin()

    def _begin(self) -> None:
        if self._queue and not self._busy:
            self._busy = True
            start_s = max(self.world.now_s, self._paused_until_s)
            self.world.call_at(start_s + COMMAND_S + self.slow_s, self._do_next)

    def _do_next(self) -> None:
        self._busy = False
        if self.world.now_s < self._paused_until_s or not self._queue:
            self._begin()
            return
        client, command = self._queue.popleft()
        if client.blocked is not None:
            client.waiting.append(command)
        else:
            self.do(client, command)
        self._begin()

    def do(self, client: Client, command: list[bytes]) -> None:
        """Do a command now, answer it, and then those who were waiting for what it touched."""
        now_s = self.wall_s()
        _WALL.now = lambda: now_s  # a script sees one time from its first command to its last
        self.commands += 1
        if self.monitors:
            self.tell(b"in-this-process:0", command)
        reply = self._reply(client, command)
        self._set_clock()
        if command[0] == b"EVALSHA" and SCRIPT_NAMES.get(command[1]) in ENDING and not _may_be_due_later(reply):
            self.past.append(command)
        if client.doubles:
            client.doubles = False
            reply = self._repeat(client, command, reply)
        if not isinstance(reply, NoResponse) and client.is_open:
            client.send(encode(reply))
        if client.blocked is not None:
            self._expect(client, client.blocked)
        if self.touched:
            touched = list(self.touched)
            self.touched.clear()
            self.on_touch(touched)
            self._wake(touched)

    def _repeat(self, client: Client, command: list[bytes], reply: Any) -> Any:
        """Do a command again, and tell what of its keys is another than after the first time."""
        if command[0].upper() != b"EVALSHA" or isinstance(reply, SimpleError):
            return reply
        names = command[3 : 3 + int(command[2])]
        before = {name: self.image(name) for name in names}
        again = self._reply(client, command)
        self.on_repeat(command, reply, again, [name for name in names if self.image(name) != before[name]])
        return again

    def again(self, command: list[bytes]) -> list[bytes]:
        """Do a call now that a client made before. Returns: those of its keys that it changed."""
        names = command[3 : 3 + int(command[2])]
        before = {name: self.image(name) for name in names}
        with contextlib.suppress(RuntimeError):
            self.ask(*command)
        return [name for name in names if self.image(name) != before[name]]

    def image(self, name: bytes) -> Any:
        """All that is stored under a key."""
        kind = self.ask("TYPE", name)
        read: dict[bytes, tuple[Any, ...]] = {
            b"string": ("GET",), b"hash": ("HGETALL",), b"set": ("SMEMBERS",),
            b"zset": ("ZRANGE", 0, -1, "WITHSCORES"), b"stream": ("XRANGE", "-", "+"),
        }  # fmt: skip
        question = read.get(kind.value)
        return None if question is None else self._plain(self.ask(question[0], name, *question[1:]))

    @property
    def refuses(self) -> bool:
        """Whether it takes no writes for the moment."""
        return self.is_full or self.is_replica or self.is_loading

    @staticmethod
    def _plain(reply: Any) -> Any:
        return sorted(reply) if isinstance(reply, set) else reply

    def _reply(self, client: Client, command: list[bytes]) -> Any:
        name = command[0].lower().decode()
        if self.is_loading and name not in ("select", "hello", "client", "auth", "info"):
            return SimpleError(_LOADING)
        if name == "info":
            return INFO % (self.lives, b"slave" if self.is_replica else b"master")
        if name == "monitor":
            self.monitors.append(client)
            return SimpleString(b"OK")
        queues = client.socket._transaction is not None and name not in _IN_TRANSACTIONS
        if self.is_full and (queues or name in _ADDS):  # Redis refuses all that is queued then, reads too
            return self._refuse(client, _OOM)
        if self.is_replica and name in _WRITES:
            return self._refuse(client, _READONLY)
        return client.socket.do(command)

    @staticmethod
    def _refuse(client: Client, error: str) -> SimpleError:
        """What was refused while it was queued makes EXEC fail."""
        if client.socket._transaction is not None:
            client.socket._transaction_failed = True
        return SimpleError(error)

    def tell(self, who: bytes, command: list[bytes]) -> None:
        """Tell clients that monitor of a command."""
        for client in self.monitors:
            client.send(monitor_line(self.wall_s(), who, command))

    def ask(self, *command: bytes | str | int) -> Any:
        """What a command would answer now, for whoever looks on. It changes nothing of the time."""
        self._set_clock()
        fields = [each if isinstance(each, bytes) else str(each).encode() for each in command]
        touched = dict(self.touched)  # of a command that is under way
        reply = self._inspector.socket.do(fields)
        self.touched.clear()
        self.touched.update(touched)
        if isinstance(reply, SimpleError):
            raise RuntimeError(f"{command[0]!r}: {reply.value}")
        return reply

    # ---- those who wait ----

    def _expect(self, client: Client, blocked: _Blocked) -> None:
        if blocked.until_s < float("inf"):
            self.world.call_at(blocked.until_s, self._give_up, client, blocked)

    def _give_up(self, client: Client, blocked: _Blocked) -> None:
        if client.blocked is blocked and self.world.now_s < self._paused_until_s:
            self.world.call_at(self._paused_until_s, self._give_up, client, blocked)
        elif client.blocked is blocked:
            self._unblock(client, blocked.shape(None))

    def _wake(self, touched: Iterable[bytes]) -> None:
        for client in self.clients:
            if client.blocked is not None and not client.blocked.streams.isdisjoint(touched):
                found = client.blocked.read(False)
                if found is not None:
                    self._unblock(client, client.blocked.shape(found))

    def _unblock(self, client: Client, reply: Any) -> None:
        client.blocked = None
        if client.is_open:
            client.send(encode(reply))
        waiting, client.waiting = client.waiting, deque()
        for command in waiting:
            self.enqueue(client, command)

    def forget(self, client: Client) -> None:
        """The connection is closed."""
        client.close()
        for clients in (self.clients, self.monitors):
            if client in clients:
                clients.remove(client)

    # ---- what happens to it ----

    def pause(self, for_s: float) -> None:
        """It does nothing for a while, as when it is stopped by a signal."""
        self._paused_until_s = max(self._paused_until_s, self.world.now_s + for_s)

    def keep(self) -> None:
        """Remember the data as of now, as what a later crash leaves."""
        self._kept = copy.deepcopy(self._database._dict)

    def restart(self, *, kept: bool = False, empty: bool = False) -> None:
        """Come back without scripts and connections, with all data, with that of when it was kept, or with none.

        The network has to reset the connections.
        """
        if kept or empty:
            self._database._dict.clear()
            self._database._dict.update(copy.deepcopy(self._kept or {}) if kept else {})
        self._database._expiry_heap[:] = sorted(
            (item.expireat, key) for key, item in self._database._dict.items() if item.expireat is not None
        )
        self._kept = None
        self.lives += 1
        self.scripts.clear()
        self._queue.clear()
        self.touched.clear()

    def flush(self) -> None:
        """FLUSHALL."""
        self._database._dict.clear()
        self._database._expiry_heap.clear()


def _may_be_due_later(reply: Any) -> bool:
    """Whether a call failed or was refused in a part, for a stream that took no entry or a lease that had not lapsed:
    later the same call is right.
    """
    refused = (b"busy", b"refused")
    return isinstance(reply, SimpleError) or any(isinstance(each, list) and each[0] in refused for each in reply)


def encode(reply: Any) -> bytes:
    """A reply in RESP 2."""
    if isinstance(reply, bytes):
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    if isinstance(reply, SimpleString):
        return b"+%b\r\n" % reply.value
    if isinstance(reply, SimpleError):
        return b"-%b\r\n" % reply.value.replace("\r", " ").replace("\n", " ").encode()
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, list):
        return b"*%d\r\n%b" % (len(reply), b"".join(map(encode, reply)))
    if reply is None:
        return b"*-1\r\n"
    raise TypeError(f"a reply of {type(reply).__name__}")
