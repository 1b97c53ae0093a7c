"""A real Kafka and a real Valkey on this machine, from wheels: what the demo, the tests and a developer run against.

``stack`` puts the two servers together, ``kafka`` and ``valkey`` are each one server, ``cluster`` is Kafka with several
brokers, ``process`` and ``supervisor`` see to it that nothing outlives its owner, ``java``, ``jars`` and ``archive``
bring what Kafka needs to run.
"""
