"""Streaming recommendation: keep a state for each user, advance it by one event, recommend; equal to the batch result.

    stream = StreamingRecommender(load_recommender("best.ckpt"))
    stream.observe("ann", "item-3")
    stream.recommend("ann", k=10)

An encoder with a step form (recurrent and state-space models) costs the same for every event, however long the history,
and keeps a state of fixed size. It reads everything that a user ever did, while a batch reads the last `max_length`
items: the two are equal for histories up to that length. Other encoders are refused unless `history=` asks for the
plain thing: keep the last items and read them all again at each recommendation.

A stream is one object in one process. Calls from several threads take turns; processes share nothing, so give each its
own users. Callbacks run within a call and may not call the stream.
"""

from lightrec.serving.stream.stream import StreamingRecommender

__all__ = ["StreamingRecommender"]
