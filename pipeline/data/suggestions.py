"""Suggestion of the change by which a table's ids match the names of files, or the ids of another table."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice

Change = Callable[[str], str]

# Shorter names are looked for inside at most this many longer ones.
_SAMPLED = 20


def likely_cause(ids: Sequence[str], names: Collection[str]) -> Callable[[str], str]:
    """Return a function that gives the hint for one id, empty where there is none.

    Args:
        ids: ids that are not among the names.
        names: names that might be meant.
    """
    for what, fewest, of_id, of_name in _changes(ids, names):
        meant: dict[str, str] = {}
        for name in names:
            meant.setdefault(of_name(name), name)
        suggested = {key: meant[of_id(key)] for key in ids if of_id(key) in meant}
        # Different ids must match different names; few matches prove nothing, because one letter is in many names.
        if 2 * len(suggested) >= len(ids) > 0 and len(set(suggested.values())) == len(suggested) >= fewest:
            said = f"{len(suggested)} of {len(ids)} ids match after {what}"
            return lambda key, suggested=suggested, said=said: (  # type: ignore[misc]
                f"did you mean {suggested[key]!r}? {said}" if key in suggested else said
            )
    return lambda _: ""


def _changes(ids: Sequence[str], names: Collection[str]) -> Iterator[tuple[str, int, Change, Change]]:
    """Yield usual changes to ids: name, fewest matches that make one likely, and how to undo it in ids and in names."""
    yield "writing capital and small letters alike", 1, str.casefold, str.casefold
    for before, after in _affixes(ids, names):
        yield f"removing {_quoted(before, after)}", _fewest(before, after), _stripped(before, after), str.casefold
    for before, after in _affixes(list(islice(names, _SAMPLED)), ids):
        yield f"adding {_quoted(before, after)}", _fewest(before, after), str.casefold, _stripped(before, after)
    yield "removing leading zeros", 1, _without_zeros, _without_zeros
    yield "leaving out '-', '_' and '.'", 1, _letters, _letters


def _affixes(longer: Sequence[str], shorter: Collection[str]) -> list[tuple[str, str]]:
    """Return the most frequent pairs of texts before and after a shorter name inside a longer one."""
    counts: Counter[tuple[str, str]] = Counter()
    folded = {name.casefold() for name in shorter if name}
    for name in islice(map(str.casefold, longer), _SAMPLED):
        for part in folded:
            if len(part) < len(name) and part in name:
                before, _, after = name.partition(part)
                counts[before, after] += 1
    return [affix for affix, _ in counts.most_common(3)]


def _fewest(before: str, after: str) -> int:
    return 1 if not before and after.startswith(".") else 2


def _quoted(before: str, after: str) -> str:
    return " and ".join(f"{text!r} {where}" for text, where in ((before, "in front"), (after, "at the end")) if text)


def _stripped(before: str, after: str) -> Change:
    def change(name: str) -> str:
        folded = name.casefold()
        fits = folded.startswith(before) and folded.endswith(after) and len(folded) > len(before) + len(after)
        return folded[len(before) : len(folded) - len(after)] if fits else ""

    return change


def _without_zeros(name: str) -> str:
    return name.casefold().lstrip("0")


def _letters(name: str) -> str:
    return "".join(one for one in name.casefold() if one.isalnum())
