"""The demo: a recorded market replayed through the whole pipeline, and an independent check of what came out of it."""
