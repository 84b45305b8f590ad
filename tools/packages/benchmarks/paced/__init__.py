"""From a submission at a time that was set before until the job can be read in an inbox."""
