"""The same by llama.cpp (xllamacpp): a target's GGUF alone, with a draft's, or with n-gram lookup.

llama.cpp fixes the draft when a server starts (what a request says of it is ignored), so each way
is a server of its own; files are memory-mapped, and weights of one file are shared. It verifies by
drawing from the target at each place and comparing, which is lossless too, and reports drafted and
accepted tokens of each answer. Knows llama.cpp's requests; imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NamedTuple

from stillhouse.core.errors import StillhouseError, UserError
from stillhouse.core.optional import require

NEEDED_FOR: Final = "speculate.runtimes: llama.cpp"


class Draft(NamedTuple):
    """How a server drafts: with the model in `path`, or, without one, by lookup of n-grams."""

    length: int
    path: Path | None = None
    confidence: float = 0.0


class LlamaAnswer(NamedTuple):
    """One answer. `seconds` is of the decoding alone: prompts are read in the same time by all."""

    text: str
    tokens: int
    seconds: float
    drafted: int
    accepted: int

    @property
    def passes(self) -> int:
        """Passes of the target: each gives one token that was not drafted."""
        return max(1, self.tokens - self.accepted)


class LlamaTarget:
    """A server in this process with one slot.

    Raises:
        MissingExtraError: xllamacpp is not installed.
        UserError: a file that llama.cpp cannot load, or tokenizers that differ.
    """

    def __init__(self, path: Path, context: int, threads: int, draft: Draft | None = None) -> None:
        library: Any = require("xllamacpp", "gguf", NEEDED_FOR)
        for file in (path, *([draft.path] if draft and draft.path else [])):
            if not file.is_file():
                raise UserError(str(file), "there is no such file", action="check the path")
        settings = library.CommonParams()
        settings.model.path = str(path)
        settings.n_parallel = 1
        settings.n_ctx = context
        settings.cpuparams.n_threads = threads
        settings.verbosity = -1
        settings.warmup = False
        settings.ui = settings.endpoint_slots = False
        kinds = library.common_speculative_type
        if draft is not None and draft.path is not None:
            settings.speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
            settings.speculative.draft.mparams.path = str(draft.path)
            settings.speculative.draft.n_max = draft.length
            settings.speculative.draft.p_min = draft.confidence
            settings.speculative.draft.cpuparams.n_threads = threads
        elif draft is not None:
            settings.speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
            settings.speculative.ngram_simple.size_n = 2
            settings.speculative.ngram_simple.size_m = draft.length
        try:
            self._server: Any = library.Server(settings)
        except RuntimeError as error:
            raise UserError(
                str(draft.path if draft and draft.path else path),
                f"llama.cpp cannot load it ({error})",
                action="check that the files are whole and of one vocabulary",
            ) from None

    def answer(
        self,
        prompt: str,
        max_tokens: int,
        *,
        sampling_temperature: float = 0.0,
        seed: int = 0,
    ) -> LlamaAnswer:
        """Answer a prompt that is written in the model's own format.

        Raises:
            StillhouseError: llama.cpp refused it.
        """
        request = {
            "prompt": prompt,
            "n_predict": max_tokens,
            "temperature": sampling_temperature,
            "seed": seed,
            "top_k": 0,
            "top_p": 1.0,
            "min_p": 0.0,
            "cache_prompt": False,
        }
        try:
            found: dict[str, Any] = self._server.handle_completions(request)
        except (ValueError, RuntimeError) as error:
            raise StillhouseError(f"llama.cpp refused the request: {error}") from None
        if "error" in found:
            raise StillhouseError(f"llama.cpp: {found['error']}")
        times = found["timings"]
        return LlamaAnswer(
            text=str(found["choices"][0]["text"]),
            tokens=int(times["predicted_n"]),
            seconds=float(times["predicted_ms"]) / 1000.0,
            drafted=int(times.get("draft_n", 0)),
            accepted=int(times.get("draft_n_accepted", 0)),
        )

    def close(self) -> None:
        """Free the model."""
        self._server = None
