"""PTT: a full SMTP service for sending. The map, in the order in which mail flows.

=====================  =========================================================================
``ptt.message``        the nouns: Envelope, Recipient, message ids
``ptt.smtp``           the protocol, without I/O: ServerSession, ClientSession
``ptt.net``            the only sockets of mail: streams, TLS, the calls between our processes
``ptt.directory``      the git database: users, domains, aliases; compiled snapshots
``ptt.submission``     mail comes in: listener, authentication, policy, "250"
``ptt.spool``          the adapter between mail and ``ptt_queue``, where mail survives
``ptt.dkim``           canonicalisation and the DKIM-Signature field, pure
``ptt.signer``         the key process and its client
``ptt.dns``            the resolver, and the updates of the primary server
``ptt.relay``          mail goes out: MX, connections, outcome, retry, bounce
``ptt.pipeline``       a worker's journey of one message: lease, sign, deliver, settle
``ptt.service``        processes: supervisor, worker, control; metrics and the admin port
``ptt.cli``            the ``ptt`` command
=====================  =========================================================================
"""

__version__ = "0.1.0"
