"""What may be said about serving beyond the packages themselves, from the command line and from TOML files.

Every option has a default that suits; most users give none. Files are `serve.toml` in a folder of packages (all of
them, and one `[models.NAME]` each) and `NAME.toml` beside `NAME.edge` (that model).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from edgekit.errors import InputError, UsageError
from edgekit.serve.batcher import Policy

SERVE_FILE = "serve.toml"
PIPELINE_SUFFIX = ".pipeline.toml"

_Count: TypeAlias = Annotated[int, Meta(ge=1, le=1 << 20)]
_Amount: TypeAlias = Annotated[float, Meta(ge=0)]
_Sizes: TypeAlias = Annotated[tuple[_Count, ...], Meta(min_length=1)]

PRIORITIES = 3


class ModelOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How one model is served.

    Attributes:
        variant: which variant of the package; None for the best on this machine.
        device: where, as "cpu", "cuda:0", or "cuda:0,cuda:1" for runs side by side; None for the best.
        split: spread the stages of a package over the devices instead.
        threads: threads of one run on a CPU; None for what measuring says.
        instances: runs at one time; None for 1 on a CPU and 2 on a GPU, whose copies overlap with computing.
        max_batch: rows that requests are joined to; 1 joins none, None lets the warm-up find out.
        preferred_batch: rows to wait for, up to `queue_delay_ms`.
        queue_delay_ms: how long a request may wait for others to join it.
        queue_limit: requests that may wait; more are answered 503.
        timeout_ms: how long a request may wait that sets no timeout itself; None for as long as it takes.
        priorities, default_priority: levels 1 (first) to `priorities`, and the level of a request that names none.
        buckets: sizes that a named free dimension is padded up to.
        pad: value that an input is padded with, by its name; 0 for others.
        states: which output feeds which input in the next request of a sequence; None for what the package says.
        sequences: sequences at one time; the one idle for longest makes room once it is idle for `sequence_idle_s`.
        sequence_idle_s: a sequence without a request for so long is forgotten.
        cache_mib: memory for answers to repeated requests; 0 keeps none.
        versions: "latest", "all", a number of latest versions, or a list of versions.
    """

    variant: str | None = None
    device: str | None = None
    split: bool = False
    threads: _Count | None = None
    instances: _Count | None = None
    max_batch: _Count | None = None
    preferred_batch: tuple[_Count, ...] = ()
    queue_delay_ms: _Amount = 0.0
    queue_limit: _Count = 256
    timeout_ms: Annotated[float, Meta(gt=0)] | None = None
    priorities: Annotated[int, Meta(ge=1, le=100)] = PRIORITIES
    default_priority: Annotated[int, Meta(ge=1, le=100)] = 2
    buckets: dict[str, _Sizes] = {}
    pad: dict[str, float] = {}
    states: dict[str, str] | None = None
    sequences: _Count = 1024
    sequence_idle_s: Annotated[float, Meta(gt=0)] = 60.0
    cache_mib: _Amount = 0.0
    versions: str | _Count | tuple[str, ...] = "latest"

    def __post_init__(self) -> None:
        if self.default_priority > self.priorities:
            raise ValueError(f"default_priority is {self.default_priority}, beyond priorities ({self.priorities})")
        if self.max_batch is not None and any(n > self.max_batch for n in self.preferred_batch):
            raise ValueError(f"preferred_batch has a size beyond max_batch ({self.max_batch})")
        if isinstance(self.versions, str) and self.versions not in ("latest", "all"):
            raise ValueError(f'versions is "{self.versions}"; expected "latest", "all", a number, or a list')

    def policy(self, max_rows: int) -> Policy:
        """How requests wait, when up to `max_rows` rows are joined."""
        return Policy(
            max_rows=max_rows,
            preferred=self.preferred_batch,
            delay_s=self.queue_delay_ms / 1e3,
            limit=self.queue_limit,
            levels=self.priorities,
            default_level=self.default_priority,
        )


class ServeFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """serve.toml: `[defaults]` for every model, `[models.NAME]` for one."""

    defaults: dict[str, Any] = {}
    models: dict[str, dict[str, Any]] = {}


def options_from(values: Mapping[str, Any], *, where: str) -> ModelOptions:
    """`values` as options. Raises UsageError, naming `where` they came from and what is wrong."""
    try:
        return msgspec.convert(dict(values), ModelOptions)
    except msgspec.ValidationError as error:
        raise UsageError(f"{where}: {error}. The options are in docs/serving.md.") from None


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises UsageError: unreadable or not TOML."""
    try:
        document = msgspec.toml.decode(path.read_bytes())
    except OSError as error:
        raise UsageError(f"'{path}' cannot be read ({error.strerror}).") from error
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise UsageError(f"'{path}' is not TOML: {error}.") from None
    return dict(document)


def option_files(path: Path) -> tuple[Path, Path]:
    """Where options of the package or pipeline at `path` may be: the folder's file, and its own."""
    stem = path.name.removesuffix(PIPELINE_SUFFIX).removesuffix(".edge")
    return path.parent / SERVE_FILE, path.parent / f"{stem}.toml"


def model_options(
    folder: Path,
    name: str,
    *,
    given: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    otherwise: Mapping[str, Any] | None = None,
) -> ModelOptions:
    """The options of model `name`, whose package is the folder `folder`.

    Later ones win: `otherwise`, serve.toml's `[defaults]` and `[models.NAME]`, `NAME.toml` (of the package's folder),
    the command line's `given`, and `extra` of a load request.

    Raises:
        UsageError: a file cannot be read or holds something that is no option.
    """
    values: dict[str, Any] = dict(otherwise or {})
    common, own = option_files(folder)
    where = "The options"
    if common.is_file():
        try:
            file = msgspec.convert(read_toml(common), ServeFile)
        except msgspec.ValidationError as error:
            raise UsageError(f"'{common}': {error}; expected [defaults] and [models.NAME].") from None
        options_from(file.defaults, where=f"'{common}', [defaults]")
        values |= file.defaults
        values |= file.models.get(name, {})
        where = f"'{common}', [models.{name}]"
        options_from(values, where=where)
    if own.is_file():
        values |= read_toml(own)
        where = f"'{own}'"
        options_from(values, where=where)
    if given:
        values |= given
        where = "The command line"
        options_from(values, where=where)
    if extra:
        values |= extra
        where = "The load request"
    return options_from(values, where=where)


def load_options(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The options in the parameters of a load request.

    Their `config` is JSON text: options by their names here, or what of Triton's model configuration means the same.

    Raises:
        InputError: a parameter or a setting that is not known, or not of its type.
    """
    for name in parameters:
        if name != "config":
            what = "Files are not taken over the network; put" if name.startswith("file:") else "Expected config; put"
            raise InputError(f"Parameter '{name}' of a load request is not taken. {what} them into the package.")
    text = parameters.get("config", "{}")
    try:
        given = msgspec.json.decode(text, type=dict[str, Any]) if isinstance(text, str) else None
    except (msgspec.DecodeError, RecursionError):
        given = None
    if given is None:
        raise InputError("Parameter config of a load request is not a JSON object in text.")
    try:
        values = _of_triton(given)
        msgspec.convert(values, ModelOptions)
    except (msgspec.ValidationError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise InputError(f"Parameter config of a load request: {error}. The options are in docs/serving.md.") from None
    return values


def _of_triton(given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` with Triton's settings by their names here; what it says of names, types and shapes is the package's."""
    out: dict[str, Any] = {}
    for name, value in given.items():
        match name:
            case "name" | "platform" | "backend" | "input" | "output" | "parameters":
                continue
            case "max_batch_size":
                out["max_batch"] = max(1, value)
            case "dynamic_batching":
                out["preferred_batch"] = tuple(value.get("preferred_batch_size", ()))
                out["queue_delay_ms"] = value.get("max_queue_delay_microseconds", 0) / 1e3
                if value.get("priority_levels"):
                    out["priorities"] = value["priority_levels"]
                    out["default_priority"] = value.get("default_priority_level", 1)
            case "instance_group":
                out["instances"] = sum(group.get("count", 1) for group in value)
            case "version_policy":
                if "all" in value:
                    out["versions"] = "all"
                elif "specific" in value:
                    out["versions"] = tuple(map(str, value["specific"]["versions"]))
                else:
                    out["versions"] = value["latest"].get("num_versions", 1)
            case "response_cache":
                out["cache_mib"] = 64.0 if value.get("enable") else 0.0
            case _:
                out[name] = value
    return out
