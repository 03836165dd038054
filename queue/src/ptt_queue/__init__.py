"""The durable queue: opaque messages, stages, lanes, leases. It knows nothing of mail.

``types``       the nouns; start here, then queue/DESIGN.md
``keys``        the keys of the store, in the order in which things are looked for
``store``       the LMDB engine: transactions; ``files`` its directory
``dispatcher``  lanes, groups, tokens: who may be leased next (memory only, no I/O)
``leasing``     leases, and what the store says of them
``requests``    put, stage, settle; ``operating`` the operator's verbs
``suspended``   destinations that wait; ``clients`` what is remembered of each
``once``        submitters' keys; ``meters`` quotas: what a put must fit into; ``answers`` given a second time
``admin``       list, show, act over a transaction; ``amend`` an operator's settle; ``damaged`` what cannot be read
``queue``       all of it joined: executes groups of requests, each as one transaction
``protocol``    frames and requests (sans-IO); ``link`` the client's side (sans-IO)
``server``      the process's loop; ``client`` a blocking client; ``offline`` a store read beside its owner,
                or changed without it; ``archive`` messages in a file
``in_process``  a queue without a process; ``conformance`` the suite that every queue passes (``testing``, ...)
"""
