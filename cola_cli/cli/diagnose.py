"""cola diagnose: what a trained network's latents are like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cola_cli.cli.options import MODEL, Invocation, command, output_option

BAR = 40  # characters


@command("threads")
def vae(
    run: Invocation,
    model: Annotated[Path, MODEL, typer.Argument(help="A vae, latents or prior artifact.")],
    tokens: Annotated[Path, typer.Option("--tokens", help="Tokens to look at.")],
    split: Annotated[str, typer.Option("--split", help="validation or train.")] = "validation",
    sequences: Annotated[int, typer.Option("--sequences", min=1, help="At most.")] = 256,
    plot: Annotated[
        Path | None,
        output_option("Write accuracy against noise as SVG.", "--plot"),
    ] = None,
) -> None:
    """Reconstruction, logSNR, active channels, KL per channel, and accuracy against latent noise.

    Example: cola diagnose vae runs/demo/vae --tokens runs/demo/tokens --plot noise.svg
    """
    from cola_cli.artifacts.files import write_atomic
    from cola_cli.artifacts.places import require_file_place
    from cola_cli.report.drawing import MARK, drawing
    from cola_cli.report.latents import robustness_chart
    from cola_cli.stages.diagnose import diagnose_vae

    if plot is not None:
        require_file_place(plot, "a chart", MARK, (model, tokens))
    found = diagnose_vae(model, tokens, split, sequences, run.threads)
    if plot is not None:
        write_atomic(plot, drawing([robustness_chart({model.name: found})]).encode())
    metrics: list[list[object]] = [
        ["tokens", found.tokens],
        ["reconstructed from the posterior mean", found.accuracy],
        ["logSNR", found.log_snr],
        ["active channels", f"{found.active_channels} of {len(found.kl_per_channel)}"],
        ["KL per channel, nats", " ".join(f"{kl:.2f}" for kl in found.kl_per_channel)],
    ]
    if found.flow_of_noise is not None and found.flow_of_linear is not None:
        share = found.flow_of_noise / found.flow_of_linear
        metrics += [
            ["flow loss of posterior noise", f"{found.flow_of_noise:.4f}"],
            ["its share of the best linear predictor's", f"{share:.1%}"],
        ]
    bars = [[t, accuracy, "█" * round(BAR * accuracy)] for t, accuracy in found.accuracy_at.items()]
    run.show(
        found.model_dump(mode="json"),
        (str(model), ["metric", "value"], metrics),
        ("under latent noise", ["t", "reconstructed", ""], bars),
    )
