"""Stage `import`: a released checkpoint folder to a prior artifact, tensors byte for byte."""

from __future__ import annotations

from pathlib import Path

from cola_cli.artifacts import Identity, Output
from cola_cli.artifacts.artifact import is_artifact
from cola_cli.artifacts.files import sha256_file
from cola_cli.artifacts.kinds import TOKENIZER
from cola_cli.errors import InputError
from cola_cli.stages.run import Outcome, Run, up_to_date
from cola_cli.weights.folder import open_model_folder

STAGE = "import"


def import_checkpoint(folder: Path, output_path: Path, run: Run | None = None) -> Outcome:
    """Make a prior artifact of the checkpoint at `folder`, in its stored precision.

    Raises InputError naming a missing, surplus or misshapen tensor or a config that disagrees,
    DamagedArtifact for a file that is not whole.
    """
    from cola_cli.weights.released import find_root, tokenizer_file

    run = run or Run()
    if is_artifact(folder):
        raise InputError(f"{folder} is an artifact already.", "Name a released checkpoint folder.")
    root = find_root(folder)
    run.reporter.note(f"reading {root}")
    inputs = {"checkpoint": open_model_folder(root).fingerprint()}
    found = tokenizer_file(root)
    if found is not None:
        inputs["tokenizer"] = sha256_file(found)
    else:
        run.reporter.warn(
            f"no tokenizer.json beside or in {root}: the artifact will not sample text."
        )
    output = Output.open(
        output_path,
        "prior",
        Identity(stage=STAGE, settings={}, inputs=inputs),
        {},
        run.overwrite,
        (folder, *filter(None, (found,))),
    )
    if output.up_to_date:
        return up_to_date(output)

    from cola_cli.weights.artifact import write_network
    from cola_cli.weights.released import read_checkpoint

    checkpoint = read_checkpoint(folder)
    with output.writing() as writer:
        write_network(writer, "vae", checkpoint.vae.state_dict(), checkpoint.vae.config)
        write_network(writer, "prior", checkpoint.prior.state_dict(), checkpoint.prior.config)
        if checkpoint.tokenizer is not None:
            writer.write(TOKENIZER, checkpoint.tokenizer.read_bytes())
        configs = (checkpoint.vae.config, checkpoint.prior.config)
        statistics = {"parameters": sum(config.parameter_count() for config in configs)}
        writer.finish(statistics)
    return Outcome(output_path, True, statistics)
