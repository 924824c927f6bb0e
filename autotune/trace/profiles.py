"""Profiles, kept: traced once for each request and stack of libraries, then read from the cache.

Requests are reduced to what a trace depends on (request.py) before they come here, so candidates with the same trace
share a profile. Neither torch nor transformers is imported for a profile that is in the cache.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from autotune import cache
from autotune.core.step.profile import Profile, profile_from_dict
from autotune.errors import NotPredicted, first_line
from autotune.machine.installed import installed
from autotune.trace.request import TraceRequest, kind_in_words
from autotune.trace.tracer import trace_apart, trace_many

FORMAT = 14  # of the files, and of what the trace writes into them; raise it when either changes
MEMORY = 9  # the last format that changed the recorded blocks or their lives; rows of benchmarks hold since then
STACK = ("autotune-sft", "torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profiles:
    """The profiles that were traced. home: the cache. progress: gets a line for each new trace or damaged file."""

    home: Path
    progress: Callable[[str], None]
    _loaded: dict[TraceRequest, Profile] = field(default_factory=dict, init=False, repr=False)

    def load(self, request: TraceRequest) -> Profile:
        """Load the profile of a reduced request. One that the cache lacks is traced, which takes seconds.

        A file that is damaged or not ours is replaced. Raises NotPredicted when the step cannot be traced.
        """
        if request not in self._loaded:
            self._loaded[request] = self._read(request)
        return self._loaded[request]

    def has(self, request: TraceRequest) -> bool:
        """Whether the cache has the profile of a reduced request."""
        return self._path("", describe_request(request)).exists()

    def trace_missing(
        self, requests: Iterable[TraceRequest], *, until: float, processes: int
    ) -> dict[TraceRequest, NotPredicted]:
        """Trace the reduced requests that the cache lacks, several at once, and keep their profiles.

        until, processes: as in tracer.trace_many. Returns why requests were not traced.
        """
        missing = [each for each in requests if not self.has(each)]
        if not missing:
            return {}
        self.progress(f"tracing {len(missing)} kinds of training steps; this is done once")
        failed: dict[TraceRequest, NotPredicted] = {}
        with closing(trace_many(missing, until=until, processes=processes)) as traces:
            for request, found in zip(missing, traces, strict=True):
                if found is None:
                    failed[request] = NotPredicted("no time was left to trace all kinds of steps")
                elif isinstance(found, NotPredicted):
                    failed[request] = _not_traced(request, found)
                else:
                    self.remember("", describe_request(request), found.to_dict)
        return failed

    def remember(self, folder: str, question: Mapping[str, Any], answer: Callable[[], Any]) -> Any:
        """Return the answer to a question, in plain values: from a folder beside the profiles, else from `answer`."""
        return cache.remember(self._path(folder, question), question, answer, self.progress)

    def _read(self, request: TraceRequest) -> Profile:
        question = describe_request(request)

        def answer() -> dict[str, Any]:
            self.progress(f"tracing a training step ({kind_in_words(request)}); this is done once")
            try:
                return trace_apart(request).to_dict()
            except NotPredicted as error:
                raise _not_traced(request, error) from error

        kept = self.remember("", question, answer)
        try:
            return profile_from_dict(kept)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            path = self._path("", question)
            self.progress(f"{path} holds no profile ({type(error).__name__}: {error}); it is made anew")
            path.unlink()
            return profile_from_dict(self.remember("", question, answer))

    def _path(self, folder: str, question: Mapping[str, Any]) -> Path:
        return self.home / "profiles" / folder / f"{key_of(question)}.json"


def describe_request(request: TraceRequest) -> dict[str, Any]:
    """Describe a reduced request and the libraries that are traced. Equal descriptions have one profile."""
    versions = installed().versions
    return {**asdict(request), "format": FORMAT, "versions": {name: versions.get(name) for name in STACK}}


def key_of(question: Any) -> str:
    """Name the file that answers a question."""
    return blake2b(json.dumps(question, sort_keys=True).encode(), digest_size=16).hexdigest()


def _not_traced(request: TraceRequest, error: NotPredicted) -> NotPredicted:
    return NotPredicted(f"a step ({kind_in_words(request)}) cannot be traced: {first_line(error)}")
