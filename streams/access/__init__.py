"""How servers are reached: addresses, TLS from PEM files, and what a librdkafka property means to which client.

Plain values in, plain values out: nothing here connects. What cannot be used is refused with the reason and the name of
the setting, never with its value if that may be secret.
"""
