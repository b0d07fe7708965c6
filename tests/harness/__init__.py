"""A generator of models that looks for the next wrong number: right, or absent and said.

Each example is a drawn description of a small model (``description.py``, drawn by ``strategies.py``), a
module made from that description alone (``models.py``, ``attention.py``), and the truth in float64 from the
queries, keys and visible pairs that the model made (``truth.py``). ``lightning_geo.measure`` must agree with
the truth to 2e-4, or leave a number out and say why (``checking.py``), where the description allows that at
all. The truth's probabilities times the values must be the model's own outputs: a fault of the harness shows
as such.

``pytest tests/harness`` draws the same examples every time. To search for hours, with new ones each time:
``pytest tests/harness/test_harness.py --hypothesis-profile=deep`` (or ``HYPOTHESIS_PROFILE=deep``). A failure
prints the description: ``harness.checking.check(Description(...))`` repeats it. In ``tests``,
``python -m harness 500`` draws 500 of each kind, goes on after failures, and prints what they have in common.
"""
