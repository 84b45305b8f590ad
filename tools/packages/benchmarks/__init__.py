"""Benchmarks: how fast a part of the scheduler is, beside the least that its work could cost."""
