"""The runtime domain: jobs become reservations, from a snapshot that it only reads."""
