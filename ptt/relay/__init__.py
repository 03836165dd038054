"""Mail goes out: where to, over which connection, what became of each recipient, when again, the bounce."""
