"""Judges a whole run by what its producers and nodes recorded. Shared by demo, replay, chaos and simulation."""
