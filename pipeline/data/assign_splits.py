"""Assignment of studies to train, val and test: patients stay whole, strata are balanced, and no study moves later."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.class_names import split_classes
from pipeline.data.splits import LEAKED, SPLITS

STRATA = ["class", "view", "sex"]


def assign_splits(
    studies: pd.DataFrame, shares: Mapping[str, float], seed: int, former: Mapping[str, str] | None = None
) -> pd.Series:
    """Assign whole clusters of studies to parts, so that each part has its share of every stratum.

    Clusters are assigned one by one in the order of their first study. The further a part is ahead of
    its shares (of all studies and of the strata that the cluster has), the less probable it is that the
    cluster goes to it. A cluster's part depends on nothing that comes after it, so studies that are added
    at the end move none of the earlier ones.

    Args:
        studies: columns ``cluster``, ``class``, ``view``, ``sex``.
        shares: part -> its share of the studies; they add up to 1.
        seed: selects one of the many such assignments.
        former: cluster -> part: these clusters stay where they were, and the others compensate for them.

    Returns:
        The part of each row, on the index of ``studies``.
    """
    counts, clusters = _strata_counts(studies)
    parts, share = list(shares), np.array(list(shares.values()))
    known = former or {}
    held = np.zeros((len(parts), counts.shape[1]))  # studies of each part and stratum
    part_of: dict[str, int] = {name: parts.index(known[name]) for name in clusters if known.get(name) in shares}
    for row, name in enumerate(clusters):
        if name in part_of:
            held[part_of[name]] += counts[row]
    seen = held.sum(0)
    for row, name in enumerate(clusters):
        if name not in part_of:
            seen += counts[row]
            part_of[name] = _choose(counts[row], held, seen, share, _chance(seed, name, len(parts)))
            held[part_of[name]] += counts[row]
    return studies["cluster"].map({name: parts[number] for name, number in part_of.items()}).rename("part")


def _strata_counts(studies: pd.DataFrame) -> tuple[npt.NDArray[np.float64], list[str]]:
    """Count each cluster's studies, ``[N, J]``: all, per class, view and sex, per mix of the three; name the rows."""
    # A study with boxes of several classes is in the strata of each.
    of_classes = studies.assign(**{"class": studies["class"].map(split_classes)}).explode("class")
    keys = [pd.Series("all", studies.index), of_classes["class"], studies["view"], studies["sex"]]
    keys.append(of_classes[STRATA].agg("/".join, axis=1))
    codes, names = pd.factorize(studies["cluster"])
    cluster = pd.Series(codes, studies.index)
    columns = []
    for key in keys:
        strata, levels = pd.factorize(key)
        table = np.zeros((len(names), len(levels)))
        np.add.at(table, (cluster[key.index], strata), 1)
        columns.append(table)
    return np.concatenate(columns, 1), [str(name) for name in names]


def _choose(
    own: npt.NDArray[np.float64],
    held: npt.NDArray[np.float64],
    seen: npt.NDArray[np.float64],
    share: npt.NDArray[np.float64],
    chance: npt.NDArray[np.float64],
) -> int:
    """Sample a part: its probability is its share times a factor that falls the further ahead it would be."""
    ahead = held + own - share[:, None] * seen  # (parts, J), in studies
    concerned = own > 0
    surplus = (ahead[:, concerned] * np.sqrt(own[concerned])).mean(1) / np.sqrt(share)
    # Gumbel noise: the part with the largest sum is a sample from share * exp(-surplus).
    return int(np.argmax(np.log(share) - surplus - np.log(-np.log(chance))))


def _chance(seed: int, name: str, count: int) -> npt.NDArray[np.float64]:
    """Return numbers in (0, 1) that depend on the seed and the cluster alone."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint64)).uniform(1e-12, 1, count)


def pick_leaked(studies: pd.DataFrame, split: pd.Series, count: int, seed: int) -> pd.Series:
    """Mark ``count`` train studies whose patients have another study in train, in the mix of strata that val has.

    Args:
        studies: columns ``patientId``, ``cluster``, ``class``, ``view``, ``sex``.
        split: the split of each row.
        count: number of studies; fewer are marked where train does not have enough.
        seed: selects which of them.

    Returns:
        ``split`` with these marked as ``leaked``.
    """
    result = split.copy()
    stratum = studies[STRATA].agg("/".join, axis=1)
    order = studies["patientId"].map(lambda name: hashlib.sha256(f"{seed}:{name}".encode()).hexdigest())
    candidates = studies[(split == "train")].assign(stratum=stratum, order=order).sort_values("order")
    # One study of each patient stays in train, otherwise there would be nothing to leak.
    candidates = candidates[candidates.duplicated("cluster")]
    wanted = stratum[split == "val"].value_counts(normalize=True) * count
    for name, number in wanted.round().astype(int).items():
        result[candidates.index[candidates["stratum"] == name][:number]] = LEAKED
    return result


def kfold_shares(fractions: Mapping[str, float], folds: int) -> dict[str, float]:
    """Return the shares of ``test`` and of ``folds`` equal folds of the rest."""
    rest = (1 - fractions["test"]) / folds
    return {**{f"fold{number}": rest for number in range(folds)}, "test": fractions["test"]}


def missing_classes(studies: pd.DataFrame, split: pd.Series) -> Sequence[str]:
    """Return a message for each class that a split lacks."""
    classes = studies["class"].map(split_classes).explode()
    return [
        f"split {name} has no study of class {missing!r}"
        for name in SPLITS
        for missing in sorted(set(classes) - set(classes[split[classes.index] == name]))
    ]
