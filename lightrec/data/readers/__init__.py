"""Readers: one interaction log in any common format, as a table of user, item, time, rating and row.

Everything is read as text first: any string is a valid id, and "007" is not "7". Files are scanned lazily, so that only
the columns in use are ever held. Where polars gives up on a text file, a slow second reading finds the line at fault.
"""

from lightrec.data.readers.columns import Columns, printable, usual_column
from lightrec.data.readers.faults import OnError
from lightrec.data.readers.formats import Form, Format, guess_format
from lightrec.data.readers.log import EVENT, LogTable, read_log, read_table
from lightrec.data.readers.read_as import ReadAs
from lightrec.data.readers.times import in_float32
from lightrec.data.readers.where import Condition

__all__ = [
    "EVENT",
    "Columns",
    "Condition",
    "Form",
    "Format",
    "LogTable",
    "OnError",
    "ReadAs",
    "guess_format",
    "in_float32",
    "printable",
    "read_log",
    "read_table",
    "usual_column",
]
