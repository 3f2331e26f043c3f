"""Settings of the stages: one pydantic model a stage, resolved from preset, file, environment and flags."""

from cola_cli.settings.resolve import Settings, nearest, resolve, result_settings, runtime, to_toml

__all__ = ["Settings", "nearest", "resolve", "result_settings", "runtime", "to_toml"]
