"""The same fills job as others write it: Kafka Streams, Faust and Quix Streams, each in its own idioms.

The job: read ``trades.v1``, split each trade into two fills, send each to its account's partition, keep each account's
positions as JSON, and write every state to a changelog, from which it can be restored. It is what the router and the
engine do to a trade, without margin, marks, validation, repeats and liquidations, which none of the peers has here.

``launch`` brings what a peer needs and starts it; ``FillsPeer.java``, ``faust_peer`` and ``quix_peer`` are the peers.
"""
