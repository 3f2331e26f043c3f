"""Documents that resemble an earlier one: MinHash signatures of texts, and the query that compares them.

The resemblance of two texts is the Jaccard index of their shingles, all runs of 13 bytes: those that both
have over those that either has. The share of equal slots of two signatures estimates it, with a standard
error of at most 0.045 (Broder, "On the resemblance and containment of documents", 1997; the sketch is that
of arXiv 1704.04370). Only documents that agree in a whole band of slots are compared (locality-sensitive
hashing): at a resemblance of 0.8 that misses one in 500, at 0.7 one in 14.
"""

from __future__ import annotations

import itertools

import numpy as np

from cola_cli.errors import UsageError

SHINGLE = 13
SLOTS = 128
BANDS, BAND = 21, 6  # as many bands of so many slots
ALGORITHM, SEED = 2, 1  # of rensa: another would give other signatures
BLOCK = 1 << 20  # shingles at a time
# Odd numbers that spread the bits of a product (xxHash, MurmurHash).
FIRST, LAST = np.uint64(0x9E3779B185EBCA87), np.uint64(0xC2B2AE3D27D4EB4F)


def require_library() -> None:
    """Raise UsageError unless the library that makes signatures is there."""
    remedy = "Install it: pip install 'cola-cli[near-duplicates]'"
    try:
        from rensa import RMinHash
    except ImportError as error:
        raise UsageError("near_duplicates needs rensa, which is not installed.", remedy) from error
    if RMinHash.ALGORITHM_VERSION != ALGORITHM:
        raise UsageError("near_duplicates needs rensa 0.5; another version is installed.", remedy)


def signature(text: str) -> np.ndarray:
    """The MinHash signature of the shingles of a text, (128,) uint32; a shorter text is one shingle."""
    from rensa import RMinHash

    data = text.encode().ljust(SHINGLE, b"\0")
    count = len(data) - SHINGLE + 1
    bounds = np.linspace(0, count, 1 + -(-count // BLOCK), dtype=np.int64).tolist()
    found = np.full(SLOTS, np.iinfo(np.uint32).max, np.uint32)
    # the signature of a union is the least of each slot
    for start, stop in itertools.pairwise(bounds):
        hashes = _hashes(data[start : stop + SHINGLE - 1])
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(
            hashes, [0, len(hashes)], SLOTS, SEED
        )
        found = np.minimum(found, np.array(matrix.to_rows()[0], np.uint32))
    return found


def _hashes(data: bytes) -> np.ndarray:
    """A number for each shingle of some bytes: its first eight bytes and its last, mixed."""
    count = len(data) - SHINGLE + 1
    first, last = (np.ndarray(count, "<u8", data, at, (1,)) for at in (0, SHINGLE - 8))
    mixed = first * FIRST
    mixed ^= mixed >> np.uint64(32)
    mixed += last * LAST
    mixed ^= mixed >> np.uint64(29)
    mixed *= FIRST
    mixed ^= mixed >> np.uint64(32)
    return mixed


def resembling(documents: str, threshold: float) -> str:
    """SQL for the positions of those of `documents` (position, signature) that resemble an earlier one.

    In each band a document is compared with the earliest that has the same slots, so that the work grows with
    the documents and not with their pairs. A position may come more than once.
    """
    band = f"signature[{BAND} * n + 1 : {BAND} * n + {BAND}]"
    equal = "[1 FOR s IN list_zip(a.signature, b.signature) IF s[1] = s[2]]"
    return f"""
        WITH bands AS (
            SELECT position, unnest([hash(n, {band}) FOR n IN range({BANDS})]) AS band FROM {documents}
        ), earliest AS (
            SELECT band, min(position) AS first FROM bands GROUP BY band HAVING count(*) > 1
        ), pairs AS (
            SELECT DISTINCT position, first FROM bands JOIN earliest USING (band) WHERE position > first
        )
        SELECT position FROM pairs JOIN {documents} AS a USING (position)
        JOIN {documents} AS b ON b.position = first
        WHERE len({equal}) >= {threshold} * {SLOTS}
    """
