"""What the server can do, whichever door asks: it knows models and tensors, and nothing of HTTP or gRPC."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import edgekit
from edgekit.errors import InputError
from edgekit.serve.cache import key_of
from edgekit.serve.classify import top_classes
from edgekit.serve.describe import config_of, metadata_of
from edgekit.serve.library import Library
from edgekit.serve.machine import MachineWatch
from edgekit.serve.messages import InferRequest, InferResponse, OutputTensor, RequestError
from edgekit.serve.model import Model
from edgekit.serve.repository import Repository
from edgekit.serve.sequences import OpenSequence, Turn, turn_of
from edgekit.serve.settings import LogSettings, TraceSettings
from edgekit.serve.shared_memory import SharedMemory
from edgekit.serve.wire import float32_from_bfloat16
from edgekit.serve.worker import Job, Outcome, Post
from edgekit.tensors import with_defaults

if TYPE_CHECKING:
    from edgekit.serve.cooling import Cooling
    from edgekit.serve.energy import EnergyMeter

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "logging",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "sequence",
    "statistics",
    "system_shared_memory",
    "trace",
)

Answer: TypeAlias = Callable[["InferResponse | Exception"], None]
"""Called once with what became of an inference: an error is InputError, RequestError, or what the runtime raised."""

Cancel: TypeAlias = Callable[[], bool]
"""Gives up a request whose client is gone: True if it still waited, and then its Answer is never called."""


def status_of(error: Exception) -> int:
    """The HTTP status that tells whose fault `error` is; the gRPC door maps it to its own codes."""
    if isinstance(error, RequestError):
        return error.status
    return 400 if isinstance(error, InputError) else 500


class App:
    """The served models and the questions they answer. All methods are for the server's own thread.

    `library` is where models can be loaded from; `control` allows clients to load and unload. `soon` calls a function
    at the end of the loop's turn and `later` after some seconds; the server sets both.
    """

    def __init__(
        self,
        repository: Repository,
        *,
        memory: SharedMemory | None = None,
        library: Library | None = None,
        control: bool = True,
    ) -> None:
        self.repository = repository
        self.memory = memory or SharedMemory()
        self.library = library
        self.control = control
        self.open = True
        self.traces = TraceSettings()
        self.logs = LogSettings()
        self.machine = MachineWatch()
        self.cooling: Cooling | None = None
        self.energy: EnergyMeter | None = None
        self.soon: Post | None = None
        self.later: Callable[..., Any] | None = None
        self._retiring: list[threading.Thread] = []
        self._ending: list[Model] = []

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here."""
        return not self.unready

    @property
    def unready(self) -> str:
        """Why requests should not be sent here; empty if they should."""
        return self.machine.unready if self.open else "the server is stopping"

    def server_metadata(self) -> dict[str, Any]:
        """Name, version and protocol extensions."""
        more = ["cuda_shared_memory"] if self.memory.cuda.possible else []
        return {"name": "edgekit", "version": edgekit.__version__, "extensions": [*EXTENSIONS, *more]}

    def model_metadata(self, name: str, version: str = "") -> dict[str, Any]:
        """Inputs and outputs; a free dimension is -1. Raises RequestError 404."""
        return metadata_of(self.repository.find(name, version), self.repository.versions(name))

    def model_config(self, name: str, version: str = "") -> dict[str, Any]:
        """The model in the words of a Triton model configuration. Raises RequestError 404."""
        return config_of(self.repository.find(name, version))

    def repository_index(self, *, ready_only: bool = False) -> list[dict[str, str]]:
        """Every model and version with its state (READY, LOADING, UNAVAILABLE) and the reason of it."""
        return self.repository.index(ready_only=ready_only)

    def statistics(self, name: str = "", version: str = "") -> dict[str, Any]:
        """Counters of one model, or of all. Raises RequestError 404."""
        if name and not version:
            models = tuple(self.repository.find(name, v) for v in self.repository.versions(name) or [""])
        else:
            models = (self.repository.find(name, version),) if name else self.repository.models()
        return {"model_stats": [m.stats.document(m.name, m.version) for m in models]}

    # repository control

    def load(self, name: str, options: Mapping[str, Any] | None, answer: Callable[[Exception | None], None]) -> None:
        """Load or reload a model from its package, beside the one that is served; `answer` is called when it is done.

        Raises:
            RequestError: clients may not load here (403).
        """
        self._controlled().load(name, options, answer)

    def unload(self, name: str, answer: Callable[[Exception | None], None], *, dependents: bool = False) -> None:
        """Serve a model no longer. Raises RequestError 403."""
        self._controlled().unload(name, answer, dependents=dependents)

    def _controlled(self) -> Library:
        if self.library is None or not self.control:
            raise RequestError(403, "This server does not load or unload models on request. Start it with --control.")
        return self.library

    def switch(self, model: Model) -> None:
        """Serve `model` from now on; requests in flight finish on the one that it replaces."""
        old = self.repository.put(model)
        if self.cooling is not None:
            self.cooling.refresh()
        if old is not None:
            self._end(old)

    def withdraw(self, name: str, version: str, reason: str, *, forget: bool = False) -> None:
        """Serve a model no longer; requests in flight are finished."""
        model = self.repository.drop(name, version, reason)
        if model is not None and self.repository.versions(name):
            self._end(model)
        elif model is not None:
            self._retire(model)
        if forget:
            self.repository.forget(name, version)

    def note(self, name: str, version: str, state: str, reason: str) -> None:
        """Say in the index what becomes of a model."""
        self.repository.note(name, version, state, reason)

    def _end(self, model: Model) -> None:
        """Let go of a model that has a successor, once the sequences that began on it are over."""
        if len(model.sequences):
            self._ending.append(model)
        else:
            self._retire(model)

    def _retire(self, model: Model) -> None:
        model.worker.retire()
        thread = threading.Thread(target=partial(model.close, timeout_s=60.0), name="edgekit-retire", daemon=True)
        self._retiring = [t for t in self._retiring if t.is_alive()]
        self._retiring.append(thread)
        thread.start()

    # inference

    def infer(self, model: Model, request: InferRequest, answer: Answer, post: Post, started_ns: int) -> Cancel | None:
        """Run `request` and call `answer`: before returning for a small model (then None), else later through `post`.

        `started_ns` is when the request arrived, by `time.perf_counter_ns`.
        """
        turn: Turn | None = None
        sequence: OpenSequence | None = None
        key = b""

        def done(outcome: Outcome) -> None:
            if sequence is not None and turn is not None:
                self._next_turn(model, turn, sequence, None if outcome.error is not None else outcome.outputs)
            if outcome.error is not None:
                failed(outcome.error)
                return
            rows = model.rows_of(request.feed)
            if outcome.first:
                model.stats.ran(outcome.rows or rows, outcome.run_ns, outcome.join_ns, outcome.split_ns)
            if key and model.cache is not None:
                model.cache.put(key, outcome.outputs)
            try:
                response = _response(model, request, outcome, self.memory, hidden=turn is not None)
            except Exception as error:
                failed(error)
                return
            if self.energy is not None:
                share = rows / outcome.rows if outcome.rows else 1.0
                cost = self.energy.charge(model.name, model.version, outcome.run_ns / 1e9, share=share)
                response.energy = None if cost is None else (cost.energy_j, cost.source)
            now = time.perf_counter_ns()
            model.stats.succeeded(
                rows, now - started_ns, outcome.queue_ns, outcome.run_ns, outcome.join_ns, outcome.split_ns
            )
            if self.traces.active or self.logs.verbose:
                self._observe(model, request, outcome, started_ns, now)
            answer(response)

        def failed(error: Exception) -> None:
            now = time.perf_counter_ns()
            model.stats.failed(now - started_ns, status_of(error))
            if self.traces.active:
                self.traces.failed(model, request, error, started_ns, now)
            if self.logs.verbose:
                self.logs.failed(model, request, error, now - started_ns)
            answer(error)

        try:
            if self.cooling is not None:
                self.cooling.check(request)
            if model.worker.closed:  # replaced between the door's look-up and now
                same = model.version in self.repository.versions(model.name)
                model = self.repository.find(model.name, model.version if same else "")
            if request.shared:
                self.memory.read_inputs(request)
            _prepare(model, request)
            if model.states and "sequence_id" in request.parameters:
                turn = turn_of(request.parameters)
                if turn is not None:
                    model = self._owner(model, turn)
                    sequence = model.sequences.enter(turn, time.monotonic())
                    self._in_turn(model, request, turn, sequence, done, post)
                    return None
            if model.cache is not None:
                begun_ns = time.perf_counter_ns()
                key = key_of(request.feed)
                kept = model.cache.get(key)
                now_ns = time.perf_counter_ns()
                if kept is not None:
                    response = _response(model, request, Outcome(kept, None), self.memory)
                    model.stats.from_cache(
                        rows=model.rows_of(request.feed), total_ns=now_ns - started_ns, lookup_ns=now_ns - begun_ns
                    )
                    answer(response)
                    return None
                model.stats.miss.add(now_ns - begun_ns)
            job = self._submit(model, request, done, post)
        except (InputError, RequestError) as error:
            failed(error)
            return None
        return None if job is None else partial(cancel, model, job)

    def _submit(self, model: Model, request: InferRequest, done: Callable[[Outcome], None], post: Post) -> Job | None:
        """Raises InputError or RequestError."""
        timeout_s = request.timeout_s
        priority = 0
        if "priority" in request.parameters or "timeout" in request.parameters:
            priority = _whole(request.parameters, "priority")
            timeout_us = _whole(request.parameters, "timeout")
            if timeout_us:
                timeout_s = timeout_us / 1e6 if timeout_s is None else min(timeout_s, timeout_us / 1e6)
        if timeout_s is None and model.options.timeout_ms is not None:
            timeout_s = model.options.timeout_ms / 1e3
        job = model.worker.submit(request.feed, done, post, priority=priority, timeout_s=timeout_s, soon=self.soon)
        if job is not None and timeout_s is not None and self.later is not None:
            self.later(timeout_s, model.worker.sweep)
        return job

    def _owner(self, model: Model, turn: Turn) -> Model:
        """Where the sequence of `turn` runs: `model`, or the one before it, which it began on."""
        if self._ending and not turn.start and turn.id not in model.sequences:
            for old in self._ending:
                if old.name == model.name and turn.id in old.sequences:
                    return old
        return model

    def _in_turn(
        self,
        model: Model,
        request: InferRequest,
        turn: Turn,
        sequence: OpenSequence,
        done: Callable[[Outcome], None],
        post: Post,
    ) -> None:
        """Run a request of a sequence once the one before is answered."""

        def go() -> None:
            sequence.busy = True
            try:
                model.sequences.feed(sequence, turn, request.feed)
                self._submit(model, request, done, post)
            except Exception as error:  # whatever it is, the next request of the sequence gets its turn
                done(Outcome({}, error))

        if sequence.busy:
            sequence.waiting.append(go)
        else:
            go()

    def _next_turn(self, model: Model, turn: Turn, sequence: OpenSequence, outputs: dict[str, Any] | None) -> None:
        sequence.busy = False
        waiting = sequence.waiting.popleft() if sequence.waiting else None
        model.sequences.leave(turn, sequence, outputs, time.monotonic(), more=waiting is not None)
        if waiting is None:
            return
        sequence.busy = True
        if self.soon is not None:  # not here: a long queue would nest as deep
            self.soon(waiting)
        else:
            waiting()

    def _observe(self, model: Model, request: InferRequest, outcome: Outcome, started_ns: int, ended_ns: int) -> None:
        if self.traces.active:
            self.traces.record(model, request, outcome, started_ns, ended_ns)
        if self.logs.verbose:
            self.logs.answered(model, request, outcome, ended_ns - started_ns)

    def sweep(self) -> None:
        """Forget what nobody asks for any more; to be called about once a second."""
        now_s = time.monotonic()
        for model in self.repository.models():
            if len(model.sequences):
                model.sequences.expire(now_s)
        ending, self._ending = self._ending, []
        for model in ending:
            model.sequences.expire(now_s)
            self._end(model)

    def close(self) -> None:
        """Release every model."""
        self.open = False
        if self.library is not None:
            self.library.close()
        self.repository.close()
        for model in self._ending:
            model.close()
        for thread in self._retiring:
            thread.join(5.0)
        self.machine.close()
        if self.energy is not None:
            self.energy.stop()
        self.traces.close()
        self.memory.close()


def cancel(model: Model, job: Job) -> bool:
    """Give up `job` of `model`, whose client is gone, if it still waits: a Cancel."""
    gone = model.worker.cancel(job)
    model.stats.cancelled += gone
    return gone


def _whole(parameters: Mapping[str, Any], name: str) -> int:
    value = parameters.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"Parameter {name} is {value!r}; expected a whole number, 0 or more.")
    return value


def _prepare(model: Model, request: InferRequest) -> None:
    if model.defaults:
        request.feed = with_defaults(request.feed, model.defaults, model.inputs)
    for wanted in request.outputs:
        if wanted.name not in model.output_specs:
            known = ", ".join(model.output_specs)
            raise InputError(f"Output '{wanted.name}' is not an output of '{model.name}'; it has {known}.")


def _response(
    model: Model, request: InferRequest, outcome: Outcome, memory: SharedMemory, *, hidden: bool = False
) -> InferResponse:
    """The answer; with `hidden`, states are left out unless they are asked for."""
    outputs = []
    if not request.outputs:
        for name, value in outcome.outputs.items():
            if not hidden or name not in model.sequences.outputs:
                outputs.append(OutputTensor(name, model.datatypes[name], value, request.binary))
    for wanted in request.outputs:
        value = outcome.outputs[wanted.name]
        datatype = model.datatypes[wanted.name]
        if wanted.classes:
            spec = model.output_specs[wanted.name]
            scores = float32_from_bfloat16(value) if datatype == "BF16" else value
            value = top_classes(wanted.name, scores, classes=wanted.classes, labels=model.labels, batched=spec.batched)
            datatype = "BYTES"
        place = wanted.place and memory.write_output(wanted.name, datatype, value, wanted.place)
        outputs.append(OutputTensor(wanted.name, datatype, value, wanted.binary, place))
    return InferResponse(model.name, model.version, tuple(outputs), request.id)
