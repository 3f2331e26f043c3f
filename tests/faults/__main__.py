"""`python -m tests.faults`: break every stage everywhere and write docs/reliability.md."""

from __future__ import annotations

import argparse
import json
import math
import os
import secrets
import sys
import tempfile
import time
from pathlib import Path

from tests.reliability import FAULTS, PAGE, write_section

MEMORY = Path("/dev/shm")


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign; 1 when something was lost or not said as promised."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--sample", type=int, metavar="N", help="only N faults a stage, by chance")
    parser.add_argument("--seed", type=int, help="of the sample; printed if not given")
    parser.add_argument("--stages", nargs="+", help="only these stages")
    parser.add_argument("--kinds", nargs="+", help="only these kinds of fault")
    parser.add_argument(
        "--strace", nargs="*", help="stages to compare with strace (all faults: all)"
    )
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="begin no fault after so long (all: no end)"
    )
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--page", type=Path, help=f"where to write the page (all faults: {PAGE.name})"
    )
    parser.add_argument("--json", type=Path, help="where to write points and results for machines")
    parser.add_argument(
        "--again",
        type=Path,
        metavar="JSON",
        help="only what failed in an earlier run, or was not tried there",
    )
    asked = parser.parse_args(arguments)

    from tests.faults import processes

    processes.prepare()
    from tests.faults.campaign import Campaign, Result, seconds_since
    from tests.faults.cases import Verdict
    from tests.faults.damaging import files_of
    from tests.faults.report import page
    from tests.faults.stages import FOLDER, ORDER

    earlier = json.loads(asked.again.read_text()) if asked.again else None
    chosen = asked.sample is not None or asked.stages or asked.kinds
    seed = (
        earlier["seed"]
        if earlier
        else asked.seed
        if asked.seed is not None
        else (secrets.randbelow(10**6) if chosen else 0)
    )
    print(f"seed {seed}", flush=True)
    begin = time.monotonic()
    where = MEMORY if os.access(MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="cola-faults-", dir=where) as folder:
        campaign = Campaign(Path(folder).resolve(), seed)
        campaign.prepare(asked.stages or ORDER)
        if asked.kinds:
            campaign.cases = [case for case in campaign.cases if case.kind in asked.kinds]
        if asked.sample is not None:
            campaign.draw(asked.sample)
        kept: list[Result] = []
        if earlier:
            known = [Result(*row[:3], Verdict(**row[3])) for row in earlier["results"]]
            kept = [r for r in known if not (r.verdict.lost or r.verdict.unclear)]
            good = {(r.stage, r.kind, r.name) for r in kept}
            campaign.cases = [c for c in campaign.cases if (c.stage, c.kind, c.name) not in good]
        campaign.compare_with_strace(
            (() if chosen else ORDER) if asked.strace is None else asked.strace
        )
        for text in campaign.disagreements:
            print(f"strace counts otherwise: {text}", flush=True)
        for kind, reason in campaign.skipped.items():
            print(f"skipped: {kind}: {reason}", flush=True)
        total = len(campaign.cases)

        def tell(done: int, result: object) -> None:
            verdict = result.verdict  # type: ignore[attr-defined]
            for text in [*verdict.lost, *(f"(not said) {text}" for text in verdict.unclear)]:
                print(f"{result.stage}: {result.kind}: {result.name}: {text}", flush=True)  # type: ignore[attr-defined]
            if done % 100 == 0 or done == total:
                print(f"{done:,} of {total:,} faults, {seconds_since(begin)}", flush=True)

        results = kept + campaign.run(asked.jobs, tell, 60 * asked.minutes)
        possible, total = total + len(kept), len(results)
        files = {stage: files_of(campaign.home / FOLDER[stage]) for stage in ORDER}
        target = asked.page or (None if chosen else PAGE)
        if target:
            duration = seconds_since(begin)
            if kept:
                duration += f" for {total - len(kept):,} of them, the others in an earlier run"
            write_section(FAULTS, page(campaign, results, possible, duration), target)
    lost, unclear = ([r for r in results if getattr(r.verdict, n)] for n in ("lost", "unclear"))
    if asked.json:
        document = {
            "seed": seed,
            "points": {FOLDER[s]: [str(p) for p in ps] for s, ps in campaign.points.items()},
            "files": {FOLDER[stage]: names for stage, names in files.items()},
            "results": [[r.stage, r.kind, r.name, vars(r.verdict)] for r in results],
            "lost": [[r.stage, r.kind, r.name, *r.verdict.lost] for r in lost],
            "unclear": [[r.stage, r.kind, r.name, *r.verdict.unclear] for r in unclear],
            "skipped": campaign.skipped,
            "strace": {"agreed": campaign.agreed, "otherwise": campaign.disagreements},
        }
        asked.json.write_text(json.dumps(document, indent=1))
    print(
        f"{total:,} faults: {len(lost)} lost or silently wrong, {len(unclear)} not said as promised"
    )
    return bool(lost or unclear or campaign.disagreements)


if __name__ == "__main__":
    sys.exit(main())
