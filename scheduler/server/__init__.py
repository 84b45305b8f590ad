"""Servers: finds the one to talk to, or starts one as a child of this process."""
