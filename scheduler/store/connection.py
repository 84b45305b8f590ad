"""A server as the other modules see it: connections, script calls that survive a lost reply, and typed failures.

redis-py repeats failed commands by itself and gives up on blocking reads after five seconds; both are off here. A
script may be repeated (each one is safe to repeat), so it is this module that repeats it, until `patience_ms` is used
up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from scheduler.clock import SYSTEM_CLOCK, Clock
from scheduler.errors import (
    CredentialsRefused,
    SchedulerError,
    ServerNotReady,
    ServerRefused,
    ServerReplaced,
    ServerUnavailable,
    WrongType,
)
from scheduler.store import retyping
from scheduler.store.address import connection_class, connection_options, tls_context
from scheduler.store.connection_pool import Pool
from scheduler.store.fast_connection import PACKING, Cap
from scheduler.store.meanings import Meaning, NotAdmitted, is_temporary, meaning_of, unfit_of, was_closed, words_of
from scheduler.store.probe import misfit_of, refusal_of
from scheduler.store.scripts import load_scripts
from scheduler.store.telling import MISSING, TOLD_MS, Call, Series, Telling
from scheduler.url import ServerUrl, parse_url

logger = logging.getLogger("scheduler.store")

T = TypeVar("T")
Item = TypeVar("Item")
Answer = TypeVar("Answer")
Argument = str | bytes | int | float
Client = Any  # redis.asyncio.Redis: its annotations allow for replies decoded or not, sync or async, all at once

COMMAND_TIMEOUT_MS: Final = 5_000
ANSWER_MS_MIN: Final = 2_000  # that a command is given for its answer, however little patience there is
PROBE_MS: Final = 500  # without an answer at the start, until it is looked whether the other end speaks otherwise
PROBE_AGAIN_MS: Final = 30_000
LOOK_AGAIN_MS: Final = 500  # between two looks what a server says that closes connections
CONNECT_TIMEOUT_MS: Final = 2_000
PATIENCE_MS: Final = 30_000
CONNECTIONS_MAX: Final = 4  # of one client: more callers at once take turns
RETRY_MS_MAX: Final = 500  # the longest pause between two tries: so late is everybody heard who tries all the time
_RETRY_FIRST_MS: Final = 20


class TooSlow(SchedulerError):
    """A reply had begun, and was too large to be waited for: ask for less at once."""


class ScriptFailed(SchedulerError):
    """An error raised inside a script's body: the call itself is at fault, repeating it is of no use."""


async def keeping_cancellation(answer: Awaitable[T]) -> T:
    """Await an answer of redis-py, which at times swallows a cancellation: what it lost is raised again here."""
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    value = await answer
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError
    return value


async def ask(client: Client, *command: Argument, life: str = "", cap: Cap | None = None) -> Any:
    """Send one command and return the reply as it came.

    What redis-py does beside (repeats, metrics, replies made into Python's types) is a third of its time for a command.

    Args: client; command; life, of the only server process that it is meant for, empty for any. A connection leads to
    one process for as long as it is there, so nobody else can get it; cap, of a reply that can be asked for in parts
    too. Raises: ServerReplaced; TooSlow when the reply is above its cap.
    """
    pool = client.connection_pool
    connection = await pool.get_connection()
    try:
        if life and connection.run_id not in ("", life):
            await connection.disconnect()  # it may be the last one to the process before
            await connection.connect()
        if life and connection.run_id not in ("", life):
            raise ServerReplaced("another server process answers than the one whose data this call is about")
        if cap is not None:
            connection.cap(cap)
        await connection.send_packed_command(connection.pack_command(*command), check_health=False)
        return await connection.read_response()
    except (RedisConnectionError, RedisTimeoutError, OSError) as error:
        await connection.disconnect()
        if cap is not None and connection.received_bytes and isinstance(error, RedisTimeoutError):
            raise TooSlow(f"a reply was not whole after {connection.received_bytes} bytes") from error
        raise
    finally:
        if cap is not None:
            connection.cap(None)
        await pool.release(connection)


async def or_each_alone(
    items: Sequence[Item],
    call: Callable[[Sequence[Item]], Awaitable[list[Answer]]],
    broken: Callable[[Item], Answer],
    failed: Callable[[Item], Answer] | None = None,
    own_key: Callable[[Item], str] | None = None,
) -> list[Answer]:
    """Call with all items; after an error inside the script with each alone, so that only the one at fault suffers.

    Args: items; call, gives an answer for each of the items it is called with; broken, the answer for the one at fault;
    failed, if given, the answer when nothing shows that it is; own_key, the key of an item's own, its record.
    Raises: WrongType of a key that all of them share, or of a node: no item is at fault.
    """
    try:
        return await call(items)
    except WrongType as error:
        if own_key is None or not {own_key(item) for item in items}.issuperset(error.keys):
            raise
        if len(items) == 1:
            logger.error("%s", error)
            return [broken(items[0])]
        return [answer for item in items for answer in await or_each_alone([item], call, broken, failed, own_key)]
    except ScriptFailed as error:
        if len(items) == 1:
            logger.error("%s", error)
            return [(failed or broken)(items[0])]
        logger.error("a batch of %d failed, each is tried alone: %s", len(items), error)
        return [answer for item in items for answer in await or_each_alone([item], call, broken, failed, own_key)]


class Connection:
    """One server: a client for commands, and one more for each blocking reader.

    Args: url, as of `parse_url`; patience_ms, for how long a call is repeated while the server does not answer, or not
    now (None: for ever, which is what long-running roles want); clock, the process's own; classes, of the pool's
    connections; telling, who tells of the server, shared by some connections of a process.
    Attributes: url, whose text holds no credentials; later_ms, the patience with a server that answers, and refuses.
    has_started, whether what somebody has to mend is waited out too; before that it is an error at once. refusal, why
    the server is of no use any more, and refused, told of it: wrong credentials at any time, and what has to be mended
    before the start. life, the run_id of the server process that the newest connection leads to: whoever remembers what
    he has read compares it, for another process may have less, or other data. Empty when the server does not say.
    mends, whether keys that hold another type than belongs there are deleted by those who meet them, which roles do.
    """

    def __init__(
        self,
        url: str | ServerUrl,
        patience_ms: int | None = PATIENCE_MS,
        clock: Clock = SYSTEM_CLOCK,
        classes: Mapping[Any, Any] = PACKING,
        telling: Telling | None = None,
    ) -> None:
        self.url = parse_url(url)
        self._tls = tls_context(self.url)
        self.later_ms = patience_ms
        self.has_started = False
        self.refusal: ServerRefused | None = None
        self.refused: Callable[[ServerRefused], None] = lambda _: None
        self.life = ""
        self.mends = False
        self._patience_ms = patience_ms
        self._clock = clock
        self._classes = classes
        self._clients: list[Client] = []
        self._watch = (telling or Telling(url, clock)).watch(self._pieces)
        self._probed_ms = self._looked_ms = float("-inf")
        self._said: Exception | None = None
        self.commands = self._client(self._answer_ms)

    @property
    def _answer_ms(self) -> int:
        """For how long nothing of an answer may come."""
        if self._patience_ms is None:
            return COMMAND_TIMEOUT_MS
        return min(COMMAND_TIMEOUT_MS, max(ANSWER_MS_MIN, self._patience_ms))

    def _pieces(self) -> int:
        return sum(client.connection_pool.pieces() for client in self._clients)

    def _client(self, socket_timeout_ms: int | None) -> Client:
        client: Client = retyping.NamingClient.from_pool(self._pool(socket_timeout_ms))
        self._clients.append(client)
        return client

    def _pool(self, socket_timeout_ms: int | None) -> Pool:
        return Pool(
            connection_class=connection_class(self.url),
            **connection_options(self.url),
            max_connections=CONNECTIONS_MAX,
            classes=self._classes,
            met=self._meet,
            tls=self._tls,
            socket_timeout=None if socket_timeout_ms is None else socket_timeout_ms / 1000,
            socket_connect_timeout=CONNECT_TIMEOUT_MS / 1000,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )

    def _meet(self, run_id: str) -> None:
        """A connection was made."""
        if run_id and run_id != self.life:
            if self.life:
                logger.info("another server process answers at %s", self.url)
            self.life = run_id

    def blocking(self, block_ms: int) -> Client:
        """A client of its own for reads that block for up to `block_ms`."""
        return self._client(block_ms + self._answer_ms)

    def missing(self, words: str, wait_ms: int | None) -> Call:
        """Something that others are to write is not there; told while it lasts. `found` must follow.

        Args: words, for people; wait_ms, for how long it is waited for, None for ever.
        """
        call = self._watch.begin(self._clock.ms(), is_told=wait_ms is None or wait_ms > 3 * TOLD_MS)
        call.code, call.words = MISSING, words
        return call

    def found(self, call: Call, *, is_there: bool) -> None:
        """It is there, or nobody waits for it any more."""
        call.is_well = is_there
        self._watch.end(call)

    def series(self) -> Series:
        """Tells of the calls of one reader that are not repeated here."""
        return Series(self._watch, self._clock, self._judge_once)

    async def close(self) -> None:
        """Close every connection, for good: calls under way fail, and so do later ones."""
        self._watch.close()
        for client in self._clients:
            await client.aclose()
        await asyncio.sleep(0)  # in which the event loop lets go of the sockets

    async def close_client(self, client: Client) -> None:
        """Close one that `blocking` gave."""
        self._clients.remove(client)
        await client.aclose()

    async def call(self, name: str, keys: Sequence[str], arguments: Sequence[Argument], life: str = "") -> list[Any]:
        """Run a script and return its answer.

        Args: name; keys; arguments; life, as it was when that was read on which the call relies, empty when it relies
        on nothing that the server could have forgotten.
        Raises: ServerUnavailable when the server did not answer within the patience; ServerReplaced when another
        process answers than that of `life`: the call was not sent there; ScriptFailed for an error inside the script.
        """
        return (await self.call_timed(name, keys, arguments, life))[1]

    async def call_timed(
        self, name: str, keys: Sequence[str], arguments: Sequence[Argument], life: str = ""
    ) -> tuple[float, list[Any]]:
        """As `call`. Returns: (own time when the try that was answered was sent, in milliseconds; the answer)."""
        sent_ms = 0.0

        async def once() -> Any:
            nonlocal sent_ms
            sent_ms = self._clock.ms()
            return await self.call_once(self.commands, name, keys, arguments, life)

        try:
            answer: list[Any] = await self.explaining(lambda: self.patiently(once), keys)
        except ResponseError as error:
            raise ScriptFailed(f"{name}: {error}") from error
        return sent_ms, answer

    async def call_once(
        self, client: Client, name: str, keys: Sequence[str], arguments: Sequence[Argument], life: str = ""
    ) -> list[Any]:
        """One try of `call`, over that client, with the errors of redis-py."""
        script = load_scripts()[name]
        try:
            answer: list[Any] = await ask(client, "EVALSHA", script.sha, len(keys), *keys, *arguments, life=life)
        except NoScriptError:
            await client.script_load(script.source)
            answer = await ask(client, "EVALSHA", script.sha, len(keys), *keys, *arguments, life=life)
        return answer

    async def all_of(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """Answers of several commands in one round trip, perhaps with commands of others in between.

        Not in a MULTI: when memory is full, Redis refuses whatever is in one, reads too. Each try has a pipeline of its
        own: one that failed has forgotten its commands, and would answer nothing.
        """

        async def once() -> list[Any]:
            pipeline = self.commands.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            answers: list[Any] = await pipeline.execute()
            return answers

        return await self.explaining(lambda: self.patiently(once), commands) if commands else []

    async def explaining(self, attempt: Callable[[], Awaitable[T]], words: Sequence[object] = ()) -> T:
        """What `attempt` comes to. One that the server refused because a key holds another type than belongs there is
        made again once that is deleted: here by roles, for which all others wait a little.

        Args: attempt, safe to repeat; words, its keys, perhaps among others, or its commands; empty when its error
        tells.
        Raises: WrongType, which names the keys; else what `attempt` raises.
        """
        tries = 0
        while True:
            try:
                return await attempt()
            except ResponseError as error:
                names = retyping.keys_of(words or getattr(error, "command", ()))
                wrong = await retyping.find_wrong(self.commands, names) if names and not is_temporary(error) else {}
                tries += 1
                is_deleted = not wrong and bool(names) and "WRONGTYPE" in str(error)  # by somebody else meanwhile
                if not wrong and not (is_deleted and tries <= retyping.TRIES_MAX):
                    raise
                if tries > retyping.TRIES_MAX or any(retyping.kind_of(key) in retyping.KEPT for key in wrong):
                    raise retyping.wrong_type(wrong) from error
            if self.mends:
                await self.retype(list(wrong))
            else:
                await asyncio.sleep(retyping.WAIT_MS / 1000)

    async def retype(self, names: Sequence[str]) -> None:
        """Delete those of these keys that hold another type than belongs there, and say so."""
        for keys in retyping.by_tag(names):
            expected = [retyping.TYPES[retyping.kind_of(key)] for key in keys]
            for key, answer in zip(keys, await self.call("retype", keys, expected), strict=True):
                if answer[0] == b"deleted":
                    retyping.tell_deleted(key, *[word.decode(errors="replace") for word in answer[1:]])

    async def patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Repeat `attempt` while its failure is temporary and patience lasts. It must be safe to repeat.

        Raises: ServerUnavailable, ServerNotReady, ServerRefused; what redis-py makes of an error of the call.
        """
        call = self._watch.begin(self._clock.ms(), _is_patient(self._patience_ms))
        delay_ms = _RETRY_FIRST_MS
        try:
            while True:
                try:
                    answer = await keeping_cancellation(attempt())
                except (RedisError, OSError) as error:
                    await self._judge(call, error, delay_ms)
                else:
                    call.is_well = True
                    return answer
                await asyncio.sleep(delay_ms / 1000)
                delay_ms = min(2 * delay_ms, RETRY_MS_MAX)
        finally:
            self._watch.end(call)

    async def _judge(self, call: Call, error: Exception, delay_ms: int) -> None:
        """Whether a call that failed is to be made again. Raises: the error that it ends with, if it is not."""
        meaning = meaning_of(error)
        if meaning == "call":
            call.is_well = True
            raise error
        waited_ms = self._clock.ms() - call.since_ms
        if meaning == "silent":
            error = await self._explained(error, waited_ms)
            meaning = meaning_of(error)
        patience_ms = self._patience_with(meaning)
        self._watch.failed(call, error, _is_patient(patience_ms))
        if patience_ms is not None and waited_ms + delay_ms > patience_ms:
            raise self._given_up(meaning, error) from error
        logger.debug("failed for %.0f ms now, again in %d ms: %r", waited_ms, delay_ms, error)

    def _patience_with(self, meaning: Meaning) -> int | None:
        if meaning == "denied" or (meaning == "unfit" and not self.has_started):
            return 0
        return self._patience_ms if meaning == "silent" else self.later_ms

    def _given_up(self, meaning: Meaning, error: Exception) -> SchedulerError:
        """What a call ends with that is not repeated any more."""
        words = words_of(error)
        if meaning == "silent":
            return ServerUnavailable(f"{self.url} does not answer: {words}")
        if meaning == "later":
            return ServerNotReady(f"{self.url} refuses it for now: {words}")
        what = " is no Redis or Valkey server" if isinstance(error, InvalidResponse) else " refuses it"
        what = "" if isinstance(error, NotAdmitted) else what
        refusal = (CredentialsRefused if meaning == "denied" else ServerRefused)(f"{self.url}{what}: {words}")
        if self.refusal is None and (meaning == "denied" or not self.has_started):
            self.refusal = refusal
            self.refused(refusal)
        return refusal

    async def _judge_once(self, error: Exception) -> Exception:
        """What is behind an error of a reader's call, which whoever reads repeats. Raises: ServerRefused."""
        error = await self._explained(error, 0) if meaning_of(error) == "silent" else error
        meaning = meaning_of(error)
        if meaning in ("denied", "unfit") and self._patience_with(meaning) == 0:
            raise self._given_up(meaning, error) from error
        return error

    async def _explained(self, error: Exception, waited_ms: float) -> Exception:
        """An error of a server that seems silent, or what is behind it."""
        if was_closed(error) and self._classes is PACKING:
            if self._clock.ms() - self._looked_ms >= LOOK_AGAIN_MS:
                self._looked_ms = self._clock.ms()
                self._said = await refusal_of(self.commands.connection_pool)
            return self._said or error
        misfit = await self._misfit() if waited_ms >= TOLD_MS else ""
        return NotAdmitted(misfit) if misfit else error

    async def _misfit(self) -> str:
        """Why nothing comes, when the other end speaks TLS and we do not, or the reverse; empty for all else."""
        if self._classes is not PACKING or self._clock.ms() - self._probed_ms < PROBE_AGAIN_MS:
            return ""
        self._probed_ms = self._clock.ms()
        return await misfit_of(self.commands.connection_pool)

    async def check(self) -> None:
        """Refuse a server that would lose data or lacks what the scripts need.

        Raises: ServerUnavailable, ServerNotReady, ServerRefused.
        """
        try:
            info = await self._info()
        except RedisError as error:
            raise ServerRefused(f"{self.url}: {words_of(error)}") from error
        if unfit := unfit_of(info):
            raise ServerRefused(f"{self.url}: {unfit}")

    async def _info(self) -> Mapping[str, Any]:
        """What the server says of itself. One who speaks otherwise may answer nothing, so that is looked at soon."""
        if self._classes is not PACKING:
            return dict(await self.patiently(self.commands.info))
        asking = asyncio.ensure_future(self.patiently(self.commands.info))
        try:
            while not (await asyncio.wait([asking], timeout=PROBE_MS / 1000))[0]:
                if misfit := await self._misfit():
                    raise self._given_up("unfit", NotAdmitted(misfit))
            return dict(asking.result())
        finally:
            asking.cancel()
            await asyncio.wait([asking])


def _is_patient(patience_ms: int | None) -> bool:
    """Whether a call waits for so long that it is told; otherwise its own error tells it as soon."""
    return patience_ms is None or patience_ms > 2 * TOLD_MS
