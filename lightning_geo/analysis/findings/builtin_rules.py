"""The table of rules. A new rule is one entry here and one case in the tests."""

from __future__ import annotations

from lightning_geo.analysis.findings.rule import Departure, Level, NotFinite, Rule
from lightning_geo.metrics.selection import select

__all__ = ["RULES"]

_LOWER_RATE = "Lower the learning rate, or lengthen its warm-up."
_NORMALIZE = "Bound the scores: normalize queries and keys (QK-norm), or cap the logits."
_LAST_GOOD = "Go back to the last checkpoint before this step."

_LEVELS = [
    Rule(
        "not_finite", select(["entropy", "pattern", "subspace"]), NotFinite(),
        "Activations of {where} are NaN or infinite.",
        "critical", samples=1,
        causes=("overflow in float16", "a learning rate that is too high", "a division by zero or log of 0"),
        next=(_LAST_GOOD, "Train in bfloat16 or float32.", "Find the operation with torch's detect_anomaly."),
        source="IEEE 754",
    ),
    Rule(
        "entropy_collapse", ("normalized_entropy",), Level(at_most=0.05, start_at_least=0.15),
        "{where} [attend|attends] to essentially one token: normalized entropy is {value}, at the start it "
        "was {usual}.",
        critical_layers=0.5, heads=0.25,
        causes=("a learning rate that is too high", "queries and keys that grow without bound"),
        next=(_LOWER_RATE, _NORMALIZE, _LAST_GOOD),
        source="Zhai et al. 2023 (σReparam: entropy collapse)",
    ),
    Rule(
        "logit_growth", ("max_logit",), Level(at_least=200.0, start_at_most=70.0),
        "Attention scores of {where} have grown to {value}, from {usual} at the start: softmax saturates, "
        "and float16 overflows at 65,504.",
        causes=("a learning rate that is too high", "no weight decay on query and key projections"),
        next=(_NORMALIZE, _LOWER_RATE),
        source="Dehghani et al. 2023 (ViT-22B)",
    ),
    Rule(
        "logit_overflow", ("max_logit",), Level(at_least=20_000.0),
        "Attention scores of {where} are as large as {value}: float16 overflows at 65,504.",
        "critical", samples=1,
        causes=("a learning rate that is too high", "queries and keys that grow without bound"),
        next=(_NORMALIZE, _LAST_GOOD),
        source="Dehghani et al. 2023 (ViT-22B)",
    ),
    Rule(
        "rank_collapse",
        ("effective_rank.query", "effective_rank.key", "effective_rank.value", "effective_rank.output"),
        Level(at_most=1.5, start_at_least=3.0),
        "{where} [use|uses] practically one direction: {metric} is {value}, at the start it was {usual}.",
        critical_layers=0.5, heads=0.5,
        causes=("a learning rate that is too high", "a loss that no longer depends on these heads"),
        next=(_LOWER_RATE, "Compare with a run of another seed."),
        source="Noci et al. 2022 (rank collapse); Roy & Vetterli 2007",
    ),
    Rule(
        "cone_collapse", ("cone.output",), Level(at_least=0.97, start_at_most=0.87),
        "In {where} all tokens point nearly the same way: {metric} is {value}, at the start it was {usual}.",
        "note",
        causes=("the first steps of a training from scratch, after which it passes",
                "a learning rate that is too high", "attention that averages over all tokens"),
        next=("Wait whether it passes.", _LOWER_RATE,
              "Compare attention_distance and entropy of the same layers."),
        source="The geometry of BERT, arXiv 2502.12033; Noci et al. 2022",
    ),
    Rule(
        "first_token_sink", ("first_mass",), Level(at_least=0.9, start_at_most=0.6),
        "{where} [put|puts] {value} of attention on the first token, at the start {usual}.",
        "note", heads=0.5,
        causes=("heads with nothing to add rest on the first token", "a first token that never changes"),
        next=("See whether the loss still falls; heads that rest can often be pruned.",),
        source="Xiao et al. 2023 (attention sinks)",
    ),
]  # fmt: skip

_DEPARTURES = [
    Rule(
        "departure",
        ("query_norm", "key_norm", "max_logit", "entropy", "stable_rank.query", "stable_rank.key",
         "stable_rank.output", "cone.output", "hidden_norm", "update_ratio"),
        Departure(),
        "{metric} of {where} left its trend: it is {value} instead of the expected {usual}.",
        samples=3, heads=0.5,
        causes=("a learning rate that rose", "batches unlike the earlier ones", "labels that are wrong"),
        next=("Compare the loss at this step, and the batches just before it.", _LAST_GOOD),
        source="least squares with prediction errors; Shewhart 1931 (control charts)",
    ),
    Rule(
        "update_growth", ("update_size",),
        Departure(share=0.3, guard=8, direction="up", log=True, slope=False, per_interval=True),
        "Updates of {where} grew: the weights moved by {value} of their size since the sample before, "
        "instead of the expected {usual}.",
        samples=3,
        causes=("a learning rate that rose", "gradients that exploded"),
        next=("Look at the learning rate and the gradient norm at this step.", _LOWER_RATE),
        source="least squares with prediction errors; Shewhart 1931 (control charts)",
    ),
]  # fmt: skip

_CONTRADICTIONS = [
    Rule(
        "frozen_layer", ("unchanged_share",),
        Level(at_least=1.0, start_at_most=0.9999, unlike_others=True),
        "The weights of {where} no longer change, while those of other layers do.",
        causes=("requires_grad set to False", "gradients that no longer reach the layer",
                "the layer is missing in a new optimizer"),
        next=("Check requires_grad, and the optimizer's parameter groups.",
              "If it is intended, silence frozen_layer."),
        source="identity: an optimizer step changes what it trains",
    ),
    Rule(
        "never_trained", ("unchanged_share",), Level(at_least=1.0, start_at_least=1.0),
        "The weights of {where} have not changed since training began.",
        "note", samples=3,
        causes=("requires_grad=False, often on purpose", "the layer is missing in the optimizer",
                "reentrant activation checkpointing whose inputs need no gradient"),
        next=("Check requires_grad, and the optimizer's parameter groups.", "Use use_reentrant=False.",
              "If it is intended, silence never_trained."),
        source="identity: an optimizer step changes what it trains",
    ),
    Rule(
        "rounded_updates", ("bf16_share",), Level(at_least=0.9),
        "The float32 weights of {where} hold only values that bfloat16 has ({value} of those that changed): "
        "something rounds them after each step, and small updates are lost.",
        causes=("weights cast to bfloat16 and back", "an optimizer or a sharding that stores bfloat16"),
        next=("Keep float32 weights, and use mixed precision (bf16-mixed).",),
        source="identity: a float32 number lies on bfloat16's grid by chance once in 65,536",
    ),
    Rule(
        "lost_updates", ("unchanged_share",), Level(at_least=0.5, at_most=0.9999),
        "{value} of the weights of {where} have not changed since the sample before: updates smaller than "
        "the weights' precision are lost.",
        "note", samples=3,
        causes=("weights in bfloat16 or float16 without a float32 copy", "a learning rate near 0"),
        next=("Keep float32 weights, and use mixed precision (bf16-mixed).", "Use stochastic rounding."),
        source="Zamirai et al. 2020 (training with bfloat16 weights)",
    ),
    Rule(
        "future_visible", ("future_visible.batch", "future_visible.probe"),
        Level(at_least=1e-9, start_at_most=0.0, start_of="future_visible.probe"),
        "{where} [see|sees] later tokens ({value} of all pairs), although the model was causal at the start: "
        "its causal mask is lost.",
        "critical", samples=1,
        causes=("a mask that replaced is_causal", "a code path that only training takes"),
        next=("Check the attention mask and is_causal in training mode.", _LAST_GOOD),
        source="identity: a causal model gives later tokens no weight",
    ),
    Rule(
        "padding_visible", ("padding_visible.batch", "padding_visible.probe"), Level(at_least=1e-9),
        "Tokens attend to padding in {where} ({value} of the pairs of a token and a padding token).",
        samples=1,
        causes=("a batch without attention_mask", "attention that ignores its mask"),
        next=("Pass attention_mask to the model.", "If the model was trained so, silence padding_visible."),
        source="identity: masked keys get no weight",
    ),
    Rule(
        "twin_heads", ("redundancy",), Level(at_least=0.9999, start_at_most=0.99),
        "{where} became [copies|a copy] of another head of the layer: {metric} is {value}, at the start "
        "it was {usual}.",
        causes=("heads whose weights were tied or copied", "a collapse to one direction"),
        next=("Compare the weights of these heads.", "Prune one of each pair."),
        source="Kornblith et al. 2019 (CKA)",
    ),
    Rule(
        "twin_layers", ("weight_similarity",), Level(at_least=0.9999, start_at_most=0.99),
        "The weights of {where} became the same as another layer's.",
        causes=("modules that share their weights by mistake", "a checkpoint loaded into the wrong layer"),
        next=("Compare the modules' parameters.",),
        source="identity: layers trained apart differ",
    ),
]  # fmt: skip

#: Name -> rule.
RULES = {rule.name: rule for rule in [*_LEVELS, *_DEPARTURES, *_CONTRADICTIONS]}
