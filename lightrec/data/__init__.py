"""From a log on disk to batches, in the order of the files.

`sources` has the files of known data sets, `readers` turns a file into a table. `options` says how a log is read, which
events stay and what is asked. `preparation` cleans and numbers (`encoding`, `item_columns`) and keeps the result as a
`Prepared` (`prepared`, `catalog`). `splits` and `rows` are parts: what is learned from and asked for, and what a
training row is. `batches` cuts ranges of the log into a `Batch`. `datamodule` puts all this together for a Trainer,
`corpus` for a model, `protocol` for the record of a number. `shorthand` knows the short names of options.
"""
