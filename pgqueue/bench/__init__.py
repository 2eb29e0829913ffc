"""``pgq bench``: what the queue does on a user's own database, beside what bare SQL does there.

The measuring is in :mod:`~pgqueue.bench.measure`, the schema that it happens in (and that is gone afterwards) in
:mod:`~pgqueue.bench.scratch`. The developers' benchmark, with all regimes, is another: ``python -m benchmarks``.
"""
