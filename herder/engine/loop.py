"""The loop: plan a step, build its batch, let the executor run it, apply the results. One thread, no waiting.

The guarantee: a request with a seed gets the same tokens whatever else is in the batch, whether its prefix was cached,
however its prompt was cut into chunks, after a preemption and after a restart. The executor promises that a token's
result depends on nothing but the tokens before it, the sampling parameters, the seed and the index of the output; this
file and sequence.py promise to hand it exactly these.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from time import monotonic

from herder.core.batch import Batch, Chunk, Executor, Output, Want
from herder.core.request import Evaluated, Evaluation, Finished, FinishReason, Grammar, NewToken, Request
from herder.engine.metrics import Counters, Stats
from herder.engine.reread import Rereader
from herder.engine.scheduler import Item, Policy, Scheduler
from herder.engine.sequence import Sequence, Sink
from herder.engine.speculate import Speculator, agreement


class Loop:
    """Runs requests on one executor, step by step; engine.Engine gives it a thread.

    A sink is called with every event of its request, from within step(), add() or abort(). One that raises has lost its
    reader, and its request is dropped.
    """

    def __init__(self, executor: Executor, policy: Policy | None = None) -> None:
        self.executor = executor
        self.policy = policy or Policy()
        self.limits = executor.limits
        self.scheduler = Scheduler(self.limits, self.policy)
        self.rereader = Rereader(executor, self.scheduler)
        self.counters = Counters()
        self.closing = False  # a batch that fails now was interrupted by us
        self._arrivals = 0

    @property
    def idle(self) -> bool:
        return self.scheduler.idle

    def add(self, request: Request | Evaluation, sink: Sink, seed: int, submitted: float | None = None) -> Sequence:
        """Takes a request that sequence.check() has let through."""
        self._arrivals += 1
        self.counters.submitted += 1
        now = monotonic() if submitted is None else submitted
        sequence = Sequence(request, self._arrivals, sink, self.limits, seed, now)
        if self.policy.speculate and sequence.sampling is not None:
            sequence.speculator = Speculator(self.policy.speculate)
        self.scheduler.add(sequence)
        return sequence

    def abort(self, sequence: Sequence) -> None:
        """Ends a request between two steps; does nothing when it has ended already."""
        if not sequence.finished:
            self._finish(sequence, FinishReason.ABORT)

    def abort_all(self) -> None:
        for sequence in self.scheduler.sequences():
            self.abort(sequence)

    def fail(self, cause: BaseException) -> None:
        """After a bug of ours, when the bookkeeping can no longer be trusted: nobody may wait for ever."""
        error = cause if isinstance(cause, Exception) else RuntimeError(repr(cause))
        for sequence in self.scheduler.sequences():
            if not sequence.finished:
                sequence.finished = True
                self._farewell(sequence, FinishReason.ERROR, None, error)

    def step(self) -> bool:
        """Runs one batch; False when there is nothing to do."""
        items = self.scheduler.plan()
        if not items:
            return False
        masks: dict[int, bytes] = {}
        started = monotonic()
        for item in items:
            sequence = item.sequence
            if not sequence.scheduled:
                sequence.scheduled = started
                self.counters.cached_tokens += sequence.cached_tokens
        items = [item for item in items if self._constrain(item, masks)]
        if not items:
            return True
        chunks = [item.sequence.chunk(item.count, item.drafts, masks.get(item.sequence.arrival)) for item in items]
        counters = self.counters
        counters.steps += 1
        batch = Batch(tuple(chunks))
        try:
            ticket = self.executor.launch(batch)
            outputs = self.executor.result(ticket)
        except Exception as error:  # whatever it is, only this batch is lost; the readers learn which
            counters.executor_seconds += monotonic() - started
            for item in items:
                if self.closing:
                    self._finish(item.sequence, FinishReason.ABORT)
                else:
                    self._finish(item.sequence, FinishReason.ERROR, error=error)
            return True
        now = monotonic()
        counters.executor_seconds += now - started
        self.scheduler.measured(batch.tokens, now - started)
        for item, chunk, output in zip(items, chunks, outputs, strict=True):
            assert output.seq == chunk.seq, f"the executor answered for sequence {output.seq}, not {chunk.seq}"
            if output.error is not None:
                self._finish(item.sequence, FinishReason.ERROR, error=output.error)
                continue
            try:
                self._apply(item, chunk, output, now)
            except _SinkError:
                if not item.sequence.finished:
                    self._drop(item.sequence)
        return True

    def reread(self) -> bool:
        """Computes a piece of a finished answer for the cache, if nothing else is to be done; False when there is none
        left. It concerns no request, and holds nothing afterwards."""
        return self.idle and self.rereader.step()

    def stats(self) -> Stats:
        scheduler = self.scheduler
        cache = scheduler.cache
        return Stats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            pages=scheduler.pool.size,
            pages_used=scheduler.pool.size - cache.available,
            pages_cached=cache.cached,
            evictions=cache.evictions,
            local_pages=cache.local_pool.size,
            local_pages_used=cache.local_pool.size - cache.available_local,
            local_pages_cached=cache.cached_local,
            local_evictions=cache.local_evictions,
            preemptions=scheduler.preemptions,
            reread_tokens=self.rereader.tokens,
            counters=replace(self.counters),
        )

    def _apply(self, item: Item, chunk: Chunk, output: Output, now: float) -> None:
        sequence, counters = item.sequence, self.counters
        sequence.computed += item.count
        if chunk.outputs == 0:
            counters.prompt_tokens += item.count
            self.scheduler.computed(sequence)
            return
        if chunk.want != Want.TOKEN:
            counters.prompt_tokens += item.count
            self._report(sequence, chunk, output)
            return
        counters.prompt_tokens += item.count - 1
        if not sequence.first_token:
            sequence.first_token = now
        sequence.last_token = now
        tokens = output.tokens
        if item.drafts:
            assert sequence.speculator is not None
            accepted = agreement(item.drafts, tokens)
            sequence.speculator.verified(len(item.drafts), accepted)
            counters.drafted_tokens += len(item.drafts)
            counters.accepted_tokens += accepted
            tokens = tokens[: accepted + 1]
        logprobs = output.logprobs
        for index, token in enumerate(tokens):
            if index:  # the draft before this token was right, so its position is computed as well
                sequence.computed += 1
            if token in sequence.stop_tokens:
                self._finish(sequence, FinishReason.STOP, stop_token=token)
                return
            grammar = sequence.grammar
            if grammar is not None and (error := _refused(grammar, token)) is not None:
                self._finish(sequence, FinishReason.ERROR, error=error)
                return
            sequence.append(token)
            counters.generated_tokens += 1
            self._send(sequence, NewToken(token, logprobs[index] if logprobs else None))
            if grammar is not None and grammar.complete:
                self._finish(sequence, FinishReason.STOP)
                return
            if len(sequence.tokens) >= sequence.tokens_limit:
                self._finish(sequence, FinishReason.LENGTH)
                return
        self.scheduler.computed(sequence)

    def _constrain(self, item: Item, masks: dict[int, bytes]) -> bool:
        """Adds the masks of an item whose sequence has a grammar, by arrival, and shortens its drafts to what the
        grammar allows; False when the grammar has failed, which ends that sequence alone."""
        sequence = item.sequence
        if sequence.grammar is None or item.count != sequence.remaining:
            return True
        try:
            masks[sequence.arrival], item.drafts = sequence.masks(item.drafts)
        except Exception as error:
            self._finish(sequence, FinishReason.ERROR, error=error)
            return False
        return True

    def _report(self, sequence: Sequence, chunk: Chunk, output: Output) -> None:
        first = sequence.reports_from
        sequence.reports_from = sequence.computed
        self.scheduler.computed(sequence)
        if chunk.want == Want.SCORE:
            event = Evaluated(first + 1, scores=output.scores)
        else:
            event = Evaluated(first, logits=output.logits, hidden=output.hidden)
        self._send(sequence, event)
        if sequence.computed == sequence.end:
            self._finish(sequence, FinishReason.LENGTH)

    def _send(self, sequence: Sequence, event: NewToken | Evaluated) -> None:
        try:
            sequence.sink(event)
        except Exception as error:
            raise _SinkError from error

    def _finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        stop_token: int | None = None,
        error: Exception | None = None,
    ) -> None:
        counters = self.counters
        if reason is FinishReason.ABORT:
            counters.aborted += 1
        elif reason is FinishReason.ERROR:
            counters.failed += 1
        else:
            counters.finished += 1
            self.scheduler.computed(sequence)
            self.rereader.note(sequence)
        self._drop(sequence)
        self._farewell(sequence, reason, stop_token, error)

    def _farewell(
        self, sequence: Sequence, reason: FinishReason, stop_token: int | None, error: Exception | None
    ) -> None:
        timings = sequence.timings(monotonic())
        with suppress(Exception):  # its reader may be gone, and the sequence is gone already
            sequence.sink(Finished(reason, sequence.usage(), timings, sequence.seed, stop_token, error))

    def _drop(self, sequence: Sequence) -> None:
        sequence.finished = True
        self.scheduler.remove(sequence)


def _refused(grammar: Grammar, token: int) -> Exception | None:
    """Takes the grammar on by a token; what is wrong, if anything is."""
    try:
        return None if grammar.accept(token) else RuntimeError(f"the executor chose token {token} against the mask")
    except Exception as error:
        return error


class _SinkError(Exception):
    """A reader could not be reached."""
