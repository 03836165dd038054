"""The only sockets of mail: streams with time-outs, TLS contexts, and the calls between our own processes."""
