"""The served models by name and version, and the state of those that are not served (any more, or yet)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from edgekit.errors import UsageError
from edgekit.serve.messages import RequestError
from edgekit.serve.model import Model


class Versioned(Protocol):
    """Anything that comes in versions."""

    @property
    def version(self) -> str:
        """Which one this is."""
        ...


_V = TypeVar("_V", bound=Versioned)

READY, LOADING, UNAVAILABLE = "READY", "LOADING", "UNAVAILABLE"


@dataclass(slots=True)
class _Entry:
    model: Model | None
    state: str
    reason: str = ""


def version_order(version: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts versions as people do: 9 before 10, 1.2 before 1.10."""
    parts = [p for p in re.split(r"(\d+)", version) if p]
    return tuple((1, int(p), "") if p.isdigit() else (0, 0, p) for p in parts)


def chosen_versions(sources: Sequence[_V], policy: str | int | tuple[str, ...]) -> list[_V]:
    """Which of the versions of one model are served: see `ModelOptions.versions`."""
    ranked = sorted(sources, key=lambda s: version_order(s.version))
    if policy == "all":
        return ranked
    if isinstance(policy, tuple):
        return [s for s in ranked if s.version in policy]
    return ranked[-1 if policy == "latest" else -int(policy) :]


class Repository:
    """The models by name and version. Changed and asked on the server's thread only.

    `changes` counts how often another model came to be served, or none.
    """

    def __init__(self, models: Iterable[Model] = ()) -> None:
        self._entries: dict[str, dict[str, _Entry]] = {}
        self._latest: dict[str, Model] = {}
        self.changes = 0
        for model in models:
            if model.version in self._entries.get(model.name, {}):
                raise UsageError(f"Two models are named '{model.name}'; a server tells models apart by name.")
            self.put(model)

    def models(self) -> tuple[Model, ...]:
        """All models that are served, in the order they came."""
        return tuple(e.model for versions in self._entries.values() for e in versions.values() if e.model is not None)

    def versions(self, name: str) -> list[str]:
        """The versions of `name` that are served, oldest first."""
        return sorted((v for v, e in self._entries.get(name, {}).items() if e.model is not None), key=version_order)

    def find(self, name: str, version: str = "") -> Model:
        """The model called `name`, in `version` or the latest. Raises RequestError 404, saying what there is."""
        if not version:
            latest = self._latest.get(name)
            if latest is not None:
                return latest
        entries = self._entries.get(name)
        if not entries:
            known = ", ".join(self._latest) or "none"
            raise RequestError(404, f"Model '{name}' is not served here; this server has {known}.")
        entry = entries.get(version) if version else next(iter(entries.values()))
        if entry is not None and entry.model is not None:
            return entry.model
        if entry is not None:
            raise RequestError(404, f"Model '{name}' is not ready: {entry.reason or entry.state.lower()}.")
        raise RequestError(
            404, f"Model '{name}' has no version '{version}' here; it has {', '.join(map(repr, entries))}."
        )

    def put(self, model: Model) -> Model | None:
        """Serve `model` from now on. Returns the one that it replaces: the same name and version."""
        entries = self._entries.setdefault(model.name, {})
        old = entries.get(model.version)
        entries[model.version] = _Entry(model, READY)
        self._choose(model.name)
        return old.model if old is not None else None

    def drop(self, name: str, version: str, reason: str) -> Model | None:
        """Serve `name` in `version` no longer. Returns the model, if there was one."""
        entry = self._entries.get(name, {}).get(version)
        if entry is None:
            return None
        model, entry.model = entry.model, None
        entry.state, entry.reason = UNAVAILABLE, reason
        self._choose(name)
        return model

    def forget(self, name: str, version: str) -> None:
        """Leave a model that is not served out of the index."""
        entries = self._entries.get(name, {})
        if version in entries and entries[version].model is None:
            del entries[version]
            if not entries:
                del self._entries[name]

    def note(self, name: str, version: str, state: str, reason: str = "") -> None:
        """Say what becomes of a model; one that is served stays so, with `reason` beside it."""
        entry = self._entries.setdefault(name, {}).setdefault(version, _Entry(None, state))
        entry.reason = reason
        if entry.model is None:
            entry.state = state

    def index(self, *, ready_only: bool = False) -> list[dict[str, str]]:
        """Every model with its state and what is to be said of it."""
        return [
            {"name": name, "version": version, "state": entry.state, "reason": entry.reason}
            for name, entries in self._entries.items()
            for version, entry in sorted(entries.items(), key=lambda item: version_order(item[0]))
            if entry.state == READY or not ready_only
        ]

    def close(self) -> None:
        """Release every model."""
        for model in self.models():
            model.close()

    def _choose(self, name: str) -> None:
        self.changes += 1
        versions = self.versions(name)
        model = self._entries[name][versions[-1]].model if versions else None
        if model is None:
            self._latest.pop(name, None)
        else:
            self._latest[name] = model
