"""Which n-grams of some texts occur in the training split of a tokens artifact."""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cola_cli.artifacts.checks import RESTORE
from cola_cli.artifacts.duckdb_names import duckdb_name
from cola_cli.artifacts.kinds import Tokens
from cola_cli.artifacts.reading import reason
from cola_cli.errors import DamagedArtifact
from cola_cli.evaluation.text_metrics import ngrams
from cola_cli.reporting import Reporter

TRAIN = "train"


def memorised_shares(
    artifact: Tokens,
    groups: Sequence[Sequence[Sequence[int]]],
    size: int,
    reporter: Reporter,
    threads: int = 1,
) -> list[float | None]:
    """For each group of texts (token ids): the share of its n-grams that the training split holds.

    `size` is n. None for a group whose texts are all shorter than that.
    """
    texts = [text for group in groups for text in group]
    *_, (_, owners, grams) = ngrams(texts, size)
    known = training_ngrams(artifact, _one_of_each(texts, owners, grams, size), reporter, threads)
    shares: list[float | None] = []
    start = 0
    for group in groups:
        own = grams[(owners >= start) & (owners < start + len(group))]
        shares.append(float(known[own].mean()) if len(own) else None)
        start += len(group)
    return shares


def training_ngrams(
    artifact: Tokens, grams: NDArray[np.int64], reporter: Reporter, threads: int = 1
) -> NDArray[np.bool_]:
    """Which of these n-grams (count, n), all different, occur anywhere in the training split.

    Reads part after part, so that the memory is that of one part and of `grams`.
    """
    found = np.zeros(len(grams), bool)
    parts = artifact.split_parts(TRAIN)
    if not len(grams):
        return found
    size = grams.shape[1]
    columns = {f"q{place}": grams[:, place] for place in range(size)}
    with duckdb.connect(":memory:") as connection:
        connection.execute("SET autoinstall_known_extensions = false")
        connection.execute(f"SET threads = {int(threads)}")
        # the joined table on the right is the one that is held: n-grams asked for, not training text
        connection.execute("SET disabled_optimizers = 'join_order,build_side_probe_side'")
        asked = pa.table(columns | {"number": np.arange(len(grams))})
        connection.register("asked_arrow", asked)
        connection.execute("CREATE TABLE asked AS SELECT * FROM asked_arrow")
        reporter.start("n-grams", sum(part.tokens for part in parts), "tokens")
        for part in parts:
            path = artifact.part_file(part.index)
            try:
                query = _query(int(part.tokens // part.rows), size)
                numbers = connection.execute(query, [duckdb_name(path)]).fetchnumpy()["number"]
            except duckdb.Error as error:
                raise DamagedArtifact(
                    f"{path} is not a part of packed sequences ({reason(error)}).",
                    RESTORE,
                ) from error
            found[np.asarray(numbers, np.int64)] = True
            reporter.advance(part.tokens)
        reporter.stop()
    return found


def _query(row_tokens: int, size: int) -> str:
    """Numbers of the asked n-grams that a part holds, those across its rows' ends included."""
    following = -(-(size - 1) // max(1, row_tokens))  # rows that an n-gram can reach into
    tails = "".join(
        f" || coalesce(lead(list_slice(tokens, 1, length), {step}) OVER (ORDER BY file_row_number), [])"
        for step in range(1, following + 1)
    )
    starts = ", ".join(
        f"unnest(list_slice(tokens, {place + 1}, len(tokens) - {size - 1 - place})) AS t{place}"
        for place in range(size)
    )
    same = " AND ".join(f"t{place} = q{place}" for place in range(size))
    return f"""
        WITH rows AS (
            SELECT list_slice(
                list_slice(tokens, 1, length){tails}, 1, length + {size - 1}
            ) AS tokens
            FROM read_parquet(?, file_row_number = true, hive_partitioning = false)
        ),
        grams AS (SELECT {starts} FROM rows WHERE len(tokens) >= {size})
        SELECT DISTINCT number FROM grams JOIN asked ON {same}
    """


def _one_of_each(
    texts: Sequence[Sequence[int]],
    owners: NDArray[np.int64],
    grams: NDArray[np.int64],
    size: int,
) -> NDArray[np.int64]:
    """The tokens (count, n) of every different n-gram, in the order of their numbers."""
    tokens = np.array([token for text in texts for token in text], np.int64)
    lengths = np.array([len(text) for text in texts], np.int64)
    starts = np.cumsum(lengths) - lengths
    # the n-grams of a text stand in order, so the first of an owner begins where the text does
    first = np.searchsorted(owners, owners, "left")
    places = starts[owners] + np.arange(len(owners)) - first
    _, chosen = np.unique(grams, return_index=True)
    return tokens[places[chosen][:, None] + np.arange(size)]
