"""`GET /v1/models/{name}/modalities`: what a loaded model is made of."""

from pydantic import Field

from api_schemas.base import Response
from api_schemas.manifest import ColdItems, ExplanationMethod, FoldIn, MaskFigures
from api_schemas.recommend import ModelVersion


class ModalityOfModel(Response):
    """A modality as the model reads it."""

    modality: str
    dim: int = Field(description="Width of its raw vector.")
    mask: MaskFigures | None = Field(
        default=None,
        description="How much of its raw dimensions a learned mask lets through; null: the model has no mask.",
    )


class ModelModalities(Response):
    """The answer of `GET /v1/models/{name}/modalities`."""

    model: ModelVersion
    parts: list[str] = Field(
        description="What an item is made of, and what explanations split scores by: the modalities, then what the "
        "model adds, such as `id` and `bias`."
    )
    modalities: list[ModalityOfModel]
    explanation_methods: list[ExplanationMethod] = Field(description="The model's default first.")
    num_known_items: int = Field(description="Items of which the model has learned more than their content says.")
    num_known_users: int = Field(description="Users of whom it has learned a vector.")
    fold_in: FoldIn | None = Field(
        default=None, description="How well a user is read from a history; null: the model knows no other way."
    )
    cold_items: ColdItems | None = Field(
        default=None, description="How new items fare; null: the model knows items by their content alone."
    )
