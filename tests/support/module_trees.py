"""Trees of modules by path, and the rows that their layers get."""

from torch import nn

from lightning_geo.observe import CallKey, number_layers


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
