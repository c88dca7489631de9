"""Parameters of the FAISS index. Does not import faiss."""

from typing import Literal

from pydantic import Field

from stages.protocol import Section

Kind = Literal["flat", "ivf", "hnsw"]


class IvfParams(Section):
    """Inverted lists: k-means cells, of which a query searches the nearest few."""

    lists: int | None = Field(ge=1, description="number of cells; null: about the square root of the image count")
    probes: int = Field(ge=1, description="cells that a query searches")


class HnswParams(Section):
    """A navigable small-world graph."""

    links: int = Field(ge=2, le=128, description="neighbours per node (M)")
    ef_construction: int = Field(ge=1, description="candidates while building")
    ef_search: int = Field(ge=1, description="candidates while searching")
