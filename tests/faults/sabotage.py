"""That the harness can fail: promises broken on purpose, in children of one prepared process."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path


def main(sabotage: dict[str, str], stage: str = "sample") -> None:
    """For each kind of fault, whether it finds what the statements given for it break; JSON on stdout."""
    from tests.faults import processes

    processes.prepare()
    from tests.faults.campaign import Campaign

    found = {}
    with tempfile.TemporaryDirectory(prefix="cola-sabotage-") as folder:
        campaign = Campaign(Path(folder).resolve(), seed=0)
        campaign.prepare([])
        for kind, statements in sabotage.items():
            reading, writing = os.pipe()
            if not (child := os.fork()):
                os.write(writing, b"1" if _finds(campaign, stage, kind, statements) else b"0")
                os._exit(0)
            os.close(writing)
            with os.fdopen(reading, "rb") as stream:
                found[kind] = stream.read() == b"1"
            os.waitpid(child, 0)
    print(json.dumps(found))


def _finds(campaign: object, stage: str, kind: str, statements: str) -> bool:
    from tests.faults.campaign import Campaign
    from tests.faults.stages import fresh

    assert isinstance(campaign, Campaign)
    exec(statements, {})
    campaign.again(stage)
    cases = [case for case in campaign.cases if case.kind == kind]
    assert cases
    return any(case.check(fresh(campaign.home / "case")).lost for case in cases)
