"""Summaries made on this machine: verbatim, without lead bias, bounded whatever the text."""

from __future__ import annotations

import codecs
import functools
import itertools
import multiprocessing
import pickle
import random
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.handlers.ai import textrank
from penstock.handlers.ai.sentences import MAX_SENTENCE_CHARS, sentence_spans
from penstock.handlers.ai.textrank import MAX_CANDIDATES, summarize
from penstock.handlers.ai.words import stems, stop_words_of

ADDRESS = (Path(__file__).parent.parent / "data" / "second_inaugural.txt").read_text(encoding="utf-8")
MEBI = 1024 * 1024

# Soseki, "I Am a Cat" (1905), and the first article of the Universal Declaration in Hindi.
CAT = (
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"
    "何でも薄暗いじめじめした所でニャーニャー泣いていた事だけは記憶している。"
    "吾輩はここで始めて人間というものを見た。"
    "しかもあとで聞くとそれは書生という人間中で一番獰悪な種族であったそうだ。"
    "この書生というのは時々我々を捕えて煮て食うという話である。"
)
HINDI = (
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है। "
    "उन्हें बुद्धि और अन्तरात्मा की देन प्राप्त है। परस्पर उन्हें भाईचारे के भाव से बर्ताव करना चाहिए।"
)


def sentences_of(text: str) -> list[str]:
    return [text[span.start : span.end] for span in sentence_spans(text)]


def real_texts() -> list[str]:
    """Long texts that every interpreter brings along."""
    return [ADDRESS, subprocess.__doc__ or "", Path(codecs.__file__).read_text(encoding="utf-8")]


@pytest.mark.parametrize("text", real_texts(), ids=["address", "subprocess", "source"])
def test_each_sentence_stands_verbatim_and_in_the_order_of_the_text(text: str) -> None:
    summary = summarize(text, sentences=5)
    assert len(summary) == 5
    places = [text.index(sentence) for sentence in summary]
    assert places == sorted(places)
    assert all(line in text for line in "\n".join(summary).splitlines())


def test_the_address_is_summarised_by_what_it_is_about() -> None:
    summary = summarize(ADDRESS, sentences=3)
    assert sum("war" in sentence for sentence in summary) >= 2


def test_the_number_of_sentences_is_kept() -> None:
    assert [len(summarize(ADDRESS, sentences=count)) for count in (1, 2, 10)] == [1, 2, 10]
    with pytest.raises(ValueError, match="at least 1"):
        summarize(ADDRESS, sentences=0)


def test_a_short_text_comes_back_whole() -> None:
    assert summarize("One thing happened. Then another followed.") == ["One thing happened.", "Then another followed."]
    assert summarize("no full stop at all") == ["no full stop at all"]


@pytest.mark.parametrize("blank", ["", " ", "\n\n\t\r\n", "\u3000"])
def test_a_blank_text_has_no_summary(blank: str) -> None:
    assert summarize(blank) == []


@pytest.mark.parametrize("text", ["...", "!?", "42. 43.", "\x00", "😀 😀"])
def test_a_text_without_words_does_not_fail(text: str) -> None:
    assert all(sentence in text for sentence in summarize(text))


def test_where_a_sentence_stands_plays_no_part() -> None:
    found = sentences_of(ADDRESS)
    expected = set(summarize("\n\n".join(found), sentences=5))
    for seed in range(10):
        shuffled = random.Random(seed).sample(found, len(found))
        assert set(summarize("\n\n".join(shuffled), sentences=5)) == expected


def test_main_sentences_that_come_last_are_the_summary() -> None:
    asides = [
        "Breakfast was served on the old veranda.",
        "A grey cat slept under the piano.",
        "Somebody had painted the gate green.",
        "Rain fell on Thursday afternoon.",
        "My uncle collects stamps from Peru.",
        "The train left eleven minutes late.",
        "Cheese goes well with ripe pears.",
        "Nobody remembers who won the match.",
        "Her bicycle needs new tyres.",
        "Lamps flickered along the harbour.",
        "The choir rehearsed until midnight.",
        "Two gulls argued over a sandwich.",
    ]
    main = [
        "The reservoir dam must be repaired before the spring flood reaches the valley.",
        "Engineers found that the dam holds back a reservoir far larger than planned.",
        "If the dam fails, the flood from the reservoir will cover the whole valley.",
    ]
    assert summarize(" ".join(asides + main), sentences=3) == main


def test_sentences_that_repeat_one_another_are_taken_once() -> None:
    report = "The dam holds back the water of the reservoir."
    text = " ".join([report] * 50 + ["The reservoir feeds two mills.", "The water of the dam turns a turbine."])
    assert summarize(text, sentences=3).count(report) == 1


def test_the_same_text_gives_the_same_summary_in_every_process() -> None:
    command = "import sys; from penstock.handlers.ai.textrank import summarize; print(summarize(sys.stdin.read()))"
    found = {
        subprocess.run(
            [sys.executable, "-c", command],
            input=ADDRESS,
            capture_output=True,
            text=True,
            check=True,
            encoding="utf-8",
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path), "PYTHONUTF8": "1"},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_it_runs_in_another_process() -> None:
    job = functools.partial(summarize, sentences=2)
    pickle.loads(pickle.dumps(job))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(job, ADDRESS).result() == summarize(ADDRESS, sentences=2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Smith paid 3.14 dollars. He left!", ["Dr. Smith paid 3.14 dollars.", "He left!"]),
        ("See e.g. No. 7 etc. at once. J. Doe agreed.", ["See e.g. No. 7 etc. at once.", "J. Doe agreed."]),
        ('"Why?" she asked. "No." He went.', ['"Why?" she asked.', '"No."', "He went."]),
        ("Wait... then go. Go on… Now!", ["Wait... then go.", "Go on…", "Now!"]),
        ("1. First point. 2. Second point.", ["1. First point.", "2. Second point."]),
        (
            "# Title\nSome text here.\n\n- one item\n- two items",
            ["# Title", "Some text here.", "- one item", "- two items"],
        ),
        ("a line that is\nwrapped at will. Next", ["a line that is\nwrapped at will.", "Next"]),
        ("first line\r\nsecond line", ["first line", "second line"]),
        ("今日は晴れです。明日は？はい！", ["今日は晴れです。", "明日は？", "はい！"]),
        ("हाँ है। नहीं।", ["हाँ है।", "नहीं।"]),
        ("هل هذا صحيح؟ نعم.", ["هل هذا صحيح؟", "نعم."]),
    ],
)
def test_sentences_end_where_readers_end_them(text: str, expected: list[str]) -> None:
    assert sentences_of(text) == expected


@pytest.mark.parametrize("text", [CAT, HINDI], ids=["japanese", "hindi"])
def test_other_scripts_are_summarised(text: str) -> None:
    summary = summarize(text, sentences=2)
    assert len(summary) == 2
    assert set(summary) <= set(sentences_of(text))


def test_japanese_is_compared_by_pairs_of_characters() -> None:
    assert {"吾輩", "輩は", "は猫"} <= stems("吾輩は猫", frozenset())
    assert "書生" in "".join(summarize(CAT, sentences=2)) or "人間" in "".join(summarize(CAT, sentences=2))


def test_function_words_belong_to_one_language() -> None:
    english = stop_words_of(ADDRESS)
    assert "the" in english
    assert "war" not in english
    assert "war" in stop_words_of("Das war der Tag, an dem sie mit ihm in die Stadt kam und nicht mehr ging.")
    assert stop_words_of(CAT) == frozenset()


@given(st.text(max_size=3_000), st.integers(1, 8))
def test_any_text_gives_verbatim_bounded_sentences(text: str, count: int) -> None:
    summary = summarize(text, sentences=count)
    assert len(summary) <= count
    assert all(sentence and sentence in text and len(sentence) <= MAX_SENTENCE_CHARS for sentence in summary)
    assert bool(summary) == bool(text.strip())


@given(st.text(alphabet='ab .。!?\n\t"-#1', max_size=2_000))
def test_spans_are_trimmed_ordered_and_lose_no_letter(text: str) -> None:
    spans = list(sentence_spans(text))
    assert all(before.end <= after.start for before, after in itertools.pairwise(spans))
    kept = "".join(text[span.start : span.end] for span in spans)
    assert all(text[span.start : span.end].strip() == text[span.start : span.end] != "" for span in spans)
    assert "".join(kept.split()) == "".join(text.split())


def varied(count: int, length: int, end: str) -> str:
    """Return `count` sentences of `length` words from a skewed vocabulary, as language is."""
    chance = random.Random(7)
    letters = "bcdfghklmnprst"
    return " ".join(
        " ".join(
            f"{letters[rank % 14]}{'aeiou'[rank % 5]}{letters[rank // 14 % 14]}o{letters[rank // 196 % 14]}"
            for rank in (int(chance.paretovariate(0.6)) % 2_744 for _ in range(length))
        ).capitalize()
        + end
        for _ in range(count)
    )


@pytest.mark.parametrize(
    "text",
    [varied(11_000, 15, "."), varied(MEBI // 6, 15, "")[:MEBI], varied(60_000, 2, "."), "x" * MEBI],
    ids=["prose", "one line without a full stop", "short sentences", "one word"],
)
def test_a_mebibyte_enters_the_graph_bounded(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[tuple[int, int]] = []
    build = textrank.similarity_graph

    def counting(vectors: list[textrank.Vector]) -> textrank.Edges:
        edges = build(vectors)
        graphs.append((len(vectors), sum(map(len, edges))))
        return edges

    monkeypatch.setattr(textrank, "similarity_graph", counting)
    assert len(text) >= MEBI * 2 // 3
    summary = summarize(text, sentences=5)
    assert summary
    assert all(sentence in text for sentence in summary)
    assert graphs or len(summary) == 1
    for nodes, directed_edges in graphs:
        assert nodes <= MAX_CANDIDATES
        assert directed_edges <= MAX_CANDIDATES * (MAX_CANDIDATES - 1)


@pytest.mark.parametrize(
    "unit",
    [
        ".",
        ". ",
        "! ",
        "1. ",
        "J. ",
        "Mr. ",
        "\n",
        "\r\n",
        " ",
        '"',
        '."',
        "(",
        "- a\n",
        "#\n",
        "。",
        "a\n",
        "e.g. ",
        "....\t",
    ],
)
def test_splitting_looks_at_each_place_a_bounded_number_of_times(unit: str) -> None:
    """Count the lines run by the splitter: twice the text may cost about twice the steps, never four times."""

    def steps(text: str) -> int:
        count = 0

        def trace(_frame: object, event: str, _argument: object) -> object:
            nonlocal count
            count += event == "line"
            return trace

        before = sys.gettrace()  # a coverage run must go on afterwards
        sys.settrace(trace)  # type: ignore[arg-type]
        try:
            for _ in sentence_spans(text):
                pass
        finally:
            sys.settrace(before)
        return count

    once = steps(unit * 2_000)
    assert steps(unit * 4_000) <= 2.2 * once + 200
