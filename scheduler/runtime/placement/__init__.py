"""Which nodes a job may go to, in which order, and what `reserve` is asked for it."""
