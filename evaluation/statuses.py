"""What became of a case: the words of `status` in metrics.json."""

SCORED, MISSING, FAILED, REFUSED = "scored", "missing", "failed", "refused"
STATUSES = (SCORED, MISSING, FAILED, REFUSED)
