"""One sample: from observed events to mergeable sums to arrays."""
