"""Cut text into comparable words, in any script and without word lists to download."""

from __future__ import annotations

import re
from types import MappingProxyType

STEM_CHARS = 6
"""Words are compared by their first letters: `license`, `licenses` and `licensed` are one word."""

# Indic, Thai, Lao, Tibetan, Myanmar and Khmer vowel signs are no \w in Python, so these blocks are named.
_MARKED = "\u0300-\u036f\u0900-\u0963\u0966-\u0dff\u0e00-\u0f0c\u0f0e-\u1049\u104c-\u109f\u1780-\u17d3\u17d7-\u17ff"
_WORD = re.compile(rf"[\w{_MARKED}]+")
# Scripts that write no spaces between words: they are compared by pairs of characters.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)

# The commonest function words. In a long text their weight falls by itself; in a short one they would make every
# sentence look like every other. They apply to their own language only: "war" and "die" mean something in English.
_FUNCTION_WORDS = MappingProxyType(
    {
        "en": """a about after all also an and any are as at be because been but by can could did do does for from
            had has have he her him his how i if in into is it its may me more most my no nor not of on one only
            or other our out over shall she should so some such than that the their them then there these they
            this those through to up upon was we were what when where which who whom will with would you your""",
        "de": """aber als am auch auf aus bei bin bis das dass dem den der des die durch ein eine einem einen einer
            eines er es für hat ich ihr ihre im in ist kann mit nach nicht noch nur oder sein sich sie sind so
            über um und uns unter vom von vor war was wenn werden wie wir wird zu zum zur""",
        "fr": """a au aux avec ce ces cette comme d dans de des du elle en est et eux fait il ils je l la le les leur
            lui mais même n ne nous on ont ou où par pas plus pour qu que qui s sa sans se ses son sont sur un
            une vous""",
        "es": """a al como con de del desde el ella ellos en entre era es esta este esto fue ha han hay la las lo los
            más muy no o para pero por porque que se si sin sobre son su sus también un una uno y""",
        "it": """a agli al alla alle anche che chi ci come con cui da dal dalla dei del della delle di e gli ha hanno
            i il in io l la le lo loro ma nel nella non o per più quando questa questo se si sono su sua suo tra
            un una""",
        "pt": """a ao aos as até com da das de do dos e em é essa esse isso já mais mas na não nas no nos num o os ou
            para pela pelo por quando que se seu sua são também tem um uma""",
        "nl": """aan als dan dat de deze die dit door een en er geen had heeft het hij hun ik in is je kan maar met
            na naar niet nog nu of om onder ook op over te tot uit van veel voor was wat werd wie wij worden ze
            zich zijn zo""",
    }
)
_SAMPLE_CHARS = 20_000


def stop_words_of(text: str) -> frozenset[str]:
    """Return the function words of the language that the text seems to be in; none when they are too rare to tell."""
    words = _WORD.findall(text[:_SAMPLE_CHARS].casefold())
    lists = [frozenset(listed.split()) for listed in _FUNCTION_WORDS.values()]
    hits, best = max(((sum(word in listed for word in words), listed) for listed in lists), key=lambda pair: pair[0])
    return best if hits * 10 >= len(words) else frozenset()


def stems(text: str, stop_words: frozenset[str]) -> frozenset[str]:
    """Return the comparable words of `text`; numbers and `stop_words` are left out."""
    found: set[str] = set()
    for word in _WORD.findall(text.casefold()):
        if word in stop_words or word.isnumeric():
            continue
        if word.isascii():
            found.add(word[:STEM_CHARS])
            continue
        for run in _UNSPACED.findall(word):
            found.update(run[at : at + 2] for at in range(max(1, len(run) - 1)))
        found.update(part[:STEM_CHARS] for part in _UNSPACED.split(word) if part)
    return frozenset(found)
