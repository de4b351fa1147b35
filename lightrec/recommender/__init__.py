"""The Lightning contract of every model, and the parts of it that say how a model is trained and judged."""

from lightrec.recommender.contract import SequenceRecommender
from lightrec.recommender.encoder import EncoderRecommender
from lightrec.recommender.evaluation import Evaluation, RankingEvaluation
from lightrec.recommender.optimizer import Adagrad, AdamW, Optimizer

__all__ = [
    "Adagrad",
    "AdamW",
    "EncoderRecommender",
    "Evaluation",
    "Optimizer",
    "RankingEvaluation",
    "SequenceRecommender",
]
