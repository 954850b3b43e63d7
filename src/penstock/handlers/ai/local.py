"""Answer AI jobs on this machine, without a key and without a network."""

from __future__ import annotations

import functools

from penstock.core.outcome import InvalidInput
from penstock.handlers.ai.provider import AIResult, Surroundings, Usage
from penstock.handlers.ai.request import AIRequest
from penstock.handlers.ai.textrank import summarize


class LocalProvider:
    """Summarise by TextRank in another process, so that a long text delays no other job.

    The sentences come back in the order of the text, one after the other on lines of their own. `max_tokens` has no
    meaning here; `instructions` are refused, because a summary that silently ignored them would look like an answer.
    """

    name = "local"

    async def complete(self, task: str, request: AIRequest, around: Surroundings) -> AIResult:
        """Return the summary; `summarize` is the only task that needs no language model."""
        if task != "summarize":
            raise InvalidInput("task", f"{task!r} needs a language model; set PENSTOCK_AI_BASE_URL")
        if request.instructions is not None:
            raise InvalidInput("input.instructions", "needs a language model; set PENSTOCK_AI_BASE_URL or leave it out")
        sentences = await around.run_in_process(functools.partial(summarize, sentences=request.sentences), request.text)
        if not isinstance(sentences, list):
            raise TypeError(f"the process pool returned {type(sentences).__name__} in place of a list of sentences")
        usage = Usage(prompt_tokens=0, completion_tokens=0, total_tokens=0)
        return AIResult(text="\n".join(sentences), provider=self.name, model=None, method="textrank", usage=usage)
