"""Detection of images that occur twice: the same file, or the same picture saved again."""

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]

# Out of 256 bits. A radiograph that is saved again as a JPEG of quality 30, at half the size, or a tenth brighter,
# differs in at most 12; two different radiographs of the sample, even of one patient, differ in at least 20.
MAX_DISTANCE = 12
_PAIRS_AT_ONCE = 2**21


def perceptual_hash(pixels: Image) -> str:
    """Return 256 bits, in hexadecimal, that describe uint8 ``[H, W]`` whatever its size, brightness and noise.

    They are the signs of the 16 x 16 lowest frequencies of its cosine transform, about their median (the
    "pHash" of Zauner 2010, with more bits, because chest radiographs look alike).
    """
    small = cv2.resize(pixels, (64, 64), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:16, :16].flatten()
    low[0] = np.median(low[1:])  # brightness must not matter
    return np.packbits(low > np.median(low[1:])).tobytes().hex()


def similar_pairs(hashes: Sequence[str], max_distance: int = MAX_DISTANCE) -> list[tuple[int, int]]:
    """Return index pairs (i < j) of hashes with at most ``max_distance`` different bits, without an N x N table."""
    if not hashes:
        return []
    words = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint64).reshape(len(hashes), -1)
    pairs: list[tuple[int, int]] = []
    step = max(1, _PAIRS_AT_ONCE // len(words))
    for start in range(0, len(words), step):
        rows = words[start : start + step]
        # The first of the four words rules out nearly all pairs.
        near = np.bitwise_count(rows[:, None, 0] ^ words[None, start:, 0]) <= max_distance
        left, right = np.nonzero(np.triu(near, 1))
        distance = np.bitwise_count(rows[left] ^ words[start + right]).sum(1)
        close = distance <= max_distance
        pairs += zip((start + left[close]).tolist(), (start + right[close]).tolist(), strict=True)
    return pairs


def same_files(digests: Sequence[str]) -> list[tuple[int, int]]:
    """Return pairs of indices of files with the same bytes: each copy is paired with the first such file."""
    first: dict[str, int] = {}
    return [(first[digest], index) for index, digest in enumerate(digests) if first.setdefault(digest, index) != index]


def clusters(groups: Sequence[str], pairs: Iterable[tuple[int, int]]) -> list[str]:
    """Return each study's cluster, to be kept in one split: groups that pairs join, named by the first in order."""
    parent = {group: group for group in groups}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = group = parent[parent[group]]
        return group

    for i, j in pairs:
        one, other = sorted((root(groups[i]), root(groups[j])))
        parent[other] = one
    return [root(group) for group in groups]
