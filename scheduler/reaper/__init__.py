"""The reaper, one duty a file: ends lapsed leases, brings delayed jobs back, repairs what was deleted."""
