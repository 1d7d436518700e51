"""A text encoder without weights: hashed words, word pairs and letter groups, projected to a small vector.

Every n-gram is a point of a sparse random projection: its 64-bit hash picks a few coordinates and their signs (feature
hashing, Weinberger et al., ICML 2009; sparse projection, Achlioptas, JCSS 2003). So the inner product of two texts is,
up to noise of order 1/sqrt(dim), that of their weighted n-gram counts, in every language that separates words.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from training.data.featurise.vectors import Vectors, unit_rows

_DIM = 256
_COORDINATES = 8
"""Coordinates that one n-gram touches: its squared length is exact, and two n-grams rarely share more than one."""
_PAIR_WEIGHT = 0.5
_LETTERS_WEIGHT = 0.6
_LETTER_GROUPS = (3, 4, 5)
_CACHED_WORDS = 32_768  # 32 MB of vectors
_CACHED_GRAMS = 65_536  # 30 MB
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")

_STOP_WORDS = frozenset(
    _WORD.findall(
        """
        a about after all also an and any are as at be been but by can could did do for from had has have he her him
        his how i if in into is it its me more my no not of on one or our out she so some than that the their them
        then there these they this to up was we were what when which who will with would you your
        """
    )
)


class HashedText:
    """Sublinear counts of words and word pairs; a word's letter groups make its inflected forms similar."""

    source = "hashed words, word pairs and letter groups, sparse random projection"
    dim = _DIM

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Return one L2-normalised row `[B, 256]` float32 a text; a text without words gives a row of zeros."""
        if not texts:
            return np.empty((0, _DIM), dtype=np.float32)
        return unit_rows(np.stack([_text_vector(text) for text in texts]))


def _text_vector(text: str) -> Vectors:
    """Return the weighted sum `[D]` of a text's n-grams; the same one whatever else is in the batch."""
    words = [word for word in _WORD.findall(text.lower()) if word not in _STOP_WORDS]
    if not words:
        return np.zeros(_DIM, dtype=np.float32)
    counts = Counter(words)
    weights_W = 1 + np.log(np.array(list(counts.values()), dtype=np.float32))
    vector: Vectors = weights_W @ np.stack([_word_vector(word) for word in counts])
    pairs = Counter(pairwise(words))
    if pairs:
        places = [_coordinates(f"{first} {second}") for first, second in pairs]
        weights = np.repeat(_PAIR_WEIGHT * (1 + np.log(list(pairs.values()))), _COORDINATES)
        signs = np.concatenate([sign for _, sign in places])
        vector += np.bincount(np.concatenate([index for index, _ in places]), weights * signs, minlength=_DIM)
    return vector.astype(np.float32)


@lru_cache(maxsize=_CACHED_WORDS)
def _word_vector(word: str) -> Vectors:
    """Return a word's vector `[D]`: itself and its letter groups."""
    vector = np.zeros(_DIM, dtype=np.float32)
    index, sign = _coordinates(word)
    vector[index] += sign
    bounded = f"<{word}>"
    groups = [bounded[i : i + n] for n in _LETTER_GROUPS for i in range(len(bounded) - n + 1)]
    weight = np.float32(_LETTERS_WEIGHT / np.sqrt(max(1, len(groups))))
    for group in groups:
        index, sign = _coordinates(group)
        vector[index] += weight * sign
    vector.setflags(write=False)  # it is shared by all that ask for the word
    return vector


@lru_cache(maxsize=_CACHED_GRAMS)
def _coordinates(gram: str) -> tuple[NDArray[np.int64], Vectors]:
    """Return the distinct coordinates of an n-gram and their signs over sqrt(their number), both `[8]`."""
    digest = hashlib.blake2b(gram.encode(), digest_size=16).digest()
    numbers = np.frombuffer(digest, dtype="<u2")
    block = _DIM // _COORDINATES
    index = numbers.astype(np.int64) % block + np.arange(_COORDINATES) * block
    sign = np.where(numbers & 0x8000, 1.0, -1.0).astype(np.float32) / np.float32(np.sqrt(_COORDINATES))
    for shared in (index, sign):
        shared.setflags(write=False)
    return index, sign
