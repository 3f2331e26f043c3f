"""Models of cola for lm-evaluation-harness, which knows them as `cola`.

The harness finds this module by an entry point of the group `lm_eval.models`. Versions that do not look for
entry points (0.4.13 and before) know the name once the module is imported; `python -m
cola_cli.evaluation.harness` is their command line with it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from tqdm import tqdm

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ModuleNotFoundError as error:
    if error.name != "lm_eval" or __name__ != "__main__":
        raise
    sys.stderr.write(
        "cola: error: this is the command line of lm-evaluation-harness, which is not installed.\n"
        "      Install it: pip install 'cola-cli[lm-eval]'\n"
    )
    raise SystemExit(2) from None

from cola_cli.api import BATCH_SIZE, Baseline, Cola, load_any
from cola_cli.corpus.chats import Message, template_of
from cola_cli.errors import UsageError
from cola_cli.evaluation.judge import log_probabilities
from cola_cli.evaluation.likelihood import likelihood, masked_bound, require_bound
from cola_cli.flow.likelihood import Divergence
from cola_cli.sampling.requests import Request

NEW_TOKENS = 256  # of a task that does not say how many
POSITIONS = 2048  # of a model whose context is not known
SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty")  # what a task may ask for

Scored = tuple[list[int], list[int]]  # tokens before, and those whose probability is wanted


@register_model("cola")
class ColaLM(TemplateLM):
    """A prior, a student or a baseline as the harness asks it. Log-likelihoods are in nats:

    exact of an autoregressive model; of a masked-diffusion one a bound (`masked_bound`); of a prior the
    difference of two ELBOs, with and without the tokens that follow the context, or of two IWAE bounds where
    the divergence is exact.
    """

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        dtype: str | None = None,
        draws: int = 8,
        likelihood_steps: int = 32,
        divergence: Divergence = "hutchinson",
        greedy: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        """pretrained: an artifact, a released checkpoint, `demo`, or `hf:org/name[@revision]`.

        draws: of a bound; likelihood_steps: of the solver behind it. greedy: whether to continue every
        context, to tell if the tokens are what the model would write, as tasks such as LAMBADA ask.
        options: of generation, such as steps and guidance. Raises as `cola_cli.load` and
        `LanguageModel.options` do.
        """
        super().__init__()
        kind = None if dtype in (None, "auto") else getattr(torch, str(dtype))
        if device == "cuda:0" and not torch.cuda.is_available():
            device = None  # that is what the harness's command line says where nothing was said
        self.model = load_any(pretrained, device or "auto", kind)
        self._text = self.model.require_tokenizer()
        self._device = self.model.device
        self._bound: dict[str, Any] = {
            "draws": draws, "steps": likelihood_steps, "divergence": divergence, "seed": seed,
        }  # fmt: skip
        self._greedy, self._options = greedy, {"seed": seed, **options}
        self._size = int(str(batch_size)) if str(batch_size).isdigit() else BATCH_SIZE
        self._alone: tuple[list[int], float] = [], 0.0
        self.model.options(**self._options)  # raises here for what cannot be

    @property
    def max_length(self) -> int:
        """Tokens of a context, or of a window of a long text; one more follows."""
        return (self.model.context or POSITIONS) - 1

    @property
    def eot_token_id(self) -> int:
        """The token between documents."""
        return self._text.end_of_text_id

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Tokens of a text; of a model with a chat template, names of special tokens stand for these."""
        return (
            self._text.encode_marked(string)
            if self.model.chat_template
            else self._text.encode(string)
        )

    @property
    def tokenizer_name(self) -> str:
        """What the harness keeps prepared requests under."""
        return "cola-" + hashlib.sha256(self._text.to_bytes()).hexdigest()[:16]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The Jinja source of the model's own template. Raises UsageError where it has none."""
        if not chat_template:
            return None
        if self.model.chat_template is None:
            raise UsageError(
                f"{self.model.path} has no chat template.", "Leave out --apply_chat_template."
            )
        return self.model.chat_template

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as text, ready for an answer. Raises MalformedChat where the template refuses it."""
        template = template_of(self.chat_template(True) or "")
        messages = [Message(turn["role"], turn["content"]) for turn in chat_history]
        return template.render(messages, self._text.end_of_text, ask=add_generation_prompt)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations, each cut at the first of its stop strings."""
        alike: dict[str, list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            alike[json.dumps(request.args[1], sort_keys=True)].append(place)
        texts = [""] * len(requests)
        bar = tqdm(total=len(requests), desc="cola generates", disable=disable_tqdm)
        for places in alike.values():
            asked: dict[str, Any] = dict(
                normalize_gen_kwargs(requests[places[0]].args[1], NEW_TOKENS)
            )
            new = min(asked["max_gen_toks"], self.max_length // 2)
            own = {name: asked[name] for name in SAMPLING if asked.get(name) is not None}
            own |= {"stop": tuple(filter(None, asked["until"])), "stop_ids": (self.eot_token_id,)}
            prompts = {place: self._prompt(requests[place].args[0], new) for place in places}
            for request, found in self.model.stream_requests(
                [Request(place, ids) for place, ids in prompts.items()],
                self.model.options(new, **{**self._options, **own}),
                self._size,
            ):
                if found.finish == "running":
                    continue
                texts[request.item] = text = found.text or ""
                self.cache_hook.add_partial("generate_until", requests[request.item].args, text)
                bar.update()
        bar.close()
        return texts

    def _prompt(self, context: str, new: int) -> list[int]:
        """The end of a context, as much as leaves room for new tokens."""
        ids = self.tok_encode(context)[-(self.max_length + 1 - new) :]
        return ids or ([self.eot_token_id] if self.model.needs_prompt else [])

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """log p of whole texts; long ones in windows, each after one token of the window before."""
        owners: list[int] = []
        windows: list[Scored] = []
        for place, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1):
                owners.append(place)
                windows.append(make_disjoint_window(window))
        totals = [0.0] * len(requests)
        for place, value in zip(owners, self._scores(windows, disable_tqdm), strict=True):
            totals[place] += value[0]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        """log p(continuation | context) in nats, and if the continuation is what the model would write."""
        pairs = [self._fitting(before, after) for _, before, after in requests]
        found = self._scores(pairs, disable_tqdm)
        if self._greedy and not self._is_exact:
            written = self._continuations(pairs)
            found = [
                (value, own == after)
                for (value, _), own, (_, after) in zip(found, written, pairs, strict=True)
            ]
        for (texts, _, _), answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return found

    @property
    def _is_exact(self) -> bool:
        return isinstance(self.model, Baseline) and self.model.token_model.next_token

    def _fitting(self, before: list[int], after: list[int]) -> Scored:
        """Both, with as much of what comes before as the model can see."""
        if len(after) > self.max_length:
            raise UsageError(
                f"{len(after)} tokens are to be scored, but {self.model.path} was trained on sequences of"
                f" {self.max_length + 1}.",
                "Choose a task with shorter answers.",
            )
        return before[-(self.max_length + 1 - len(after)) :], after

    def _scores(self, pairs: Sequence[Scored], quiet: bool) -> list[tuple[float, bool]]:
        """log p of the second of each pair given the first; if it is the likeliest, where that is exact."""
        found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        with tqdm(total=len(pairs), desc="cola scores", disable=quiet) as bar:
            for place, value, likeliest in self._each_score(pairs):
                found[place] = value, likeliest
                bar.update()
        return found

    def _each_score(self, pairs: Sequence[Scored]) -> Iterator[tuple[int, float, bool]]:
        if not isinstance(self.model, Baseline):
            assert isinstance(self.model, Cola)
            require_bound(self.model, self._bound["divergence"])
            for place, pair in enumerate(pairs):
                yield place, self._latent_score(self.model, *pair), False
        elif self._is_exact:
            pieces = [([*before, *after], len(after)) for before, after in pairs]
            for place, values, likeliest in log_probabilities(
                self.model.network, pieces, self._device
            ):
                yield place, float(values.sum()), likeliest
        else:
            draws, seed = self._bound["draws"], self._bound["seed"]
            network: Any = self.model.network
            for place, pair in enumerate(pairs):
                yield place, masked_bound(network, *pair, draws, seed), False

    def _latent_score(self, model: Cola, before: list[int], after: list[int]) -> float:
        """The difference of two bounds; without context the bound itself."""
        if before == [self.prefix_token_id]:
            before = []
        if before and before != self._alone[0]:  # options of one question have one context
            self._alone = before, self._latent_bound(model, before)
        return self._latent_bound(model, before + after) - (self._alone[1] if before else 0.0)

    def _latent_bound(self, model: Cola, ids: list[int]) -> float:
        terms = likelihood(model, ids, **self._bound)
        return terms.elbo if terms.iwae is None else terms.iwae

    def _continuations(self, pairs: Sequence[Scored]) -> list[list[int]]:
        """What the model writes after each context, as many tokens as are scored."""
        own = {**self._options, "temperature": 0.0}

        def requests() -> Iterable[Request]:
            for place, (before, after) in enumerate(pairs):
                ids = (
                    []
                    if before == [self.prefix_token_id] and not self.model.needs_prompt
                    else before
                )
                yield Request(place, ids, options=self.model.options(len(after), **own))

        found: list[list[int]] = [[] for _ in pairs]
        for request, generation in self.model.stream_requests(
            requests(), self.model.options(1, **own), self._size
        ):
            found[request.item] = generation.ids
        return found


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
