"""DNS: the resolver of the relay, and the publication of public keys in a primary DNS server."""
