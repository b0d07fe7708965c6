"""Layer numbers of stages, of parts of a layer and of repeated runs."""

import hypothesis.strategies as st
from hypothesis import given
from torch import nn

from lightning_geo.observe import CallKey, number_layers
from support.module_trees import all_attention, holder, layers, placed, rows_of, stage, tree


def test_attention_beside_the_list_of_a_stage_is_a_row_of_its_own():  # LeViT
    modules = tree(stages=nn.ModuleList([stage(3, "pool"), stage(2, "pool"), stage(1)]))
    calls = all_attention(modules)
    assert rows_of(modules, *calls) == [call.module for call in calls]
    assert set(number_layers(calls, modules).sizes) == {"stages"}
    blocks = number_layers(calls, modules).blocks
    assert blocks[CallKey("stages.0.blocks.1.attn")] == "stages.0.blocks.1"
    assert blocks[CallKey("stages.1.pool")] == "stages.1.pool"
    assert blocks[CallKey("stages.2.blocks.0.attn")] == "stages.2.blocks.0"


def test_order_is_that_of_the_modules_not_of_the_calls():
    first = holder(down=nn.Identity(), blocks=layers("attn", count=2))
    modules = tree(stages=nn.ModuleList([first, stage(2)]))
    calls = all_attention(modules)
    expected = ["stages.0.down", "stages.0.blocks.0.attn", "stages.0.blocks.1.attn"]
    assert rows_of(modules, *reversed(calls))[:3] == expected


def test_a_convolution_beside_stages_is_no_row_and_a_block_without_attention_beside_blocks_is_one():
    mixed = holder(
        blocks=nn.ModuleList([holder(attn=nn.Identity()), nn.Linear(1, 1), holder(attn=nn.Identity())])
    )
    modules = tree(stages=nn.ModuleList([nn.Conv1d(1, 1, 1), mixed]))
    assert rows_of(modules, *all_attention(modules)) == [
        "stages.1.blocks.0.attn", "(stages.1.blocks.1)", "stages.1.blocks.2.attn"
    ]  # fmt: skip


def test_stages_within_stages():
    outer = nn.ModuleList([holder(inner=nn.ModuleList([stage(2), stage(1, "pool")])), stage(2)])
    modules = tree(stages=outer)
    calls = all_attention(modules)
    assert rows_of(modules, *calls) == [call.module for call in calls]


def test_a_list_of_one_self_and_one_cross_attention_stays_one_row_beside_which_stages_are_none():  # T5
    block = nn.ModuleList([holder(layer=layers("attention", count=3)) for _ in range(2)])
    calls = [
        CallKey(f"decoder.block.{i}.layer.{j}.attention", cross=cross)
        for i in range(2) for j, cross in ((0, False), (1, True))
    ]  # fmt: skip
    numbering = number_layers(calls, tree(decoder=holder(block=block)))
    assert list(numbering.layers.values()) == [
        ("decoder", 0), ("decoder.cross", 0), ("decoder", 1), ("decoder.cross", 1)
    ]  # fmt: skip


def test_modules_that_share_a_holder_in_their_layer_are_told_apart_by_longer_names():
    item = nn.ModuleList([holder(attn=holder(time=nn.Identity(), space=nn.Identity())) for _ in range(2)])
    modules = tree(layer=item)
    assert set(placed(modules, *all_attention(modules)).values()) == {
        (f"layer.attn.{name}", i) for name in ("time", "space") for i in range(2)
    }


def test_two_cross_attentions_of_a_layer_are_two_stacks_and_self_attention_keeps_its_name():
    modules = tree(layer=layers("own", "text", "image", count=2))
    calls = [CallKey(c.module, cross=not c.module.endswith("own")) for c in all_attention(modules)]
    assert set(number_layers(calls, modules).layers.values()) == {
        (stack, i) for stack in ("layer", "layer.cross.text", "layer.cross.image") for i in range(2)
    }


def test_parts_have_the_number_of_their_layer_and_shift_no_other():  # LXMERT, differential attention
    modules = tree(encoder=holder(layer=layers("attn", count=3)))
    alone = [CallKey(f"encoder.layer.{i}.attn") for i in range(3)]
    parts = [*alone, CallKey("encoder.layer.1.attn", part=1), CallKey("encoder.layer.1.attn", part=2)]
    numbering = number_layers(parts, modules)
    assert [numbering.layers[call] for call in parts] == [
        ("encoder", 0), ("encoder", 1), ("encoder", 2), ("encoder.part2", 1), ("encoder.part3", 1)
    ]  # fmt: skip
    assert numbering.sizes == {"encoder": 3, "encoder.part2": 3, "encoder.part3": 3}


def test_a_layer_that_runs_twice_shifts_no_other():
    modules = tree(encoder=holder(layer=layers("attn", count=3)))
    calls = [CallKey(f"encoder.layer.{i}.attn", repeat) for i, repeat in ((0, 0), (1, 0), (1, 1), (2, 0))]
    assert list(number_layers(calls, modules).layers.values()) == [
        ("encoder", 0), ("encoder", 1), ("encoder.run2", 1), ("encoder", 2)
    ]  # fmt: skip


def test_the_attentions_of_one_run_share_its_number():  # a shared decoder layer
    modules = tree(decoder=holder(groups=layers("own", "other", count=1)))
    calls = [
        CallKey(f"decoder.groups.0.{name}", repeat, name == "other", part)
        for repeat in range(2) for name in ("own", "other") for part in range(1 + (name == "own"))
    ]  # fmt: skip
    numbering = number_layers(calls, modules)
    assert {numbering.layers[call] for call in calls} == {
        (stack, i) for stack in ("decoder", "decoder.part2", "decoder.cross") for i in range(2)
    }


def test_a_shared_module_outside_of_lists_is_numbered_by_call_order():
    assert placed(tree(attn=nn.Identity()), *(CallKey("attn", i) for i in range(3))) == {
        f"attn#{i}": ("model", i) for i in range(3)
    }


def test_a_list_named_model_and_modules_outside_of_lists_are_two_stacks():
    modules = tree(model=layers("attn", count=1), attn=nn.Identity())
    assert len(set(placed(modules, *all_attention(modules)).values())) == 2


def test_a_list_whose_items_are_not_numbered_through():
    modules = tree(layer=nn.Sequential())
    for number in (1, 4):
        modules["layer"].add_module(str(number), holder(attn=nn.Identity()))
    modules = dict(modules[""].named_modules())
    assert rows_of(modules, *all_attention(modules)) == ["layer.1.attn", "layer.4.attn"]


NAMES = st.sampled_from(["attn", "cross", "part2", "run2", "model", "blocks", "other"])


def trees(depth: int) -> st.SearchStrategy[nn.Module]:
    """Modules of lists, sequences and attention, in any nesting."""
    attention = st.builds(nn.Identity)
    if depth == 0:
        return attention
    deeper = trees(depth - 1)
    lists = st.lists(deeper, min_size=1, max_size=3)
    return st.one_of(
        attention,
        st.builds(nn.Linear, st.just(1), st.just(1)),
        lists.map(nn.ModuleList),
        lists.map(lambda items: nn.Sequential(*items)),
        st.dictionaries(NAMES, deeper, min_size=1, max_size=3).map(lambda found: holder(**found)),
    )


@st.composite
def forwards(draw: st.DrawFn) -> tuple[dict[str, nn.Module], list[CallKey]]:
    """A model, and attention calls of it in any order."""
    modules = dict(holder(**draw(st.dictionaries(NAMES, trees(4), min_size=1, max_size=3))).named_modules())
    names = [call.module for call in all_attention(modules)]
    if not names:
        return modules, []
    call = st.builds(
        CallKey, st.sampled_from(names), st.integers(0, 2), st.booleans(), st.integers(0, 2)
    )  # fmt: skip
    return modules, draw(st.lists(call, unique=True, max_size=12))


@given(forwards())
def test_every_call_has_a_place_of_its_own(forward):
    modules, calls = forward
    numbering = number_layers(calls, modules)
    assert set(numbering.layers) == set(calls)
    assert len(set(numbering.layers.values())) == len(calls)
    for call, (stack, layer) in numbering.layers.items():
        row = numbering.rows[stack][layer]
        assert len(numbering.rows[stack]) == numbering.sizes[stack]
        assert f"{call.module}.".startswith(f"{row}.")
        assert numbering.blocks[call] == row


@given(forwards())
def test_parts_change_the_place_of_no_other_call(forward):
    modules, calls = forward
    first = list(dict.fromkeys(call._replace(part=0) for call in calls))
    both = number_layers(list(dict.fromkeys([*first, *calls])), modules).layers
    alone = number_layers(first, modules).layers
    assert {call: both[call] for call in first} == alone
    for call in calls:
        stack, layer = both[call]
        assert layer == both[call._replace(part=0)][1]
        assert not call.part or stack.startswith(f"{alone[call._replace(part=0)][0]}.part{call.part + 1}")
