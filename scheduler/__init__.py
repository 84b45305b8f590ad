"""A session-affine, capacity-exact job scheduler on Redis or Valkey streams."""

__version__ = "0.1.0"
