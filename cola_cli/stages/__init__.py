"""The stages: settings and inputs to an artifact. torch is imported inside the functions that compute."""
