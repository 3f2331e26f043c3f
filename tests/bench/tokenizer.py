"""CPU seconds of tokenizing real text: the library's two calls for many texts, and words that are remembered.

    python tests/bench/tokenizer.py FILE... [--vocab-size 8192] [--rounds 3] [--json]

All on one thread; the ways take turns. `ratio` is that of the CPU seconds of `encode_batch` over those of a
way: the median, and in brackets the least, of all rounds. Ids that differ from its end the measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).parents[2]))

from tokenizers import Tokenizer

from cola_cli.corpus.tokenizer import TextTokenizer, train_tokenizer

TOGETHER = 500  # texts


def batches(tokenizer: TextTokenizer, call: str, texts: list[str]) -> list[list[int]]:
    """Ids by a call of the library."""
    encode = getattr(tokenizer._tokenizer, call)
    cut = (texts[n : n + TOGETHER] for n in range(0, len(texts), TOGETHER))
    return [one.ids for some in cut for one in encode(some, add_special_tokens=False)]


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    texts = [part for file in asked.files for part in file.read_text().split("\n\n")]
    data = train_tokenizer(texts, asked.vocab_size).to_bytes().decode()
    seconds: dict[str, list[float]] = {"encode_batch": [], "encode_batch_fast": [], "cola": []}
    expected = None
    for _ in range(asked.rounds):
        for way, taken in seconds.items():
            tokenizer = TextTokenizer(Tokenizer.from_str(data))  # with nothing remembered
            begin = time.process_time()
            if way == "cola":
                found = [ids.tolist() for ids in tokenizer.encode_documents(texts)]
            else:
                found = batches(tokenizer, way, texts)
            taken.append(time.process_time() - begin)
            expected = expected or found
            if found != expected:
                raise SystemExit(f"{way} gives other ids")
    base = seconds["encode_batch"]
    rows = {}
    for way, taken in seconds.items():
        ratios = [a / b for a, b in zip(base, taken, strict=True)]
        rows[way] = {
            "seconds": round(statistics.median(taken), 3),
            "ratio": round(statistics.median(ratios), 2),
            "least": round(min(ratios), 2),
        }
    size = sum(len(text.encode()) for text in texts)
    if asked.json:
        print(json.dumps({"bytes": size, "vocab_size": asked.vocab_size, "ways": rows}))
        return
    print(f"{size:,} bytes of text")
    for way, row in rows.items():
        print(f"{way}: {row['seconds']} s, ratio {row['ratio']} ({row['least']})")


if __name__ == "__main__":
    main()
