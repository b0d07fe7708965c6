"""The family ``stream``: how the residual stream grows."""

from __future__ import annotations

from lightning_geo.metrics.families.entry import LAYER, entry

__all__ = ["STREAM"]

STREAM = [
    entry(
        "hidden_norm", "stream", LAYER, "1", "mean ‖x‖ of the layer's output",
        "Xiong et al. 2020 (pre-norm growth)",
        title="Length of hidden states",
        question="How large is what a layer hands on?",
        higher="the stream is larger; where it grows through depth, later layers weigh less in the sum.",
        lower="the stream is smaller.",
        usual="5.4 to 13 in BERT, 1.2 to 2.7 in an untrained decoder",
        worry="A jump, or growth that goes on over training: activations may overflow in low precision.",
        range=(0.0, None), log_from=0.0,
    ),
    entry(
        "skewness", "stream", LAYER, "1", "third standardised moment over features", "moments",
        title="Skewness of features",
        question="Do outlier features lie on one side?",
        higher="outlier features are positive.",
        lower="below 0, outlier features are negative.",
        usual="−2.4 to 0.46 in BERT, −0.01 to 0.02 in an untrained decoder",
        worry="Ever further from 0: a few outlier features on one side carry the stream.",
    ),
    entry(
        "kurtosis", "stream", LAYER, "1", "fourth standardised moment over features − 3",
        "Bondarenko et al. 2023 (outliers)",
        title="Kurtosis of features",
        question="Do a few outlier features carry the stream?",
        higher="fewer and larger outlier features carry the stream.",
        lower="features are of similar size; 0 is a normal distribution.",
        usual="2.2 to 49 in BERT, −0.05 to 0.00 in an untrained decoder",
        worry="A steady rise: outlier features, which make quantisation inexact (Bondarenko et al. 2023).",
        range=(-2.0, None), key=("kurtosis",), log_from=-3.0,
    ),
    entry(
        "update_ratio", "stream", LAYER, "1", "‖output − input‖ / ‖input‖", "Liu et al. 2023 (Deja Vu)",
        title="Change by the layer",
        question="How much does a layer change its input?",
        higher="the layer changes its input more.",
        lower="the layer passes its input on; 0 is an idle layer.",
        usual="0.49 to 0.84 in BERT, 0.46 to 1.7 in an untrained decoder",
        worry="Near 0: the layer is idle (Liu et al. 2023).",
        range=(0.0, None), headline=("update_ratio",), key=("update_ratio",),
    ),
]  # fmt: skip
