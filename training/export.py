"""From a trained model to the ONNX graphs of a bundle, with the numbers that prove them.

What the graphs compute is in `training.export_graphs` and `training.explainers`; how a bundle is put together is in
`training.publish`.

Legend: `B` batch, `L` history length, `M` modalities, `P` parts of an item (the modalities first), `D_m` raw width, `S`
state width, `D` vector width, `H` history row, `Q` queries, `K` candidates.
"""

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from api_schemas.manifest import GraphName, GraphSpec, TensorSpec
from training.explainers import AffineExplainer, BesideExplainer, Explainer
from training.export_graphs import ItemEncoder, StateEncoder, UserEncoder
from training.factors.served_ranker import ServedRanker
from training.models import Retriever, ServableModel
from training.models.beside import Beside

ITEM_OUTPUTS = ("candidate", "history", "states")
STATE_OUTPUTS = ("candidate", "history")
USER_OUTPUTS = ("queries",)
RANKER_OUTPUTS = ("scores",)
EXPLAINER_OUTPUTS = (
    "scores",
    "item_interest",
    "modality_interest",
    "item_grad_x_input",
    "modality_grad_x_input",
    "contributions",
    "queries",
)

_BATCH, _CANDIDATES = "batch", "candidates"
"""The free dimensions."""

_PRIMES = (11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97)

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Graph:
    """One graph to export: the torch module, its signature, and an example to trace it with."""

    name: GraphName
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    free: dict[str, str]
    """Input name to the name of its first, free dimension."""
    is_differentiated: bool = False

    @property
    def file(self) -> str:
        """Name of the graph's file in a bundle."""
        return f"{self.name}.onnx"

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the module's outputs by name, computed by torch: what the exported file must give."""
        tensors = [torch.tensor(inputs[name]) for name in self.inputs]  # a copy: the arrays may be read-only
        with torch.no_grad():
            values = self.module(*tensors)
        values = values if isinstance(values, tuple) else (values,)
        return {name: value.numpy() for name, value in zip(self.outputs, values, strict=True)}


def graphs_of(model: ServableModel) -> dict[GraphName, Graph]:
    """Return the four graphs of a model: a copy in eval mode, float32, on the CPU; the model itself is left alone."""
    frozen = copy.deepcopy(model).cpu().float().eval().requires_grad_(requires_grad=False)
    batch, candidates = _example_sizes(frozen)
    length, num_parts = model.history_length, len(model.part_names)
    raw = {modality.name: torch.zeros(batch, modality.dim) for modality in model.modalities}
    presence_BM = torch.ones(batch, len(model.modalities), dtype=torch.bool)
    ages = _ages(model, batch)
    graphs = [
        Graph(
            name="item_encoder",
            module=ItemEncoder(frozen),
            inputs={**raw, "presence": presence_BM},
            outputs=ITEM_OUTPUTS,
            free=dict.fromkeys([*raw, "presence"], _BATCH),
        ),
        Graph(
            name="state_encoder",
            module=StateEncoder(frozen),
            inputs={
                "states": torch.zeros(batch, num_parts, model.state_dim),
                "presence": torch.ones(batch, num_parts, dtype=torch.bool),
            },
            outputs=STATE_OUTPUTS,
            free={"states": _BATCH, "presence": _BATCH},
        ),
        Graph(
            name="user_encoder",
            module=UserEncoder(frozen),
            inputs={
                "history": torch.zeros(batch, length, model.history_dim),
                "mask": torch.ones(batch, length, dtype=torch.bool),
                **ages,
            },
            outputs=USER_OUTPUTS,
            free=dict.fromkeys(["history", "mask", *ages], _BATCH),
        ),
        _explainer(frozen, batch, candidates) if isinstance(frozen, Retriever) else _ranker(frozen, batch, candidates),
    ]
    return {graph.name: graph for graph in graphs}


def _explainer(model: Retriever, batch: int, candidates: int) -> Graph:
    shape_BLP = (batch, model.history_length, len(model.part_names))
    ages, is_affine = _ages(model, batch), model.user_map is not None
    assert not (ages and is_affine), "the weights of an affine map are those of places"
    kind = AffineExplainer if is_affine else BesideExplainer if isinstance(model, Beside) else Explainer
    return Graph(
        name="explainer",
        module=kind(model),
        inputs={
            "states": torch.zeros(*shape_BLP, model.state_dim),
            "presence": torch.ones(shape_BLP, dtype=torch.bool),
            "mask": torch.ones(shape_BLP[:2], dtype=torch.bool),
            "candidate_states": torch.zeros(candidates, shape_BLP[2], model.state_dim),
            "candidate_presence": torch.ones(candidates, shape_BLP[2], dtype=torch.bool),
            **ages,
        },
        outputs=EXPLAINER_OUTPUTS,
        free={
            **dict.fromkeys(("states", "presence", "mask", *ages), _BATCH),
            **dict.fromkeys(("candidate_states", "candidate_presence"), _CANDIDATES),
        },
        is_differentiated=not is_affine,
    )


def _ages(model: ServableModel, batch: int) -> dict[str, Tensor]:
    """Return the input that only some models have."""
    return {"ages": torch.zeros(batch, model.history_length)} if model.reads_ages else {}


def _ranker(model: ServableModel, batch: int, candidates: int) -> Graph:
    assert isinstance(model, ServedRanker), "what is no retriever is a ranker"
    return Graph(
        name="ranker",
        module=model.ranker,
        inputs={
            "queries": torch.zeros(batch, model.num_queries, model.query_dim),
            "candidates": torch.zeros(candidates, model.dim),
        },
        outputs=RANKER_OUTPUTS,
        free={"queries": _BATCH, "candidates": _CANDIDATES},
    )


def _example_sizes(model: ServableModel) -> tuple[int, int]:
    """Return sizes of the two free dimensions to trace with.

    The tracer takes dimensions of equal size for the same dimension, and 1 for a constant. So these two differ from
    each other and from every fixed size, and being prime they are no product of any.
    """
    fixed = {
        model.history_length,
        len(model.modalities),
        len(model.part_names),
        model.state_dim,
        model.dim,
        model.query_dim,
        model.history_dim,
        model.num_queries,
    }
    fixed |= {modality.dim for modality in model.modalities}
    fixed |= {size for value in model.state_dict().values() for size in value.shape}
    batch, candidates, *_ = (prime for prime in _PRIMES if prime not in fixed)
    return batch, candidates


def export_graphs(
    model: ServableModel, folder: Path, *, on_graph: Callable[[int, int], None] | None = None
) -> dict[GraphName, GraphSpec]:
    """Write the four ONNX files of a model into a folder and return their signatures.

    Args:
        model: Trained; on any device, in any mode. It is not changed.
        folder: Exists; files of the same name are replaced.
        on_graph: Hears how many graphs are done, and of how many (the last one takes most of the time).

    Raises:
        ValueError: A parameter is not finite: no export could be checked.
        OSError: A file can not be written.
    """
    for name, value in model.state_dict().items():
        if not torch.isfinite(value).all():
            raise ValueError(f"the model's parameter {name} holds NaN or infinity")
    specs: dict[GraphName, GraphSpec] = {}
    graphs = graphs_of(model)
    for done, (name, graph) in enumerate(graphs.items()):
        if on_graph is not None:
            on_graph(done, len(graphs))
        proto = to_onnx(graph)
        (folder / graph.file).write_bytes(proto.SerializeToString(deterministic=True))
        specs[name] = GraphSpec(
            file=graph.file,
            inputs=[_tensor_spec(value) for value in proto.graph.input],
            outputs=[_tensor_spec(value) for value in proto.graph.output],
        )
    if on_graph is not None:
        on_graph(len(graphs), len(graphs))
    return specs


def to_onnx(graph: Graph) -> onnx.ModelProto:
    """Return a graph as ONNX with its free dimensions named, and without traces of this machine."""
    free = {name: torch.export.Dim(name, min=1, max=2**20) for name in dict.fromkeys(graph.free.values())}
    dynamic = tuple({0: free[graph.free[name]]} for name in graph.inputs)
    example = tuple(graph.inputs.values())
    from training.written_out import without_cache, written_out  # what it needs of torch takes seconds to load

    with _quiet_exporter(), without_cache(), torch.no_grad():
        module = _Positional(*(written_out(graph.module, example) if graph.is_differentiated else (graph.module,)))
        program = torch.export.export(module, example, dynamic_shapes=(dynamic,))
        exported = torch.onnx.export(
            program,
            (),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamo=True,
            verbose=False,
        )
    assert exported is not None, "torch.onnx.export gives a program when dynamo is on"
    proto = exported.model_proto
    _strip(proto)
    _name_free_dimensions(proto, graph)
    onnx.checker.check_model(proto)
    return proto


class _Positional(nn.Module):
    """Gives every graph one signature, `*inputs`, so that free dimensions are said in one form."""

    def __init__(self, module: Callable[..., Any], constants: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.module = module
        for i, value in enumerate(constants):
            self.register_buffer(f"constant_{i}", value)

    def forward(self, *inputs: Tensor) -> Any:  # noqa: ANN401  # one tensor or several
        """Run the module on its constants, then its inputs."""
        return self.module(*self.buffers(recurse=False), *inputs)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence what the exporter says of itself (no torchvision, its own deprecated calls); errors still raise."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _strip(proto: onnx.ModelProto) -> None:
    """Remove what the exporter notes about sources: paths of this machine, and most of the file."""
    del proto.metadata_props[:]
    proto.doc_string = ""
    del proto.graph.value_info[:]
    for part in (proto.graph, *proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    for function in proto.functions:
        del function.metadata_props[:]
        function.doc_string = ""


def _name_free_dimensions(proto: onnx.ModelProto, graph: Graph) -> None:
    """Call the free dimensions what the manifest calls them; the exporter numbers them."""
    names = {}
    for value in proto.graph.input:
        names[value.type.tensor_type.shape.dim[0].dim_param] = graph.free[value.name]
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = names[dim.dim_param]


def _tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    return TensorSpec(
        name=value.name,
        dtype=onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name,
        shape=[dim.dim_param or dim.dim_value for dim in tensor.shape.dim],
    )
