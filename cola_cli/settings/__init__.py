"""Settings of the stages: one pydantic model a stage, resolved from preset, file, environment and flags."""

from cola_cli.settings.fields import Settings, result_settings, runtime
from cola_cli.settings.resolve import nearest, resolve, to_toml
from cola_cli.settings.tables import TABLES

__all__ = ["TABLES", "Settings", "nearest", "resolve", "result_settings", "runtime", "to_toml"]
