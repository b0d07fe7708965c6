"""Layer numbers and stack names from module paths."""

import pytest
from torch import nn

from lightning_geo.observe import CallKey, number_layers
from lightning_geo.observe.layers.numbering import clean_name
from support.module_trees import holder, layers, placed, tree


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
