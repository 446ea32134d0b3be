"""The log tool: what a cache's log says, and what the cache would have done under other limits.

It is used from the command line (``python -m trio_wasmcache report LOG...``, ``replay``, ``whatif``
and ``tune``; ``--help`` tells the rest) and needs ``pip install 'trio-wasmcache[report]'``. Its
only interface besides is `schema`, the JSON Schema of the events.

From bytes to answers, each file one idea, and imports point down:

    commands                        the command line, and ``report``
    questions                       ``replay``, ``whatif`` and ``tune``
    answers, tuning_page            what they show
    terminal, page, charts          what the report shows, made from its document
    session                         what the commands share
    tuning, whatif                  questions about other limits
    distances, tasks, tokens        stack distances; programs of tasks; who waits for a token
    replay, books                   the log run through the cache's own policy
    document                        the report as plain values
    summary, leases, entries        what is added up while the events go by, in bounded memory
    series, histogram, names        small books of what happened when, how long it took, and to whom
    order, clock                    sequence numbers and times, and what is wrong with them
    frames, lines, streams          events from lines from files
    notes, units                    what was wrong with the input; numbers as people read them
    schema                          what an event looks like
"""
