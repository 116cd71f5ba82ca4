"""One served model: a session with its name, its queue, its counters, and what requests may leave out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgekit.preprocess import Preprocess
from edgekit.runtime.session import Session
from edgekit.serve.cache import Cache
from edgekit.serve.joining import Joiner
from edgekit.serve.options import ModelOptions
from edgekit.serve.reader import RequestReader
from edgekit.serve.sequences import Sequences
from edgekit.serve.stats import Stats
from edgekit.serve.warmup import Cost, check_joined, measure, measure_joined
from edgekit.serve.worker import Worker
from edgekit.tensors import Array, Feed, dtype_of, take_samples

LOGGER = logging.getLogger(__name__)


class Model:
    """One served model.

    `sample` is a feed of one or more rows that the model is warmed and measured with; without one, every run goes to
    the model's threads, one request a run. `cost` and `max_rows` are given where they were measured already.
    """

    def __init__(
        self,
        session: Session,
        *,
        name: str,
        version: str = "1",
        reason: str = "given",
        platform: str = "onnxruntime_onnx",
        labels: Sequence[str] = (),
        defaults: Mapping[str, Array] | None = None,
        states: Mapping[str, str] | None = None,
        preprocess: Mapping[str, Preprocess] | None = None,
        task: str = "",
        sample: Feed | None = None,
        cost: Cost | None = None,
        max_rows: int = 1,
        options: ModelOptions | None = None,
        path: Path | None = None,
    ) -> None:
        self.session = session
        self.name, self.version = name, version
        self.reason, self.platform = reason, platform
        self.labels = tuple(labels)
        self.defaults = dict(defaults or {})
        self.preprocess = dict(preprocess or {})
        self.task = task
        self.options = options = options or ModelOptions()
        self.path = path
        self.inputs, self.outputs = session.inputs, session.outputs
        self._rows_in = self.inputs[0].name if self.inputs and self.inputs[0].batched else None
        self.input_specs = {s.name: s for s in self.inputs}
        self.output_specs = {s.name: s for s in self.outputs}
        self.datatypes = {s.name: dtype_of(s.dtype).oip for s in self.outputs}
        self.reader = RequestReader(self.input_specs)
        self.stats = Stats()
        self.states = dict(states or {}) if options.states is None else dict(options.states)
        self.sequences = Sequences(
            self.states, self.inputs, self.outputs, limit=options.sequences, idle_s=options.sequence_idle_s
        )
        self.cache = Cache(round(options.cache_mib * 2**20)) if options.cache_mib else None
        joiner = Joiner(self.inputs, self.outputs, buckets=options.buckets, pad=options.pad)
        if cost is None and sample is not None:
            cost, max_rows = warm(session, joiner, sample, options)
        if options.max_batch is not None and cost is None:  # nothing to try it with
            max_rows = options.max_batch
        self.worker = Worker(
            session,
            cost=cost,
            policy=options.policy(max_rows if joiner.joinable else 1),
            joiner=joiner,
            instances=options.instances or int(getattr(session, "lanes", 1)),
        )
        self._lock = threading.Lock()
        self._holders = 1

    @property
    def on_cpu(self) -> bool:
        """Whether it runs on no GPU."""
        return "cuda" not in self.session.device.lower()

    def rows_of(self, feed: Feed) -> int:
        """Rows in `feed`, which fits the model; 1 where the batch is not free."""
        return 1 if self._rows_in is None else len(feed[self._rows_in])

    def hold(self) -> None:
        """Keep the session open until `let_go`: another model runs it too."""
        with self._lock:
            self._holders += 1

    def let_go(self) -> None:
        """The end of `hold`."""
        if self._released():
            self.session.close()

    def close(self, *, timeout_s: float = 5.0) -> None:
        """Finish what waits, and release the model once nobody holds it."""
        if self.worker.close(timeout_s=timeout_s) and self._released():
            self.session.close()

    def _released(self) -> bool:
        with self._lock:
            self._holders -= 1
            return self._holders == 0

    def __str__(self) -> str:
        place = "runs where requests are parsed" if self.worker.inline else "runs on its own thread"
        rows = max(self.worker.max_rows, self.worker.turn_rows)
        if rows > 1:
            place += f", joins up to {rows} rows"
        return f"{self.name}: {self.session.variant} ({self.reason}), {self.session.device}, {place}"


def warm(session: Session, joiner: Joiner, inputs: Feed, options: ModelOptions) -> tuple[Cost, int]:
    """What one row costs, and how many are worth joining.

    `inputs` are samples; a model without a free batch takes all of them at once.
    """
    sample = take_samples(inputs, session.inputs, 0, 1, session.inputs) if session.inputs else inputs
    cost = measure(session, sample)
    on_gpu = "cuda" in session.device.lower()
    limit = 5e-3 if on_gpu else 1e-3  # a GPU chooses its kernels, and so its rounding, by the size of the batch
    if options.max_batch == 1 or not session.inputs:
        return cost, 1
    if options.max_batch is not None:
        obstacle = check_joined(session, joiner, inputs, options.max_batch, limit=limit)
        if not obstacle:
            return cost, options.max_batch
        if joiner.joinable:  # an option for all models may name more than one of them can do
            LOGGER.warning("max_batch is %d, which is not used: %s", options.max_batch, obstacle)
    rows, cost = measure_joined(session, joiner, inputs, cost, budget_s=0.5 if on_gpu else 0.06, limit=limit)
    return cost, min(rows, options.max_batch or rows)
