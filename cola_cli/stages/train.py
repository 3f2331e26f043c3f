"""Stage `train`: an artifact to a trained model of any family, going on where an earlier run stopped."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cola_cli.artifacts import Artifact, Identity, Output, Writer
from cola_cli.artifacts.artifact import METRICS
from cola_cli.artifacts.checkpoint_folders import CHECKPOINTS, committed, files_of, remove_all
from cola_cli.artifacts.checks import RESTORE
from cola_cli.artifacts.kinds import PACKED, TOKENIZER, Latents, Packed
from cola_cli.artifacts.places import require_file_place
from cola_cli.artifacts.reading import reason
from cola_cli.cost.training import Cost, Place, training_plan
from cola_cli.errors import DamagedArtifact, Diverged, InputError, UsageError
from cola_cli.families import Data, Family
from cola_cli.machine.threads import (
    choose_threads,
    describe_environment,
    memory,
    peak_memory,
    prepare_torch,
)
from cola_cli.reporting import Silent
from cola_cli.settings import result_settings
from cola_cli.settings.training import Lora, Train
from cola_cli.stages.extend import Beginning, beginning
from cola_cli.stages.run import Outcome, Run, up_to_date
from cola_cli.stages.start import require_latent_space
from cola_cli.training.loggers import Loggers, find_loggers
from cola_cli.training.metrics import Watch, unwatched
from cola_cli.training.schedule import kept_step
from cola_cli.training.shares import Shares
from cola_cli.weights.configs import ADAPTERS, network_files, vae_config

if TYPE_CHECKING:
    from torch import Tensor

    from cola_cli.machine.processes import World
    from cola_cli.stages.start import Start


Source = Packed[Any]
NOWHERE = Place("cpu", False, 0.0)  # where only the model itself counts
ROW_BYTES = 700  # of a row of a step: its generator
TOKEN_BYTES = 8
TRACE = '"schemaVersion"'  # how the profiler's files begin


def data_of(source: Source) -> Data:
    """What the shape and the cost of a model need to know of the artifact that it is trained on.

    Raises DamagedArtifact for latents that are not of the shape of their Text VAE's.
    """
    statistics = source.statistics
    apart = statistics.separate or 0
    if not isinstance(source, Latents):
        return Data(statistics.seq_len, statistics.vocab_size, None, apart)
    data = Data(statistics.seq_len, statistics.vocab_size, vae := vae_config(source), apart)
    if (found := statistics.latent_shape) != (data.positions, vae.latent_dim):
        raise DamagedArtifact(
            f"{source.path}: latent_shape {found} is not that of its Text VAE,"
            f" {(data.positions, vae.latent_dim)}.",
            RESTORE,
        )
    return data


def model_config(family: Family, data: Data, settings: Any) -> Any:
    """The network that these settings ask for on these data. Raises UsageError for impossible sizes."""
    try:
        return family.config(data, settings)
    except ValueError as error:
        raise UsageError(
            f"{family.table}.model: {reason(error)}.", "Choose other sizes."
        ) from error


def training_cost(family: Family, source_path: Path, settings: Any) -> Cost:
    """What a training step on the artifact at `source_path` takes. Raises UsageError for impossible sizes."""
    data = data_of(PACKED[family.reads].open(source_path))
    return family.cost(model_config(family, data, settings), data, settings)


def plan_training(
    family: Family,
    source_path: Path,
    settings: Any,
    device: str = "auto",
    threads: int | None = None,
) -> dict[str, Any]:
    """What training would take: parameters, memory, operations, steps. Touches nothing."""
    # what training imports is in use before it begins; the first optimiser imports the compiler
    import torch._dynamo  # noqa: F401

    import cola_cli.training.loop  # noqa: F401
    from cola_cli.machine.processes import pick_device

    train = settings.train
    length = PACKED[family.reads].open(source_path).statistics.seq_len
    chosen = pick_device(device)
    shares = Shares.chosen(train, choose_threads(threads).count, chosen.type, 1, {})
    if at_once := shares.at_once(train, length):
        held = {"micro_batch": at_once * shares.rows(train, 1, length)}
        settings = settings.model_copy(update={"train": train.model_copy(update=held)})
    cost = training_cost(family, source_path, settings)
    bf16 = train.precision == "bf16" or (train.precision == "auto" and chosen.type == "cuda")
    here = Place(str(chosen), bf16, 0.0 if chosen.type == "cuda" else peak_memory(), at_once)
    return training_plan(cost, train, settings.optim, here, length)


def train(
    family: Family,
    source_path: Path,
    output_path: Path,
    settings: Any,
    run: Run | None = None,
    start: Start | None = None,
    extend: bool = False,
) -> Outcome:
    """Train a model on the sequences of an artifact of kind `family.reads`; commit an artifact of its own.

    start: the weights to begin from, with a new optimiser; None: random ones. extend: a shorter run that lies
    at `output_path` goes on from its state, and what comes of it takes its place.

    With the same train.data_seed, models of all families see the same sequences in every step.
    """
    run = run or Run()
    source = PACKED[family.reads].open(source_path)
    data = data_of(source)
    config = model_config(family, data, settings)
    if adapters_of(settings) and start is None:
        raise UsageError(
            f"{family.table}.lora.rank: adapters need weights to be adapted.",
            "Give these with --from, or set lora.rank=0.",
        )
    output, begin = _opened(family, source, output_path, settings, run, start, extend)
    if output.up_to_date:
        return up_to_date(output)
    if start and isinstance(source, Latents):
        start.require_latent_space(source)

    # what is wrong is told before an hour of work
    makers = find_loggers(run.log)
    if run.profile is not None:
        _require_trace_place(run.profile, source_path, output_path)

    import torch

    from cola_cli.machine.processes import joined

    # Where batches are not cut into shares, bytes depend on the number of threads: an interrupted run goes on
    # with the number that it began with.
    before = output.recorded_environment or begin.environment
    threads = prepare_torch(
        run.threads, None if before.get("share_tokens") else before.get("threads")
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    run.reporter.note(str(threads))
    if begin.remark:
        run.reporter.note(begin.remark)
    cost = family.cost(config, data, settings)
    files = (METRICS, *network_files(*family.trained(settings)))
    if adapters_of(settings):
        files = (*files, f"{family.network}/{ADAPTERS}")
    with joined(run.device, settings.train.timeout) as world, ExitStack() as stack:
        plan = training_plan(cost, settings.train, settings.optim, NOWHERE, data.length)
        _require_memory(plan, settings.train, world, data.length)
        shares = Shares.chosen(settings.train, threads.count, world.device.type, world.size, before)
        environment = describe_environment(threads) | {
            "device": str(world.device),
            "share_tokens": shares.tokens,
        }
        writer = stack.enter_context(output.writing(environment)) if world.leads else None
        world.wait()
        whole = writer is not None and writer.kept.keys() >= set(files)
        if not world.largest(int(whole))[0]:
            watch = unwatched
            if writer is not None:
                writer.discard(*writer.kept)
                loggers = Loggers(makers, output_path, run.reporter)
                stack.callback(loggers.close)
                watch = loggers.log
            _train(
                family,
                config,
                source,
                output.place,
                settings,
                cost,
                run,
                watch,
                world,
                shares,
                writer,
                start,
                begin.checkpoint,
            )
        world.wait()
        if writer is None:
            return Outcome(output_path, True)
        if not whole:
            # a run that is killed from here on need not train again
            writer.keep(*files, *_state(output.place, settings))
        for name in (TOKENIZER, *network_files("vae")):
            if source.has(name) and name not in files:
                writer.write(name, source.file(name).read_bytes())
        remove_all(output.place / CHECKPOINTS, writer.kept)
        writer.discard(*(name for name in writer.kept if not (output.place / name).exists()))
        statistics = _statistics(family, source, cost) | _metrics(output.place)
        writer.finish(statistics)
        return Outcome(output_path, True, statistics)


def _opened(
    family: Family,
    source: Source,
    path: Path,
    settings: Any,
    run: Run,
    start: Start | None,
    extend: bool,
) -> tuple[Output, Beginning]:
    """The output at `path` of a training, and where it begins; nothing is written yet."""
    chosen = result_settings(settings)
    identity = Identity(
        stage=family.stage,
        settings={name: value for name, value in chosen.items() if name not in family.ignored},
        inputs={
            family.reads: source.manifest.fingerprint,
            **family.inputs,
            **({"start": start.fingerprint} if start else {}),
        },
    )
    ways = "" if family.base else " --from begins another run with its weights."
    begin = Beginning(identity)
    if not run.overwrite:
        begin = beginning(path, identity, settings.optim, extend, ways)
    output = Output.open(
        path,
        family.kind,
        begin.identity,
        settings.model_dump(),
        run.overwrite or begin.checkpoint is not None,
        (source.path, *([start.path] if start else [])),
        ways,
    )
    return output, begin


def _require_trace_place(trace: Path, source: Path, output: Path) -> None:
    """Raise UsageError or OutputConflict unless a trace may be written there."""
    require_file_place(trace, "a trace", TRACE, (source,))
    if output.resolve() in trace.resolve().parents:
        raise UsageError(f"{trace} lies in the output {output}.", "Write the trace beside it.")


def _require_memory(plan: dict[str, Any], train: Train, world: World, length: int) -> None:
    """Raise UsageError for what cannot fit: the system would kill this process, or others."""
    held = memory()
    if held is None:
        return
    rows = train.batch_size / world.size
    if (batch := rows * (ROW_BYTES + TOKEN_BYTES * length)) > held:
        raise UsageError(
            f"{rows:,.0f} sequences a step take {batch / 1e9:,.1f} GB before anything is computed; this"
            f" machine has {held / 1e9:.1f} GB.",
            "Lower train.batch_size.",
        )
    needed = plan["state_bytes"]
    if world.device.type == "cpu" and needed > held:
        raise UsageError(
            f"training {plan['parameters']:,} parameters takes {needed / 1e9:.1f} GB for weights, gradients"
            f" and moments alone; this machine has {held / 1e9:.1f} GB.",
            "Choose a smaller model, such as --preset tiny (presets: tiny, small, base).",
        )


def require_maker(latents: Latents, vae_path: Path) -> None:
    """Raise InputError unless the named VAE is the one that made the latents."""
    vae = Artifact.open(vae_path, "vae")
    if latents.manifest.identity.inputs.get("vae") != vae.manifest.fingerprint:
        raise InputError(
            f"{latents.path} was encoded by another VAE than {vae_path}.",
            "Name the VAE that `cola encode` used, or encode again with this one.",
        )


def derived_family(family: Family, base_path: Path, source_path: Path) -> Family:
    """The family of the models made from the artifact at `base_path`, see `Base`.

    Raises InputError when it is of another kind, or has another VAE than the latents that it is trained on.
    """
    assert family.base is not None
    base = Artifact.open(base_path, family.base.kind)
    source = PACKED[family.reads].open(source_path)
    if isinstance(source, Latents):
        require_latent_space(base_path, base, source)
    return family.base.family(base)


def _train(
    family: Family,
    config: Any,
    source: Source,
    path: Path,
    settings: Any,
    cost: Cost,
    run: Run,
    watch: Watch,
    world: World,
    shares: Shares,
    writer: Writer | None,
    start: Start | None,
    base: tuple[int, Path] | None,
) -> None:
    import torch

    from cola_cli.corpus.sequences import Sequences
    from cola_cli.training import checkpoints
    from cola_cli.training.adapters import adapt, merged
    from cola_cli.training.loop import Training
    from cola_cli.weights.artifact import write_network, write_weights

    torch.manual_seed(settings.train.seed)
    networks = family.build(config, source, settings)
    if start is not None:
        start.load_into(networks.saved[family.network][0])
    if lora := adapters_of(settings):
        adapt(networks.saved[family.network][0], lora)
    training = Training(
        networks.objective,
        settings.train,
        settings.optim,
        Sequences(source, "train"),
        Sequences(source, "validation"),
        path,
        world,
        run.reporter if world.leads else Silent(),
        cost.flops,
        shares,
        base,
        watch,
        run.profile,
    )
    training.run()
    training.average.replace()
    networks.finish()
    for name, (network, shape) in networks.saved.items():
        state = checkpoints.whole(network.state_dict(), world.leads)
        if writer is not None:
            if lora and name == family.network:
                state, adapters = merged(state, lora)
                write_weights(writer, f"{name}/{ADAPTERS}", adapters)
            _require_finite(name, state)
            write_network(writer, name, state, shape)


def adapters_of(settings: Any) -> Lora | None:
    """The adapters that alone are to be trained, if any."""
    lora: Lora | None = getattr(settings, "lora", None)
    return lora if lora and lora.rank else None


def _state(place: Path, settings: Any) -> list[str]:
    """The files of the checkpoint that the finished artifact keeps, see `schedule.kept_step`."""
    if not settings.train.keep_state:
        return []
    step = kept_step(settings.optim, settings.train.steps)
    saved = committed(place / CHECKPOINTS)
    _, path = next((one for one in saved if one[0] == step), saved[-1])
    return files_of(path)


def _require_finite(network: str, state: dict[str, Tensor]) -> None:
    """Raise Diverged where a weight is not a finite number."""
    for name, weights in state.items():
        if not weights.isfinite().all():
            raise Diverged(
                f"the trained weights {name} of {network} are not all finite numbers.",
                "Lower optim.lr, and run again with --overwrite.",
            )


def _statistics(family: Family, source: Source, cost: Cost) -> dict[str, Any]:
    """Sizes of the model, and what it repeats of the artifact that it was trained on."""
    sizes = {"parameters": cost.parameters}
    if family.token_model is not None:
        sizes["core_parameters"] = cost.core_parameters
    found = source.statistics.model_dump(mode="json")
    return sizes | {name: found[name] for name in family.kept if found[name] is not None}


def _metrics(path: Path) -> dict[str, Any]:
    """The newest value of every metric but times."""
    from cola_cli.training.metrics import TIMES, Metrics

    metrics = Metrics(path / METRICS)
    metrics.read()
    names = sorted({name for row in metrics.rows for name in row} - {*TIMES, "step"})
    return {"steps": metrics.rows[-1]["step"]} | {name: metrics.last(name) for name in names}
