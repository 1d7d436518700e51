"""Gradients written out as plain operations, which is what `torch.export` can take."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from torch._dynamo import config as dynamo
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.fx.passes.dialect.common.cse_pass import CSEPass


def written_out(module: nn.Module, example: tuple[Tensor, ...]) -> tuple[Callable[..., Any], list[Tensor]]:
    """Return a module's operations, forward and backward alike, and its parameters, which they take before the inputs.

    `make_fx` runs the module on fake tensors and records. Only the first dimensions of the inputs are free, those of
    one size the same: symbols in place of the other sizes would take most of the time. The parameters go in as inputs,
    or they would be recorded as constants of the trace. What is recorded twice, as the forward pass is for each
    derivative, is said once; that nothing else was taken for the same is what `training.golden.check_parity` is for.
    """
    parameters = {name: value.detach() for name, value in module.named_parameters()}
    num = len(parameters)
    fakes = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)

    def fake(value: Tensor, *first: DimDynamic) -> Tensor:
        sizes = [*first, *[DimDynamic.STATIC] * (value.dim() - len(first))]
        context: StatelessSymbolicContext[Any, Any] = StatelessSymbolicContext(dynamic_sizes=sizes)
        return fakes.from_tensor(value, symbolic_context=context)

    def run(*values: Tensor) -> Any:  # noqa: ANN401  # as the module
        return functional_call(module, dict(zip(parameters, values[:num], strict=True)), values[num:])

    fixed = [fake(value) for value in parameters.values()]
    free = [fake(value, DimDynamic.DUCK) for value in example]
    traced = CSEPass()(make_fx(run, tracing_mode="symbolic")(*fixed, *free))
    assert traced is not None, "only a pass that was not run gives nothing"
    return traced.graph_module, list(parameters.values())


def without_cache() -> AbstractContextManager[None]:
    """Let a tracer work out the sizes of every operation anew: with free sizes that is faster than to look them up."""
    without: AbstractContextManager[None] = dynamo.patch(fake_tensor_cache_enabled=False)
    return without
