"""The six stages: data, warmup, select, explore, align, evaluate. Each is a function that fills a working directory.

A stage reads finished folders, writes into its working directory and can be killed at any moment: training continues
from `last.ckpt`, row files from their last whole line. Nothing here knows the order of stages (`ttpa.run.pipeline`) or
where they are kept (`ttpa.run.store`). Heavy imports are inside the functions, so that a run served from the store starts
at once.
"""

from ttpa.run.stages.aligning import build_align
from ttpa.run.stages.decoding import build_evaluate, build_select
from ttpa.run.stages.exploring import build_explore
from ttpa.run.stages.parts import VERSIONS, Parts, Progress, build_data
from ttpa.run.stages.training import build_warmup

__all__ = [
    "VERSIONS",
    "Parts",
    "Progress",
    "build_align",
    "build_data",
    "build_evaluate",
    "build_explore",
    "build_select",
    "build_warmup",
]
