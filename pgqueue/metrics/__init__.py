"""What operators look at: metrics for Prometheus and OpenTelemetry, and whether a worker is well.

A worker imports only what needs no library: it counts into :mod:`.numbers` and notes in :mod:`.vitals` until when
each of its loops may be silent. What is shown of that, and how, is in :mod:`.watch` (a port or a file),
:mod:`.exposition` (Prometheus' formats; needs the extra ``server``) and :mod:`.database` (what the database knows).
"""
