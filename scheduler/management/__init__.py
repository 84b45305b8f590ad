"""The management domain: heartbeats become a snapshot. The only writer of snapshot, version and capacities."""
