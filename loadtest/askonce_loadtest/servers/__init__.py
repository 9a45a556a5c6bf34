"""Real server topologies on loopback, for tests and chaos: one node, a cluster, sentinels, TLS."""
