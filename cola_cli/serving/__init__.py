"""A server in front of the samplers: one engine thread, OpenAI's interface over HTTP, and a page."""
