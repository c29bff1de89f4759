"""Does it help? Metrics, collection of per-case rows, comparison of arms, report."""
