"""Stage `import`: the weights of a checkpoint folder or of a trained prior as an artifact of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cola_cli.artifacts import Identity, Output
from cola_cli.artifacts.artifact import is_artifact
from cola_cli.artifacts.files import sha256_file
from cola_cli.artifacts.kinds import TOKENIZER
from cola_cli.stages.run import Outcome, Run, up_to_date
from cola_cli.weights.configs import Precision
from cola_cli.weights.folder import open_model_folder

STAGE = "import"


def import_checkpoint(
    source: Path, output_path: Path, dtype: Precision = "stored", run: Run | None = None
) -> Outcome:
    """Make a prior artifact of the released checkpoint, or of the weights of the prior artifact, at `source`.

    dtype: precision of the written weights; "stored" leaves them byte for byte. Raises InputError naming a
    missing, surplus or misshapen tensor or a config that disagrees, DamagedArtifact for a file that is not
    whole.
    """
    from cola_cli.weights.released import find_root

    run = run or Run()
    root = source if is_artifact(source) else find_root(source)
    model = open_model_folder(root)
    model.configs()  # a model of another kind is refused here
    tokenizer = model.tokenizer_file()
    run.reporter.note(f"reading {root}")
    if tokenizer is None:
        run.reporter.warn(f"{root} has no tokenizer.json: the artifact will not sample text.")
    inputs = {"checkpoint": model.fingerprint()}
    if tokenizer is not None:
        inputs["tokenizer"] = sha256_file(tokenizer)
    settings = {} if dtype == "stored" else {"dtype": dtype}
    stored = {"sampling": model.sampling} if model.sampling else {}
    output = Output.open(
        output_path,
        "prior",
        Identity(stage=STAGE, settings=settings, inputs=inputs),
        settings | stored,
        run.overwrite,
        (source, *filter(None, (tokenizer,))),
    )
    if output.up_to_date:
        return up_to_date(output)

    from cola_cli.weights.artifact import round_weights, write_network

    vae, prior = model.load()
    round_weights(dtype, vae, prior)
    statistics: dict[str, Any] = {
        "parameters": sum(network.config.parameter_count() for network in (vae, prior))
    }
    if model.context is not None:
        statistics["seq_len"] = model.context
    if model.chat_template is not None:
        statistics["chat_template"] = model.chat_template
    with output.writing() as writer:
        write_network(writer, "vae", vae.state_dict(), vae.config)
        write_network(writer, "prior", prior.state_dict(), prior.config)
        if tokenizer is not None:
            writer.write(TOKENIZER, tokenizer.read_bytes())
        writer.finish(statistics)
    return Outcome(output_path, True, statistics)
