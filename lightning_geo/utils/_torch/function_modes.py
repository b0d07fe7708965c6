"""Private names of torch function modes."""

from __future__ import annotations

import torch

# called while a model runs, hence handed on without a function around it; checked on torch 2.13.0
from torch.overrides import _get_current_function_mode as innermost_function_mode

__all__ = ["innermost_function_mode", "without_function_modes"]

#: Context in which neither torch function modes nor tensor subclasses see what is called. It is entered for
#: every module that an observed model runs, hence the class itself and no function. Checked on torch 2.13.0.
without_function_modes = torch._C.DisableTorchFunction
