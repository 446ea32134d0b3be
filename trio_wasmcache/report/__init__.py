"""The log tool: reports what a cache did, and what it would have done under other limits.

It is used from the command line (``python -m trio_wasmcache report LOG...``, ``replay``, ``whatif``
and ``tune``; ``--help`` describes each) and needs the extra ``[report]``. Its only
other interface is `reading.schema`, the JSON Schema of the events.

Each folder is a layer, and imports point down:

    cli         the command line: options, progress, exit status
    output      results as plain values, on a terminal and as pages with charts
    findings    the few sentences on which a person can act
    tuning      hit rates by size: one pass over a log, the curve, the advice
    summary     sums over a log, in bounded memory
    whatif      programs of tasks, run again under other limits
    reading     files, lines, events, their order and their clock; remarks and units
    replay      a log run through the cache's own policy, and compared
"""
