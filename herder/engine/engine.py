"""The engine: one thread that runs the loop, any number of callers."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from time import monotonic

from herder.core.batch import Executor, Limits
from herder.core.errors import UsageError
from herder.core.request import Evaluation, Event, Request
from herder.engine.loop import Loop
from herder.engine.metrics import Stats
from herder.engine.scheduler import Policy
from herder.engine.sequence import Sequence, Sink, check
from herder.engine.stream import AsyncStream, Mailbox, Stream

Command = Callable[[], None]

REST = 0.5  # seconds without a request, after which answers are read again


class Engine:
    """Runs requests on an executor: many at once, in one batch per step.

    The thread starts with the first request, sleeps while there is nothing to do, and ends with close() (or with the
    last reference to the engine). close() aborts what still runs and closes the executor.
    """

    def __init__(self, executor: Executor, policy: Policy | None = None) -> None:
        self._worker = _Worker(executor, policy)
        # The thread knows the worker and not the engine, so an engine that nobody refers to any more ends its thread;
        # at the interpreter's exit it ends before daemon threads are cut off inside the native core.
        self._finalizer = weakref.finalize(self, self._worker.close)
        self._mailboxes: list[Mailbox] = []

    @property
    def limits(self) -> Limits:
        return self._worker.loop.limits

    def submit(self, request: Request | Evaluation) -> Stream:
        """Starts a request. Raises UsageError or ContextOverflow at once if it could never run."""
        stream = Stream()
        entry = self._worker.submit(request, stream._events.put)
        stream._abort = partial(self._worker.abort, entry)
        return stream

    def submit_async(self, request: Request | Evaluation) -> AsyncStream:
        """The same from a coroutine: the events arrive on the running event loop."""
        import asyncio

        loop = asyncio.get_running_loop()
        mailbox = next((box for box in self._mailboxes if box.loop is loop), None)
        if mailbox is None:
            mailbox = Mailbox(loop)
            self._mailboxes = [mailbox, *(box for box in self._mailboxes if not box.loop.is_closed())]
        stream = AsyncStream(mailbox)
        reference = weakref.ref(stream)  # the engine must not keep a stream alive that its reader has dropped

        def deliver(event: Event) -> None:
            target = reference()
            if target is not None:
                target._deliver(event)

        entry = self._worker.submit(request, partial(mailbox.post, deliver))
        stream._abort = partial(self._worker.abort, entry)
        stream._cached = entry.cached_tokens
        return stream

    def stats(self) -> Stats:
        return self._worker.loop.stats()

    def close(self) -> None:
        self._finalizer()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Worker:
    """The loop, its inbox and its thread. Everything that touches the loop runs on the thread, as a command."""

    def __init__(self, executor: Executor, policy: Policy | None) -> None:
        self.loop = Loop(executor, policy)
        self._failure: BaseException | None = None
        self._inbox: SimpleQueue[Command] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()  # nothing enters the inbox after the command that stops the thread
        self._closed = False
        self._stopping = False

    def submit(self, request: Request | Evaluation, sink: Sink) -> _Entry:
        """Puts a request into the inbox."""
        check(request, self.loop.limits)
        seed = 0
        if isinstance(request, Request):
            # 32 bits when we choose: easily written down and given again.
            drawn = request.sampling.seed
            seed = int.from_bytes(os.urandom(4), "little") if drawn is None else drawn
        entry = _Entry(request, sink, seed, monotonic())
        with self._lock:
            if self._failure is not None:
                raise RuntimeError("the engine has stopped after an internal error") from self._failure
            if self._closed:
                raise UsageError("the engine is closed: load the model again")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="herder-engine", daemon=True)
                self._thread.start()
            self._inbox.put(partial(self._add, entry))
        return entry

    def abort(self, entry: _Entry) -> None:
        self._inbox.put(partial(self._abort, entry))

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            thread = self._thread
            self._inbox.put(self._stop)
        if thread is None:
            self.loop.executor.close()
        elif thread is not threading.current_thread():  # it is, when the garbage collector runs us there
            self.loop.closing = True
            interrupt = getattr(self.loop.executor, "interrupt", None)
            if interrupt is not None:
                interrupt()  # nobody waits for the batch under way
            thread.join()

    def _run(self) -> None:
        loop, inbox = self.loop, self._inbox
        try:
            while True:
                # While there is work the inbox is only looked at; without, the thread sleeps in it.
                while loop.idle or not inbox.empty():
                    self._command()()
                    if self._stopping:
                        return
                loop.step()
        except BaseException as error:
            with self._lock:
                self._failure = error
            while not inbox.empty():
                inbox.get()()
            loop.fail(error)
            raise
        finally:
            loop.executor.close()

    def _command(self) -> Command:
        """The next command. While there is none, and nothing to do, answers are read again between two looks."""
        wait = REST if self.loop.rereader else None
        while True:
            try:
                return self._inbox.get(timeout=wait)
            except Empty:
                wait = 0.0 if self.loop.reread() else None

    # Commands, run on the engine's thread.

    def _add(self, entry: _Entry) -> None:
        entry.sequence = self.loop.add(entry.request, entry.sink, entry.seed, entry.submitted)

    def _abort(self, entry: _Entry) -> None:
        if entry.sequence is not None:
            self.loop.abort(entry.sequence)

    def _stop(self) -> None:
        self._stopping = True
        self.loop.abort_all()


class _Entry:
    """A request between submit() and the loop."""

    __slots__ = ("request", "seed", "sequence", "sink", "submitted")

    def __init__(self, request: Request | Evaluation, sink: Sink, seed: int, submitted: float) -> None:
        self.request = request
        self.sink = sink
        self.seed = seed
        self.submitted = submitted
        self.sequence: Sequence | None = None

    def cached_tokens(self) -> int:
        return max(0, self.sequence.cached_tokens) if self.sequence is not None else 0
