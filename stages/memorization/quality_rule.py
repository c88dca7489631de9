"""When samples count as broken: the parameters of stages.memorization.quality."""

from pydantic import Field

from stages.protocol import Section


class QualityRule(Section):
    """When samples count as broken."""

    quantile: float = Field(gt=0, lt=0.5, description="share of held-out images beyond each limit")
    share: float = Field(gt=0, lt=1, description="samples are broken where a larger share lies beyond one limit")
