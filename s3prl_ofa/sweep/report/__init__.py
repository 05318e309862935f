"""``s3prl-ofa report``: the rows of a sweep, aggregated into tables, plots and a page."""
