"""Callbacks for a Trainer: lines of progress, interruption without loss, files of predictions, tables of examples.

The command line uses them, and so can a script: `Trainer(callbacks=[EpochLines(), PredictionWriter("lists.parquet")])`.
"""

from lightrec.callbacks.examples import ExampleTable
from lightrec.callbacks.interruption import Interruptible
from lightrec.callbacks.predictions import PredictionWriter
from lightrec.callbacks.progress import EpochLines

__all__ = ["EpochLines", "ExampleTable", "Interruptible", "PredictionWriter"]
