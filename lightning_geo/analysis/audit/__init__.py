"""Runs checked against a policy of limits, and the ledger of these checks. numpy only."""
