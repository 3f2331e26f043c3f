"""Stage `import`: a released checkpoint folder to a prior artifact, tensors byte for byte."""

from __future__ import annotations

from pathlib import Path

from cola_cli.artifacts import Identity, Output
from cola_cli.artifacts.files import sha256_file
from cola_cli.errors import InputError
from cola_cli.reporting import Reporter
from cola_cli.stages.outcome import Outcome, up_to_date
from cola_cli.stages.sample import model_fingerprint

STAGE = "import"


def import_checkpoint(
    folder: Path, output_path: Path, reporter: Reporter, overwrite: bool = False
) -> Outcome:
    """Make a prior artifact of the checkpoint at `folder`, in its stored precision.

    Raises InputError naming a missing, surplus or misshapen tensor or a config that disagrees,
    DamagedArtifact for a file that is not whole.
    """
    from cola_cli.weights.released import find_root, tokenizer_file

    root = find_root(folder)
    if (folder / "manifest.json").exists():
        raise InputError(f"{folder} is an artifact already.", "Name a released checkpoint folder.")
    reporter.note(f"reading {root}")
    inputs = {"checkpoint": model_fingerprint(root)}
    found = tokenizer_file(root)
    if found is not None:
        inputs["tokenizer"] = sha256_file(found)
    output = Output.open(
        output_path, "prior", Identity(stage=STAGE, settings={}, inputs=inputs), {}, overwrite
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
            writer.write("tokenizer.json", checkpoint.tokenizer.read_bytes())
        statistics = {
            "parameters": checkpoint.vae.config.parameter_count()
            + checkpoint.prior.config.parameter_count()
        }
        writer.finish(statistics)
    return Outcome(output_path, True, statistics)
