"""`moorage gateway`: one OpenAI-compatible address for all models.

A walk through the room, in the order of a request:

    main             the command: options, signals, exit codes
    app              one gateway: two listeners, one sweep, one routing table, the drain
    settings         every limit and time-out
    tls              the certificate, read again when it changes
    server           the clients' side: connections, their time-outs, answers out
    request          strict HTTP/1.1: bytes to requests; no sockets
    proxy            who may ask what, and where it goes
    rewrite          request bodies: parsed once, parameters injected where absent, dumped once; pure
    keys             API keys: what they may ask for; pure
    limits           how much of its limits a key has used; no I/O
    routes           the routing table: immutable, swapped whole; pure
    exchange         one request's way: place, wait, send, retry
    fleet            endpoints, their load, and the queues of those who wait
    health           which targets an alias goes past, and when it comes back; no I/O
    upstream         the engines' side: connections, kept and used again
    answer           an engine's answer on its way to the client
    events           server-sent events and token counts; pure
    refusals         what the gateway says itself, in OpenAI's error shape; pure

and beside it:

    routes_document  routes.yaml to a routing table; pure
    routes_file      follows the file
    cluster_facts    what matters of Models, aliases and EndpointSlices; pure
    cluster_table    all of them as a routing table, kept up to date change by change; no I/O
    cluster          follows the cluster
    demand           who asked for a Model that sleeps
    stats, metrics   what happened, counted, and shown to Prometheus
    ledger           the same for the operator: what it has been told and what it has not; no I/O
    reporter         tells it, as soon as somebody wants a Model that sleeps
    key_command      `moorage key`: makes API keys
    admin            /metrics, /healthz, /readyz on their own port
"""
