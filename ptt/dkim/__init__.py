"""DKIM (RFC 6376, RFC 8463), pure: bytes in, bytes out; no sockets, no files, no clock, no private keys.

``canonical``  header fields and body in canonical form, and the body's hash
``field``      the DKIM-Signature field: what is signed, in which words, and how it is read back
``arc``        the fields of an ARC set (RFC 8617)
``rules``      how a domain wants its mail signed
``keys``       the public key's record in DNS

Verification is dkimpy's work. The tests hold this package to dkimpy bit for bit.
"""
