"""A generator of models that looks for the next wrong number: right, or absent and said.

Each example is a drawn description of a small model (``description.py``, drawn by ``drawing.py``), a module made
from that description alone (``models.py``, ``attention.py``), and the truth in float64 from the queries, keys
and visible pairs that the model made (``truth.py``). ``lightning_geo.measure`` must agree with the truth to
2e-4, or leave a number out and say why (``checking.py``), where the description allows that at all. The model's
own outputs must be the truth's probabilities times its values: a fault of the harness shows as such.

``pytest tests/harness`` draws the same examples every time. To search for hours, with new ones each time:
``pytest tests/harness/test_harness.py --hypothesis-profile=deep`` (or ``HYPOTHESIS_PROFILE=deep``). A failure
prints the description: ``harness.checking.check(Description(...))`` repeats it. ``python -m harness 500``, run in
``tests``, draws 500 of each kind, goes on after failures, and prints which values of which dimensions fail.
"""
