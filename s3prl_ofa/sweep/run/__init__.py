"""``s3prl-ofa sweep``: the command, the launcher, and the process of each point."""
