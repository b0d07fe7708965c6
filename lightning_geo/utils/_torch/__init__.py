"""Private and fragile names of PyTorch, each behind one function, in a file for what they concern.

An update of torch that renames one of them is repaired here. ``tests/test_private_names.py`` fails for every
use of such a name elsewhere in the package.
"""

from __future__ import annotations

from lightning_geo.utils._torch.autocast import keep_autocast_cache
from lightning_geo.utils._torch.autograd import in_backward, of_mean
from lightning_geo.utils._torch.compiled import (
    compiled_call,
    compiled_from,
    compiler_stance,
    is_compiled_frame,
    is_compiled_function,
    is_compiled_module,
    set_compiled_call,
)
from lightning_geo.utils._torch.flat_units import (
    FlatParameters,
    flat_parameters,
    input_type,
    inside_of_unit,
    is_flat,
    is_unit,
    path_without_units,
    units_of,
    untried_units,
)
from lightning_geo.utils._torch.flex import (
    flex_calls,
    flex_masks_nothing,
    flex_operator_replaced,
    flex_output,
    flex_scores_unchanged,
    table_lookups,
)
from lightning_geo.utils._torch.foreach import copy_all
from lightning_geo.utils._torch.function_modes import (
    innermost_function_mode,
    without_function_modes,
)
from lightning_geo.utils._torch.hooks import (
    FORWARD_HOOKS,
    OTHER_HOOKS,
    filter_forward_hooks,
    forward_hooks,
    global_forward_hooks,
    remove_forward_hook,
    without_backward_hooks,
)
from lightning_geo.utils._torch.modules import (
    WRAPPERS,
    buffers_of,
    class_name,
    identity_of,
    parameters_of,
    unwrapped,
    version_of,
)
from lightning_geo.utils._torch.parameters import is_plain
from lightning_geo.utils._torch.precision import exact_float32_products
from lightning_geo.utils._torch.script import (
    script_attribute,
    script_attributes,
    set_script_attribute,
)
from lightning_geo.utils._torch.sharding import (
    BeforeCollectives,
    SplitGroup,
    choose_sharding_roots,
    gather_parts,
    gathering_dimensions,
    in_context_parallel,
    is_distributed_tensor,
    keep_uses,
    leader_of,
    output_widths,
    run_sharding_hooks,
    sharded_modules,
    split_groups,
    untried_sharding,
)
from lightning_geo.utils._torch.varlen import (
    varlen_operators,
)

__all__ = [
    "FORWARD_HOOKS",
    "OTHER_HOOKS",
    "WRAPPERS",
    "BeforeCollectives",
    "FlatParameters",
    "SplitGroup",
    "buffers_of",
    "choose_sharding_roots",
    "class_name",
    "compiled_call",
    "compiled_from",
    "compiler_stance",
    "copy_all",
    "exact_float32_products",
    "filter_forward_hooks",
    "flat_parameters",
    "flex_calls",
    "flex_masks_nothing",
    "flex_operator_replaced",
    "flex_output",
    "flex_scores_unchanged",
    "forward_hooks",
    "gather_parts",
    "gathering_dimensions",
    "global_forward_hooks",
    "identity_of",
    "in_backward",
    "in_context_parallel",
    "innermost_function_mode",
    "input_type",
    "inside_of_unit",
    "is_compiled_frame",
    "is_compiled_function",
    "is_compiled_module",
    "is_distributed_tensor",
    "is_flat",
    "is_plain",
    "is_unit",
    "keep_autocast_cache",
    "keep_uses",
    "leader_of",
    "of_mean",
    "output_widths",
    "parameters_of",
    "path_without_units",
    "remove_forward_hook",
    "run_sharding_hooks",
    "script_attribute",
    "script_attributes",
    "set_compiled_call",
    "set_script_attribute",
    "sharded_modules",
    "split_groups",
    "table_lookups",
    "units_of",
    "untried_sharding",
    "untried_units",
    "unwrapped",
    "varlen_operators",
    "version_of",
    "without_backward_hooks",
    "without_function_modes",
]
