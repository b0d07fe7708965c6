"""Layer numbers and stack names from module paths."""

import hypothesis.strategies as st
import pytest
from hypothesis import given
from torch import nn

from lightning_geo.observe import CallKey, number_layers
from lightning_geo.observe.layers.numbering import clean_name


def tree(**children: nn.Module) -> dict[str, nn.Module]:
    """A module with these children, by path."""
    root = nn.Module()
    for name, child in children.items():
        root.add_module(name, child)
    return dict(root.named_modules())


def holder(**children: nn.Module) -> nn.Module:
    return tree(**children)[""]


def layers(*names: str, count: int) -> nn.ModuleList:
    """A list of layers that each hold modules of these names."""
    return nn.ModuleList(holder(**{name: nn.Identity() for name in names}) for _ in range(count))


def placed(modules: dict[str, nn.Module], *calls: CallKey) -> dict[str, tuple[str, int]]:
    numbering = number_layers(calls, modules)
    return {f"{key.module}#{key.repeat}": place for key, place in numbering.layers.items()}


@pytest.mark.parametrize(
    ("path", "clean"),
    [
        ("encoder.layer.0", "encoder.layer.0"),
        ("_orig_mod.encoder._fsdp_wrapped_module.layer.0", "encoder.layer.0"),
        ("base_model.model.bert.encoder", "bert.encoder"),  # peft
        ("module.h.0", "h.0"),  # DDP
        ("", ""),
    ],
)
def test_wrappers_leave_no_trace(path, clean):
    assert clean_name(path) == clean


def test_a_layer_without_attention_keeps_its_number():
    modules = tree(encoder=holder(layer=layers("attention", count=4)))
    numbering = number_layers(
        [CallKey("encoder.layer.1.attention"), CallKey("encoder.layer.3.attention")], modules
    )
    assert list(numbering.layers.values()) == [("encoder", 1), ("encoder", 3)]
    assert numbering.sizes == {"encoder": 4}
    assert list(numbering.blocks.values()) == ["encoder.layer.1", "encoder.layer.3"]


def test_a_list_at_the_root_names_the_stack_itself():
    assert placed(tree(h=layers("attn", count=2)), CallKey("h.1.attn")) == {"h.1.attn#0": ("h", 1)}


def test_cross_attention_is_a_stack_of_its_own():
    modules = tree(decoder=holder(block=layers("own", "other", count=2)))
    calls = [CallKey("decoder.block.1.own"), CallKey("decoder.block.1.other", cross=True)]
    assert list(number_layers(calls, modules).layers.values()) == [("decoder", 1), ("decoder.cross", 1)]


def test_lists_of_sublayers_do_not_hide_the_block():  # T5
    block = nn.ModuleList([holder(layer=layers("attention", count=2)) for _ in range(3)])
    modules = tree(encoder=holder(block=block))
    numbering = number_layers([CallKey("encoder.block.2.layer.0.attention")], modules)
    assert list(numbering.layers.values()) == [("encoder", 2)]
    assert list(numbering.blocks.values()) == ["encoder.block.2"]


def test_stages_are_numbered_through():  # Swin
    stages = nn.ModuleList([holder(blocks=layers("attention", count=n)) for n in (2, 3)])
    names = [f"encoder.layers.{s}.blocks.{b}.attention" for s, n in ((0, 2), (1, 3)) for b in range(n)]
    numbering = number_layers([CallKey(name) for name in names], tree(encoder=holder(layers=stages)))
    assert list(numbering.layers.values()) == [("encoder", i) for i in range(5)]


def test_a_shared_module_is_numbered_by_call_order():  # ALBERT
    modules = tree(encoder=holder(groups=layers("attention", count=1)))
    calls = [CallKey("encoder.groups.0.attention", repeat) for repeat in range(3)]
    numbering = number_layers(calls, modules)
    assert list(numbering.layers.values()) == [("encoder", i) for i in range(3)]
    assert numbering.sizes == {"encoder": 3}


def test_two_kinds_of_self_attention_in_a_layer_are_two_stacks():  # TimeSformer
    modules = tree(encoder=holder(layer=layers("time", "space", count=2)))
    calls = [CallKey(f"encoder.layer.{i}.{kind}") for i in range(2) for kind in ("time", "space")]
    assert set(placed(modules, *calls).values()) == {
        ("encoder.time", 0), ("encoder.space", 0), ("encoder.time", 1), ("encoder.space", 1)
    }  # fmt: skip


def test_modules_outside_of_lists_are_layers_in_order():
    modules = tree(first=nn.Identity(), second=nn.Identity())
    assert placed(modules, CallKey("second"), CallKey("first")) == {
        "second#0": ("model", 1), "first#0": ("model", 0)
    }  # fmt: skip


def test_lists_of_one_holder_go_by_their_own_names():  # a U-Net
    modules = tree(unet=holder(down=layers("attn", count=1), up=layers("attn", count=1)))
    assert placed(modules, CallKey("unet.down.0.attn"), CallKey("unet.up.0.attn")) == {
        "unet.down.0.attn#0": ("unet.down", 0), "unet.up.0.attn#0": ("unet.up", 0)
    }  # fmt: skip


# -- stages, parts and repeated runs


def stage(blocks: int, *own: str) -> nn.Module:
    """A list of blocks, and attention modules beside it."""
    return holder(blocks=layers("attn", count=blocks), **{name: nn.Identity() for name in own})


def rows_of(modules: dict[str, nn.Module], *calls: CallKey) -> list[str]:
    """Modules of the only stack, by layer."""
    numbering = number_layers(calls, modules)
    (stack,) = numbering.sizes
    assert len(numbering.rows[stack]) == numbering.sizes[stack]
    found = {index: call.module for call, (_, index) in numbering.layers.items()}
    return [found.get(i, f"({row})") for i, row in enumerate(numbering.rows[stack])]


def all_attention(modules: dict[str, nn.Module]) -> list[CallKey]:
    return [CallKey(name) for name, module in modules.items() if type(module) is nn.Identity]


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
