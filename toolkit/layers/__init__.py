"""Layers for users' own networks: as published, with an inference form for each target."""
