"""The node SDK: runs handlers for the jobs that are placed on a node."""
