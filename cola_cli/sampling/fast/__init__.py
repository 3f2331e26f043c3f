"""Faster ways to denoise a block, each with the plain denoiser as its oracle."""
