"""`moorage bench`: load on one OpenAI-compatible server, and what it took, in numbers that mean what they say.

A walk through the room, in the order of a run:

    main        the command: options, exit codes, standard streams, the termination message
    settings    what is asked for, checked
    run         the run itself: first contact, prompt length, warm-up, one row per load
    prompts     prompts that no prefix cache has seen, and how long to make them
    load        the two shapes of load: a closed loop, and Poisson arrivals
    client      one streaming request with its clock; asks the server who it is
    connection  HTTP/1.1 on asyncio.Protocol and httptools, so that the clock stands beside the socket
    stream      server-sent events: which chunk bore text, and the server's own token counts
    stats       requests -> percentiles and rates; pure
    verdict     reasons, exit codes, and when a result is refused; pure
    report      the same facts as JSON, as a table, and within 4096 bytes

Definitions (the field disagrees about them, so they are spelled out in docs/reference/bench.md):
TTFT is from send to the first non-empty content or reasoning delta; e2e from send to the end of the stream;
TPOT is (e2e - TTFT) / (n - 1) with n from the server's `usage`. Chunks are never counted as tokens.
"""
