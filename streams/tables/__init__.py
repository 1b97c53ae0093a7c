"""Redis-backed tables: the collateral state that other services read.

Kafka is the only truth. A table is written only after the transaction that produced its rows has committed, fenced by
the offset of the shard's claim, and stamped with the changelog offset that it reflects.
"""
