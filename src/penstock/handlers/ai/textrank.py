"""Summarise a text by its own sentences: TextRank (Mihalcea and Tarau, 2004), pure Python, bounded work.

Sentences are the nodes; the weight of an edge is the cosine of the two sentences' words, each weighted by how rare it
is; PageRank finds the sentences that the rest of the text leans on. Where a sentence stands plays no part. Comparing
all pairs is quadratic, so at most `MAX_CANDIDATES` sentences enter the graph: those nearest to the centre of the
whole text.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from dataclasses import dataclass

from penstock.handlers.ai.sentences import Span, ends_like_prose, sentence_spans
from penstock.handlers.ai.words import stems, stop_words_of

MAX_CANDIDATES = 300
"""Sentences in the graph: at most 44,850 edges, whatever the length of the text."""

MAX_ITERATIONS = 60
DAMPING = 0.85
TOLERANCE = 1e-6
MIN_PROSE_WORDS = 4
NEAR_DUPLICATE = 0.8
"""Cosine from which a sentence says the same as one already chosen."""

Vector = dict[str, float]
Edges = list[dict[int, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sentence:
    """Hold one sentence: where it stands and the words that it is compared by."""

    span: Span
    words: frozenset[str]


def summarize(text: str, *, sentences: int = 5) -> list[str]:
    """Return at most `sentences` of the text's own sentences, verbatim and in the order of the text.

    A top-level function of plain values, so that it can run in another process. A text with fewer sentences comes back
    whole; one without any word comes back as its first sentence, or as an empty list when it is blank.
    """
    if sentences < 1:
        raise ValueError("sentences must be at least 1")
    found = distinct_sentences(text)
    nodes = candidates(text, found, sentences)
    if len(nodes) <= sentences:
        chosen = list(nodes)
    else:
        vectors = _vectors(nodes)
        edges = similarity_graph(vectors)
        chosen = [nodes[index] for index in _pick(_pagerank(edges), edges, sentences)]
    return [text[node.span.start : node.span.end] for node in sorted(chosen, key=lambda node: node.span.start)]


def distinct_sentences(text: str) -> list[Sentence]:
    """List the sentences of the text; of those with the same words only the first is kept."""
    seen: dict[frozenset[str], Sentence] = {}
    stop_words = stop_words_of(text)
    for span in sentence_spans(text):
        words = stems(text[span.start : span.end], stop_words)
        if words not in seen:
            seen[words] = Sentence(span=span, words=words)
    if len(seen) > 1:
        seen.pop(frozenset(), None)
    return list(seen.values())


def candidates(text: str, found: list[Sentence], wanted: int) -> list[Sentence]:
    """Choose at most `MAX_CANDIDATES` sentences for the graph, whole sentences before headings, lists and code."""
    prose = [one for one in found if len(one.words) >= MIN_PROSE_WORDS and ends_like_prose(text, one.span)]
    if len(prose) >= wanted and 2 * _total_words(prose) >= _total_words(found):
        found = prose
    if len(found) <= MAX_CANDIDATES:
        return found
    rarity = _rarity(found)
    counts = Counter(word for one in found for word in one.words)
    pull = {word: counts[word] * rarity[word] for word in counts}

    def closeness(one: Sentence) -> tuple[float, int]:
        length = math.sqrt(math.fsum(rarity[word] ** 2 for word in one.words)) or 1.0
        return math.fsum(pull[word] * rarity[word] for word in one.words) / length, len(one.words)

    return heapq.nlargest(MAX_CANDIDATES, found, key=closeness)


def similarity_graph(vectors: list[Vector]) -> Edges:
    """Return each node's neighbours with the cosine to them; nodes that share no word have no edge."""
    edges: Edges = [defaultdict(float) for _ in vectors]
    holders: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for index, vector in enumerate(vectors):
        row = edges[index]
        for word, weight in vector.items():
            for other, other_weight in holders[word]:
                row[other] += weight * other_weight
            holders[word].append((index, weight))
    for index, row in enumerate(edges):
        for other, weight in row.items():
            if other < index:
                edges[other][index] = weight
    return edges


def _total_words(found: list[Sentence]) -> int:
    return sum(len(one.words) for one in found)


def _rarity(found: list[Sentence]) -> Vector:
    counts = Counter(word for one in found for word in one.words)
    return {word: math.log(1 + len(found) / count) for word, count in counts.items()}


def _vectors(nodes: list[Sentence]) -> list[Vector]:
    rarity = _rarity(nodes)
    vectors: list[Vector] = []
    for node in nodes:
        # Sorted, because sums of floats depend on their order and a set's order differs from process to process.
        words = sorted(node.words)
        length = math.sqrt(math.fsum(rarity[word] ** 2 for word in words)) or 1.0
        vectors.append({word: rarity[word] / length for word in words})
    return vectors


def _pagerank(edges: Edges) -> list[float]:
    size = len(edges)
    strength = [sum(row.values()) for row in edges]
    ranks = [1.0 / size] * size
    for _ in range(MAX_ITERATIONS):
        shares = [rank / total if total else 0.0 for rank, total in zip(ranks, strength, strict=True)]
        renewed = [
            (1 - DAMPING) / size + DAMPING * sum(weight * shares[other] for other, weight in row.items())
            for row in edges
        ]
        moved = sum(abs(new - old) for new, old in zip(renewed, ranks, strict=True))
        ranks = renewed
        if moved < TOLERANCE:
            break
    return ranks


def _pick(ranks: list[float], edges: Edges, wanted: int) -> list[int]:
    """Return the best nodes; what nearly repeats a chosen one comes only when nothing else is left."""
    order = sorted(range(len(ranks)), key=lambda index: (-round(ranks[index], 9), index))
    chosen: list[int] = []
    repeats: list[int] = []
    for index in order:
        if len(chosen) == wanted:
            break
        near = any(edges[index].get(other, 0.0) >= NEAR_DUPLICATE for other in chosen)
        (repeats if near else chosen).append(index)
    return chosen + repeats[: wanted - len(chosen)]
