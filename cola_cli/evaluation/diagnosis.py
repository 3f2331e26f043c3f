"""The diagnosis of a Text VAE as a record, as `cola diagnose vae --json` prints it. No torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

DIAGNOSES = "diagnos*.json"


class Diagnosis(BaseModel):
    """Metrics over some text.

    accuracy: tokens reconstructed from the posterior mean; accuracy_at: the same from
    (1 - t) mean + t noise, by t; log_snr = log(E[mean^2] / E[variance]); kl_per_channel: KL to N(0, I) in
    nats; active_channels: the number of channels whose mean varies over the data by more than 0.01.
    flow_of_noise: the flow loss of a prior that knows every posterior mean, which is posterior noise alone;
    flow_of_linear: that of the best linear prediction from z_t; both under the prior's default law of t.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    tokens: int
    accuracy: float
    accuracy_at: dict[float, float]
    log_snr: float
    kl_per_channel: list[float]
    active_channels: int
    flow_of_noise: float | None = None  # of a diagnosis of an earlier version
    flow_of_linear: float | None = None
