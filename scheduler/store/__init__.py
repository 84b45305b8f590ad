"""The only home of `redis`: the server, the scripts, and one method a script."""
