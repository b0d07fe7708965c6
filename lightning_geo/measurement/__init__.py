"""One sample: from observed events to mergeable sums to arrays.

- ``sample`` opens taps and owns a sample of one or several models; ``one_batch`` takes one by hand.
- ``sample_statistics`` passes a model's events to ``collectors/``, one per source of data. They add to the
  ``sums`` of each layer; ``batches`` gathers small tensors of several layers for one operation.
- ``rank_reduction`` adds up the sums of all ranks. ``assemble`` lets collectors derive metrics from them,
  for all layers of a stack at once (subspaces in ``bases``), and ``derived`` moves them to the host in one
  transfer.
- ``call_statistics``: the kernels' statistics of one attention call; ``row_sampling``: random query rows.
- ``importance`` and ``training_importance``: gradients of the loss by heads, from a backward pass of their
  own or from training's.
"""
