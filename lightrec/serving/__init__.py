"""A trained model in use: loaded from one file, and kept up to date event by event.

recommender = load_recommender("best.ckpt")
recommender.recommend([["sku-1", "sku-7"]], k=5)

stream = StreamingRecommender(recommender)
stream.observe("ann", "sku-1")
stream.recommend("ann", k=5)
"""

from lightrec.serving.loaded import LoadedRecommender, Recommendation, load_recommender
from lightrec.serving.stream import StreamingRecommender

__all__ = ["LoadedRecommender", "Recommendation", "StreamingRecommender", "load_recommender"]
